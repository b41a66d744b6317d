"""One step side by side: two evaluations alone, zoobj, MeZO as coded, and the memory's limit.

    python benchmarks/step.py                           random weights, SmolLM2-135M's shape
    python benchmarks/step.py --dtype bfloat16 --json step.json
    python benchmarks/step.py --model_name_or_path FOLDER [--gguf_file FILE]

They take turns, A B C D A B C D, so that a machine that drifts slows all of them:

A: two evaluations, each a forward pass over the same random batch.
B: zoobj's two-point step: goto +eps, evaluate, goto -eps, evaluate, commit.
C: a step of MeZO as it is commonly coded: four passes that make the noise anew from a global seed
   and put new tensors in the place of the old ones.
D: two passes at the memory's limit: ``mul_(1.0)`` in place; on a GPU, copies on the device.

Peak memory is of fresh processes for A, B and C, after the model is loaded; of three each, since
holes in malloc's heap come and go. Needs Linux.
"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

EPS, LEARNING_RATE = 1e-3, 1e-7
SIZES = "vocab_size hidden_size intermediate_size"
SIZES += " num_hidden_layers num_attention_heads num_key_value_heads"
SMOLLM2_135M, TINY = (49152, 576, 1536, 30, 9, 3), (256, 32, 64, 2, 2, 1)
ROWS = {
    "A": "A two evaluations",
    "B": "B zoobj, a step",
    "walk": "    of it the walk, 2 passes",
    "walk.seconds": "    the same by walk.seconds",
    "C": "C MeZO as coded, a step",
    "mezo": "    of it 4 passes",
    "D": "D 2 passes at the memory's limit",
}
PARTS = {"walk": "B", "walk.seconds": "B", "mezo": "C"}
GOALS = (">= 25", "<= 3", "<= 0.05", "<= 1.02 in float32", "(none)")
GPU = torch.cuda.is_available()

Seconds = dict[str, float]


@contextmanager
def clock(seconds: Seconds, name: str) -> Iterator[None]:
    """Add the time of this block, the GPU's work included."""
    wait = torch.cuda.synchronize if GPU else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


class Contenders:
    """A, C and D, with walk B too, on one model; not B after C, which replaces the tensors."""

    def __init__(self, model: Any, o: argparse.Namespace, walk: bool = False):
        self.model = model
        if walk:
            from zoobj.walk import Walk  # here: it is no part of the other processes' memory

            params = model.named_parameters()
            self.walk = Walk(params, o.noise, density=o.density, compile=not o.no_compile)
        vocabulary = model.config.get_text_config().vocab_size
        draw = torch.Generator().manual_seed(o.seed)
        ids = torch.randint(vocabulary, (o.batch_size, o.length), generator=draw)
        self._inputs = {"input_ids": ids.to(model.device), "use_cache": False}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._inputs["logits_to_keep"] = 1

    @torch.no_grad()
    def evaluate(self) -> float:
        return float(self.model(**self._inputs).logits[:, -1, 0].float().mean())

    def step_a(self, seed: int, seconds: Seconds) -> None:
        with clock(seconds, "A"):
            self.evaluate(), self.evaluate()

    def step_b(self, seed: int, seconds: Seconds) -> None:
        before, scores = self.walk.seconds, []
        with clock(seconds, "B"):
            for scale in (EPS, -EPS):
                with clock(seconds, "walk"):
                    self.walk.goto({seed: scale})
                scores.append(self.evaluate())
            slope = (scores[0] - scores[1]) / (2 * EPS)
            with clock(seconds, "walk"):
                self.walk.commit([(seed, -LEARNING_RATE * slope)])
        seconds["walk.seconds"] = self.walk.seconds - before

    def step_c(self, seed: int, seconds: Seconds) -> None:
        scores = []
        with clock(seconds, "C"):
            for scale in (1, -2):
                with clock(seconds, "mezo"):
                    self._renew(seed, lambda data, z, scale=scale: data + scale * z * EPS)
                scores.append(self.evaluate())
            slope = (scores[0] - scores[1]) / (2 * EPS)
            with clock(seconds, "mezo"):
                self._renew(seed, lambda data, z: data + 1 * z * EPS)
                self._renew(seed, lambda data, z: data - LEARNING_RATE * (slope * z))

    def _renew(self, seed: int, change: Callable[..., Tensor]) -> None:
        torch.manual_seed(seed)  # noqa: TID251
        for param in self.model.parameters():
            like = {"device": param.data.device, "dtype": param.data.dtype}
            z = torch.normal(mean=0, std=1, size=param.data.size(), **like)
            param.data = change(param.data, z)

    def step_d(self, seed: int, seconds: Seconds) -> None:
        with clock(seconds, "D"):
            for param in 2 * list(self.model.parameters()):
                param.data.clone() if GPU else param.data.mul_(1.0)


def load(o: argparse.Namespace) -> Any:
    """The model in evaluation mode, on the first GPU where there is one."""
    if o.model_name_or_path:
        from zoobj.models import load_model

        return load_model(o.model_name_or_path, gguf_file=o.gguf_file, dtype=o.dtype)[0].eval()
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(o.seed)  # noqa: TID251
    shape = zip(SIZES.split(), TINY if o.smoke else SMOLLM2_135M, strict=True)
    config = LlamaConfig(**dict(shape), tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, o.dtype))
    return model.eval().to("cuda" if GPU else "cpu")


def race(model: Any, o: argparse.Namespace) -> tuple[Seconds, list[Seconds]]:
    """What comes once, and the seconds of each round."""
    once: Seconds = {}
    mezo = Contenders(load(o), o)
    mezo.step_a(0, {})
    with clock(once, "making"):
        ours = Contenders(model, o, walk=True)
    ours.step_b(0, once)
    ours.step_b(1, {})  # the first with a commit to merge: another kernel
    rounds: list[Seconds] = [{} for _ in range(o.rounds)]
    for seed, seconds in enumerate(rounds, start=2):
        for step in (ours.step_a, ours.step_b, mezo.step_c, ours.step_d):
            step(seed, seconds)
    return once, rounds


def memory_of(which: str, o: argparse.Namespace) -> float:
    """The peak of two steps in this process, in MiB."""
    model = load(o)
    Path("/proc/self/clear_refs").write_text("5")  # forget what loading took
    alone = Contenders(model, o, walk=which == "B")
    for seed in range(2):
        getattr(alone, f"step_{which.lower()}")(seed, {})
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    # Unlike ru_maxrss, VmHWM starts anew with each program.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10


def table(title: str, columns: dict[str, list[float]], digits: int, last: dict[str, str]) -> None:
    print(f"\n{title:<34}   median    least     most  {last['title']:>17}")
    for name, found in columns.items():
        numbers = "".join(f"{x:9.{digits}f}" for x in (median(found), min(found), max(found)))
        print(f"{ROWS[name]:<34}{numbers}  {last.get(name, ''):>17}".rstrip())


def report(rounds: list[Seconds], memory: dict[str, list[float]], weights: float) -> Seconds:
    """Print the tables; return the ratios."""
    times = {name: [r[name] for r in rounds] for name in ROWS}
    middle = {name: median(found) for name, found in times.items()}
    shares = {n: f"{middle[n] / middle[whole]:.1%}" for n, whole in PARTS.items()}
    table(f"seconds, {len(rounds)} rounds", times, 4, {"title": "of its step", **shares})
    above = {name: f"{median(found) - weights:.1f}" for name, found in memory.items()}
    table("peak memory, MiB", memory, 1, {"title": "above the weights", **above})
    peak = {name: median(found) for name, found in memory.items()}
    ratios = {
        "MeZO's 4 passes to the walk": middle["mezo"] / middle["walk"],
        "the walk to 2 passes at the limit": middle["walk"] / middle["D"],
        "the walk's share of a step": middle["walk"] / middle["B"],
        "peak memory, zoobj to inference": peak["B"] / peak["A"],
        "peak memory, MeZO to inference": peak["C"] / peak["A"],
    }
    print(f"\n{'must hold':<34}   figure  goal")
    for (label, ratio), goal in zip(ratios.items(), GOALS, strict=True):
        print(f"{label:<34}{ratio:9.4g}  {goal}")
    return ratios


def parse() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--model_name_or_path", help="instead of random weights")
    add("--gguf_file")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--noise", choices=("rademacher", "gaussian", "sphere"), default="rademacher")
    add("--density", type=float, default=1.0)
    numbers = {"batch_size": 16, "length": 64, "rounds": 5, "processes": 3, "seed": 0}
    for name, default in {**numbers, "threads": torch.get_num_threads()}.items():
        add(f"--{name}", type=int, default=default, help=f"by default {default}")
    add("--no_compile", action="store_true", help="walk by torch's own kernels")
    add("--json", type=Path, help="write the figures to this file, too")
    add("--smoke", action="store_true", help="a tiny model, 2 rounds")
    add("--memory_of", choices="ABC", help="for the script's own processes")
    o = parser.parse_args()
    if o.smoke:
        o.batch_size, o.length, o.rounds, o.processes = 2, 8, 2, 1
    return o


def main() -> None:
    o = parse()
    torch.set_num_threads(o.threads)
    if o.memory_of:
        print(memory_of(o.memory_of, o))
        return
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = torch.cuda.get_device_name() if GPU else cpu[1] if cpu else "unknown CPU"
    machine += f", {o.threads} threads of {os.cpu_count()} cores, torch {torch.__version__}"
    command, model = " ".join(["python", *sys.argv]), load(o)
    weights = sum(p.numel() for p in model.parameters())
    mib = sum(p.nbytes for p in model.parameters()) / 2**20
    print(f"{command}\n{machine}, load {os.getloadavg()[0]:.1f}\n{type(model).__name__}, ", end="")
    print(f"{weights / 1e6:.1f} M weights, {o.dtype}, {o.batch_size} x {o.length}, {o.noise}")
    once, rounds = race(model, o)
    print(f"making the Walk: {once['making']:.2f} s; first step: {once['B']:.2f} s, ", end="")
    print(f"of it the walk {once['walk']:.2f} s, with any wait for the compiler", flush=True)
    del model
    child = [sys.executable, __file__, *sys.argv[1:], "--memory_of"]
    memory: dict[str, list[float]] = {"A": [], "B": [], "C": []}
    for which in "ABC" * o.processes:
        memory[which].append(float(subprocess.check_output([*child, which])))
    figures = {"command": command, "machine": machine, "weights_mib": mib, "memory_mib": memory}
    figures |= {"ratios": report(rounds, memory, mib), "once": once, "rounds": rounds}
    if o.json:
        o.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
