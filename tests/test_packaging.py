"""What is built and installed: every file in it, one top-level name, quick and lazy to import."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN_FOLDERS = ("objectives", "tasks")
PACKAGED = ("zoobj", *PLUGIN_FOLDERS)


def git_files(*folders: str) -> set[str]:
    """Files of the checkout that are tracked, or would be by ``git add``."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of files to compare with")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def python(
    code: str, cwd: Path, *flags: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter; with the flag -S it sees no installed package."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    for name in git_files():  # a copy: setuptools would pick up what old builds left behind
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), "."]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("zoobj-*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def in_wheel(name: str) -> str:
    """Where a file of the checkout belongs in the wheel."""
    return f"zoobj/{name}" if name.split("/")[0] in PLUGIN_FOLDERS else name


def test_the_wheel_holds_every_file_and_no_other(wheel: zipfile.ZipFile) -> None:
    expected = {in_wheel(name) for name in git_files(*PACKAGED)}
    got = {name for name in wheel.namelist() if ".dist-info/" not in name and name[-1] != "/"}
    assert got == expected
    assert "zoobj/objectives/__init__.py" in got
    assert "zoobj/py.typed" in got


def test_the_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"zoobj"}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    version = _version_in_source()
    assert f"\nVersion: {version}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nLicense-File: LICENSE\n" in text
    assert b"zoobj = zoobj.cli:main" in wheel.read(metadata.replace("METADATA", "entry_points.txt"))


def _version_in_source() -> str:
    for node in ast.parse((ROOT / "zoobj/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise AssertionError("zoobj/__init__.py sets no __version__")


def test_the_sdist_can_be_built_tested_and_redistributed(built: Path) -> None:
    (path,) = built.glob("zoobj-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "Makefile", "constraints.txt", ".ci/run", "pyproject.toml"}
    assert wanted <= names
    assert git_files("tests", *PACKAGED) <= names


@pytest.mark.parametrize("where", ["wheel", "checkout"])
def test_plugins_are_imported_as_part_of_zoobj(where: str, installed: Path, tmp_path: Path) -> None:
    home = installed if where == "wheel" else ROOT
    code = "import zoobj.objectives as o, zoobj.tasks as t; print(o.__file__); print(t.__file__)"
    result = python(code, tmp_path, "-S", path=home)
    assert result.returncode == 0, result.stderr
    inside = home / "zoobj" if where == "wheel" else home
    expected = [str(inside / folder / "__init__.py") for folder in PLUGIN_FOLDERS]
    assert result.stdout.split() == expected


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugin_folders_refuse_their_bare_name(folder: str) -> None:
    result = python(f"import {folder}", ROOT, "-S")
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert f"zoobj.{folder}" in result.stderr


def imported(source: str) -> Iterator[str]:
    """Modules, and names from them, that a module imports by statement."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            yield from (f"{module}.{alias.name}" for alias in node.names)


def crosses(module: str) -> bool:
    """Whether the engine would import an objective or a task by this."""
    parts = module.replace("zoobj", "", 1).lstrip(".").split(".")
    return module.startswith(("zoobj.", ".")) and parts[0] in PLUGIN_FOLDERS


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import zoobj.tasks.squad", True),
        ("from zoobj import objectives", True),
        ("def f():\n    from zoobj.objectives.f1 import F1", True),
        ("from ..tasks import squad", True),
        ("from zoobj.objective import Objective", False),
        ("from zoobj import task", False),
        ("import tasks_of_somebody", False),
    ],
)
def test_imports_across_the_border_are_seen(source: str, found: bool) -> None:
    assert any(crosses(module) for module in imported(source)) is found


def test_the_engine_imports_no_objective_and_no_task() -> None:
    files = sorted((ROOT / "zoobj").rglob("*.py"))
    assert len(files) > 5
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path.read_text(encoding="utf-8"))
        if crosses(module)
    ]
    assert found == []


def test_import_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import zoobj; "
        "print(time.perf_counter() - start); "
        "print(*{'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules))"
    )
    runs = [python(code, tmp_path, path=ROOT) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert {run.stdout.split("\n")[1] for run in runs} == {""}
    assert min(float(run.stdout.split("\n")[0]) for run in runs) < 0.5


def test_every_public_name_can_be_imported() -> None:
    import zoobj

    for name in zoobj.__all__:
        assert getattr(zoobj, name) is not None
    assert set(zoobj.__all__) <= set(dir(zoobj))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = zoobj.nonsense
