"""Peak memory of two steps of each kind of method, beside inference.

    python benchmarks/memory.py                         random weights, SmolLM2-135M's shape
    python benchmarks/memory.py --layers 4 --rows 8 --json memory.json

Each runs in a process of its own, on the same random batch: "inference" is two forward passes,
"zo-sgd" two two-point steps on the walk, "forward-grad" two derivatives, the others two steps of
the method, by cross-entropy over all tokens. Peak is of resident memory from when the model is
there, less what the process had before: weights, and whatever else. Needs Linux.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from zoobj import Walk
from zoobj.assemble import method_class
from zoobj.environment import share_memory
from zoobj.scoring.differentiable import checkpointed, derivative

METHODS = ("inference", "zo-sgd", "forward-grad", "lomo", "adalomo", "fo-sgd", "fo-adam")
_MIB = 2**20


def model_of(layers: int) -> Any:
    """A Llama of SmolLM2-135M's shape, but for the number of layers; random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def step_of(name: str, model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """Two of its steps are measured."""

    def loss() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return found

    forward = torch.no_grad()(loss)
    if name == "inference":
        return forward
    if name == "forward-grad":
        directions = Walk(model.named_parameters())
        return lambda: derivative(model, lambda: [loss()], directions.direction(1))
    if name != "zo-sgd":
        method: Any = method_class(name.partition(" ")[0])(model.parameters(), learning_rate=1e-3)
        less = checkpointed if name.endswith("checkpointed") else nullcontext

        def by_gradients() -> None:
            with less(model):
                method.step(loss)

        return by_gradients
    walk = Walk(model.named_parameters())

    def two_points() -> None:
        for offset in ({1: 1e-3}, {1: -1e-3}, {}):
            walk.goto(offset)
            if offset:
                forward()
        walk.commit([(1, 1e-6)])

    return two_points


def memory(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(name: str, layers: int, rows: int, tokens: int) -> dict[str, int]:
    """In this process: the bytes of the weights, and the peak."""
    share_memory()
    before = memory("VmRSS")
    model = model_of(layers)
    ids = torch.randint(49152, (rows, tokens), generator=torch.Generator().manual_seed(0))
    step = step_of(name, model, ids)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        step()
    sizes = [param.numel() * param.element_size() for param in model.parameters()]
    return {"peak": memory("VmHWM") - before, "weights": sum(sizes), "largest": max(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.layers, args.rows, args.tokens)
    if args.only:
        print(json.dumps(measure(args.only, *shape)))
        return
    found: dict[str, dict[str, int]] = {}
    for name in (*METHODS, "lomo checkpointed"):
        command = [sys.executable, __file__, "--only", name]
        command += [
            f"--{key}={value}"
            for key, value in zip(("layers", "rows", "tokens"), shape, strict=True)
        ]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(run.stdout)
    weights, largest = (found["inference"][key] / _MIB for key in ("weights", "largest"))
    print(f"weights {weights:.0f} MiB, the largest gradient {largest:.0f} MiB\n")
    print("| method | peak, MiB | times inference |\n|---|---|---|")
    for name, told in found.items():
        times = told["peak"] / found["inference"]["peak"]
        print(f"| {name} | {told['peak'] / _MIB:.0f} | {times:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
