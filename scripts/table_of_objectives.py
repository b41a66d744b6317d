"""The table of docs/objectives.md, from the code.

python scripts/table_of_objectives.py > table.md
"""

import inspect
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from zoobj.objective import Objective
from zoobj.registry import catalogue, find

HEAD = "| objective | what it is | range | better | needs | value of | extra |"


def table() -> str:
    """A row for each objective of zoobj's, in Markdown, sorted by name."""
    names = [n for n, where in catalogue("objective").items() if where.startswith("zoobj.")]
    rows = [row(name, find("objective", name).thing) for name in sorted(names)]
    return "\n".join([HEAD, "|---" * HEAD.count("| ") + "|", *rows])


def row(name: str, kind: type[Objective]) -> str:
    """One of them: its name, the first paragraph of its docstring and its attributes."""
    summary = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    cells = [f"`{name}`", summary.removesuffix(".").replace("|", "\\|")]
    if "bounds" in inspect.signature(kind).parameters:  # of things that users bring
        cells += ["yours"] * 4
    else:
        cells += [
            span(*kind.bounds),
            "higher" if kind.higher_is_better else "lower",
            ", ".join(f"`{column}`" for column in sorted(kind.needs)),
            "an example" if kind.decomposable else "the set",
        ]
    cells.append(f"`{kind.extra}`" if hasattr(kind, "extra") else "")
    return f"| {' | '.join(cells)} |"


def span(low: float | None, high: float | None) -> str:
    """The range between two bounds."""
    if low is None and high is None:
        return "any"
    if low is None:
        return f"{high:g} or less"
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


if __name__ == "__main__":
    print(table())
