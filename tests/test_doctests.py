"""The examples in docstrings run as they stand."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    """zoobj's modules by the names they are imported by, those in objectives/ and tasks/ too."""
    files = [
        path
        for folder in ("zoobj", "objectives", "tasks")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    dotted = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    names = {name if name.startswith("zoobj") else f"zoobj.{name}" for name in dotted}
    return sorted(n.removesuffix(".__init__") for n in names if not n.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_docstring(name: str) -> None:
    result = doctest.testmod(
        import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert result.failed == 0


def test_there_are_docstrings_to_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(import_module("zoobj.objective"))
    assert any(test.examples for test in found)
