"""One cell of a comparison, in a process of its own: ``python -m zoobj.comparison CELL.json``.

A process for each, since peak memory is a process's, and since one that fails, or is killed for its
memory, then takes no other with it. The cell's file gets the result, or why there is none.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoobj.config import DIFFERENTIABLE, ZOConfig
from zoobj.errors import UserError
from zoobj.files import write_json

ZERO_SHOT, IN_CONTEXT, PROBE = "zero-shot", "in-context", "linear-probe"
BASELINES = (ZERO_SHOT, IN_CONTEXT, PROBE)


@dataclass(frozen=True)
class Cell:
    """A method or baseline, on an objective, under a seed (0 for baselines, which have none)."""

    method: str
    objective: str
    seed: int

    @property
    def name(self) -> str:
        """For files: what is no letter, digit or dash of an objective's spec is left out."""
        objective = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.objective)
        return f"{self.method}-{objective}-{self.seed}"


def result(cell: Cell, settings: dict[str, Any], shots: int, folder: Path) -> dict[str, Any]:
    """Run a cell, or go on with it, and say what it came to.

    Args:
        cell: which.
        settings: what was told; see ``settings_of``.
        shots: examples in the prompt, of the baseline that shows some.
        folder: of the comparison; the run's own is in it.

    Raises:
        UserError: what a user can mend.
    """
    if cell.method in BASELINES:
        args = ZOConfig(**settings, objective=cell.objective)
        return {"evals": 0, "seconds_in_walk": 0.0, **_baseline(cell.method, args, shots)}
    told = {**settings, "method": cell.method, "objective": cell.objective, "seed": cell.seed}
    if surrogate := surrogate_of(cell.method, cell.objective):
        told["surrogate"] = surrogate
    return _trained(ZOConfig(**told, resume_from_checkpoint="auto"), folder / cell.name)


def settings_of(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of all cells without what the method has no use for, and would refuse."""
    from zoobj.assemble import unused

    if method in BASELINES:
        return settings
    left_out = unused(ZOConfig(**settings, method=method))
    return {name: value for name, value in settings.items() if name not in left_out}


def surrogate_of(method: str, objective: str) -> str | None:
    """What a method is trained on where that is not the objective, as it needs gradients."""
    from zoobj.assemble import differentiates

    if method in BASELINES or not differentiates(method):
        return None
    return None if objective == DIFFERENTIABLE else DIFFERENTIABLE


def _baseline(name: str, args: ZOConfig, shots: int) -> dict[str, Any]:
    import torch

    from zoobj import baselines
    from zoobj.environment import peak_memory
    from zoobj.models import default_device

    if name == ZERO_SHOT:
        told = baselines.zero_shot(args)
    elif name == IN_CONTEXT:
        told = baselines.in_context(args, shots)
    else:
        told = baselines.linear_probe(args)
    return {**asdict(told), "peak_memory_bytes": peak_memory(torch.device(default_device()))}


def _trained(args: ZOConfig, folder: Path) -> dict[str, Any]:
    """A run: weights chosen on validation, then measured on test."""
    from zoobj.trainer import ZOTrainer

    told = {"output_dir": str(folder), "disable_tqdm": True}
    found = asdict(ZOTrainer(args=args.model_copy(update=told)).train())
    found["value"] = found.pop("after")
    return found


def main() -> int:
    """Run the cell that a file describes; 0 if its result is there, 2 if it says why not."""
    file = Path(sys.argv[1])
    asked = json.loads(file.read_text(encoding="utf-8"))
    try:
        told = result(Cell(**asked["cell"]), asked["settings"], asked["shots"], file.parent)
    except UserError as error:
        write_json(file, {**asked, "error": str(error)})
        return 2
    write_json(file, {**asked, "result": told})
    return 0


if __name__ == "__main__":
    sys.exit(main())
