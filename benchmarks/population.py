"""A population in one batch, side by side with plain inference and with one member at a time.

    python benchmarks/population.py                     random weights, SmolLM2-135M's shape
    python benchmarks/population.py --dtype bfloat16 --members 8 --json population.json
    python benchmarks/population.py --model_name_or_path FOLDER [--gguf_file FILE]

For each kind of tuning and N members on the same prompts, in turns A B A B:

A: plain inference of as many rows: the base alone, whole prompts (prefill), then one token at a
   time with a key-value cache (decode).
B: the same with the overlay, every row under its member.
C: the members one at a time, each written into all weights by the walk (two of them are timed).

The ratio is A's seconds over B's: 1 is free. Batches have at most --max_rows rows. Peak memory is
of fresh processes for A and B, after the model is loaded. Needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step import GPU, Seconds, clock, load

from zoobj.overlay import Member, Overlay
from zoobj.walk import Walk

EPS = 0.05
KINDS = ("steer", "scale", "lora", "prompt")
GOALS = {"steer": 0.95, "lora": 0.90}


class Batch:
    """Random prompts, as many rows as members x prompts, run in pieces of max_rows."""

    def __init__(self, model: Any, members: int, o: argparse.Namespace):
        self.model, self.o = model, o
        vocabulary = model.config.get_text_config().vocab_size
        draw = torch.Generator().manual_seed(o.seed)
        prompts = torch.randint(vocabulary, (o.prompts, o.length), generator=draw)
        self.ids = prompts.repeat_interleave(members, 0).to(model.device)
        self.who = [row % members for row in range(len(self.ids))]

    @torch.no_grad()
    def run(self, seconds: Seconds, overlay: Overlay | None, members: list[Member]) -> None:
        """Prefill and decode; by a population if there are members, else by whatever is there."""
        extra = overlay.placeholders if overlay is not None else []
        for start in range(0, len(self.ids), self.o.max_rows):
            part = slice(start, start + self.o.max_rows)
            ids, who = self.ids[part], self.who[part]
            if extra:  # as many tokens for the base: what they cost is not the overlay's
                ids = torch.cat([ids.new_tensor([extra]).expand(len(ids), -1), ids], 1)
            around = overlay.rows(members, who) if overlay and members else nullcontext()
            with clock(seconds, "prefill"), around:
                out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            around = overlay.rows(members, who) if overlay and members else nullcontext()
            with clock(seconds, "decode"), around:
                for _ in range(self.o.new_tokens):
                    token = out.logits[:, -1:].argmax(-1)
                    out = self.model(
                        input_ids=token, past_key_values=out.past_key_values, use_cache=True
                    )


def population(overlay: Overlay, count: int) -> list[Member]:
    """Members at +/- pairs of random offsets."""
    walk, members = Walk(overlay.named_parameters()), []
    for number in range(count):
        walk.goto({number // 2: EPS if number % 2 else -EPS})
        members.append(overlay.snapshot())
    walk.goto({})
    return members


def make(model: Any, kind: str, o: argparse.Namespace) -> Overlay:
    return Overlay(
        model, kind, o.tune_layers, rank=o.rank, tokens=[1] * 8 if kind == "prompt" else ()
    )


def race(model: Any, kind: str, count: int, o: argparse.Namespace) -> dict[str, float]:
    """Medians over rounds of A and B, and their ratios."""
    overlay = make(model, kind, o)
    batch, members = Batch(model, count, o), population(overlay, count)
    rounds: dict[str, list[Seconds]] = {"A": [], "B": []}
    for number in range(o.rounds + 1):
        for name in ("A", "B") if number % 2 else ("B", "A"):
            seconds: Seconds = {}
            if name == "A" and not overlay.tokens:
                with overlay.aside():
                    batch.run(seconds, None, [])
            elif name == "A":  # the embedding of new tokens is no part of plain inference, but
                batch.run(seconds, overlay, [])  # without it their ids mean nothing
            else:
                batch.run(seconds, overlay, members)
            if number:  # the first is to warm up
                rounds[name].append(seconds)
    overlay.remove()
    told: dict[str, float] = {}
    for part in ("prefill", "decode"):
        for name in rounds:
            told[f"{name} {part}"] = median(s[part] for s in rounds[name])
        pairs = zip(rounds["A"], rounds["B"], strict=True)
        told[f"ratio {part}"] = median(a[part] / b[part] for a, b in pairs)
    return told


def one_at_a_time(model: Any, o: argparse.Namespace) -> float:
    """C: seconds a member, the walk's passes included."""
    walk, batch, seconds = Walk(model.named_parameters()), Batch(model, 1, o), Seconds()
    for number, sign in enumerate((1, -1)):
        if number == 1:
            seconds = {}
        with clock(seconds, "walk"):
            walk.goto({1: sign * 1e-3})
        batch.run(seconds, None, [])
    walk.goto({})
    return sum(seconds.values())


def memory_of(which: str, kind: str, o: argparse.Namespace) -> float:
    """The peak of 8 members in this process, in MiB; A: of as many rows without an overlay."""
    model = load(o)
    batch = Batch(model, 8, o)
    Path("/proc/self/clear_refs").write_text("5")  # forget what loading took
    if which == "A":
        batch.run({}, None, [])
    else:
        overlay = make(model, kind, o)
        batch.run({}, overlay, population(overlay, 8))
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10


def peak(which: str, kind: str, o: argparse.Namespace) -> float:
    """The same in a process of its own; the median of three."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{which}:{kind}"]
    found = [
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
        for _ in range(1 if o.smoke else 3)
    ]
    return median(float(run.stdout) for run in found)


def show(
    kind: str, count: int, figures: dict[str, float], alone: float, o: argparse.Namespace
) -> float:
    """Print a row of the table; returns how many times as fast as one at a time it is."""
    rows, prefill, decode = count * o.prompts, figures["B prefill"], figures["B decode"]
    gain = alone * count / (prefill + decode)
    print(
        f"{kind:<8} {count:>7}  {rows * o.length / prefill:>7.0f}  {figures['ratio prefill']:>8.3f}"
        f"  {rows * o.new_tokens / decode:>6.0f}  {figures['ratio decode']:>8.3f}"
        f"  {count / (prefill + decode):>9.3g}  {gain:>16.2f}",
        flush=True,
    )
    return gain


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_name_or_path", help="instead of random weights")
    parser.add_argument("--gguf_file")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--members", default="1,2,4,8,16,32,64")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new_tokens", type=int, default=12)
    parser.add_argument("--max_rows", type=int, default=128, help="of one batch")
    parser.add_argument("--rank", type=int, default=1, help="of lora")
    parser.add_argument("--tune_layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.smoke:
        o.members, o.prompts, o.length, o.new_tokens, o.rounds = "1,2", 2, 8, 2, 2
    return o


def main() -> None:
    o = parsed()
    if o.only:
        which, kind = o.only.split(":")
        print(memory_of(which, kind, o))
        return
    model = load(o)
    told: dict[str, Any] = {"one at a time, seconds a member": one_at_a_time(model, o)}
    device = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, {o.dtype}; {o.prompts} prompts of {o.length} tokens, {o.new_tokens} new ones")
    alone = told["one at a time, seconds a member"]
    print(f"one at a time, in all weights: {1 / alone:.3g} members/s")
    print("\nkind     members  prefill  of plain  decode  of plain  members/s  to one at a time")
    print("                  tokens/s          tokens/s")
    for kind in o.kinds.split(","):
        for count in map(int, o.members.split(",")):
            figures = race(model, kind, count, o)
            gain = show(kind, count, figures, alone, o)
            told[f"{kind} {count}"] = {**figures, "gain": gain}
    del model
    print("\npeak memory at 8 members, MiB     plain  overlay  ratio")
    for kind in o.kinds.split(","):
        plain, ours = peak("A", kind, o), peak("B", kind, o)
        told[f"memory {kind}"] = {"A": plain, "B": ours}
        print(f"{kind:<30}{plain:>9.0f}{ours:>9.0f}{ours / plain:>7.3f}")
    for kind, goal in GOALS.items():
        if (found := told.get(f"{kind} 8")) is not None:
            parts = [f"{part} {found[f'ratio {part}']:.3f}" for part in ("prefill", "decode")]
            print(f"must hold for {kind} at 8 members: >= {goal}; {', '.join(parts)}")
    if o.json:
        Path(o.json).write_text(json.dumps({**vars(o), "device": device, **told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
