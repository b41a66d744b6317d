"""zoobj.registry: every way to name a thing, and every way to get it wrong."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from zoobj import registry
from zoobj.errors import UserError

PLUGINS = '''
class Accuracy:
    """Takes arguments."""

    def __init__(self, top=1, name="accuracy", more=None):
        self.top, self.name, self.more = top, name, more


class Reward:
    def __init__(self, fn):
        self.fn = fn


def brevity(completions, **kwargs):
    return [-float(len(text)) for text in completions]


LIMIT = 3
'''
CATALOGUE = {
    "accuracy": "zt_plugins:Accuracy",
    "reward": "zt_plugins:Reward",
    "brevity": "zt_plugins:brevity",
    "gone": "zt_no_such_module:Thing",
    "renamed": "zt_plugins:Acuracy",
}

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file next to the plug-ins; modules of these tests are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    for name in [n for n in sys.modules if n.startswith(("zt_", "zoobj_file_"))]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def plugins(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue and a module of the tests' own in place of zoobj's objectives."""
    write("zt_plugins.py", PLUGINS)
    write("zt_catalogue.py", f"CATALOGUE = {CATALOGUE!r}")
    monkeypatch.setattr(registry, "GROUPS", {"objective": "zt_catalogue"})
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Offer an entry point, as another installed package would."""

    def offer(name: str, value: str) -> None:
        points = {"zt_catalogue": [EntryPoint(name, value, "zt_catalogue")]}
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points[group])

    return offer


def refused(spec: str, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        registry.build("objective", spec, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Found ----------------------------------------------------------------------------------------


def test_a_registered_class_is_built() -> None:
    made = registry.build("objective", "accuracy")
    assert type(made).__name__ == "Accuracy"
    assert (made.top, made.name) == (1, "accuracy")


def test_find_tells_where_it_is_defined_and_builds_nothing() -> None:
    found = registry.find("objective", "accuracy:top=5")
    assert isinstance(found.thing, type)
    assert found.where == "zt_plugins:Accuracy"
    assert found.args == ()
    assert found.kwargs == {"top": 5}


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    assert set(registry.catalogue("objective")) == set(CATALOGUE)
    assert "zt_plugins" not in sys.modules


def test_arguments_are_typed_as_in_yaml() -> None:
    made = registry.build("objective", "accuracy:top=5, name=my score,more=0.5")
    assert (made.top, made.name, made.more) == (5, "my score", 0.5)


def test_text_without_equals_is_one_positional_argument() -> None:
    assert registry.build("objective", "reward:rewards.py:brevity").fn == "rewards.py:brevity"


@pytest.mark.parametrize("text", ["rewards.py:brevity", "brevity"])
def test_text_before_arguments_is_positional(text: str) -> None:
    made = registry.find("objective", f"reward:{text}:name=my score,url=http://host:80/x")
    assert made.args == (text,)
    assert made.kwargs == {"name": "my score", "url": "http://host:80/x"}


def test_specs_of_a_setting() -> None:
    told = ["a", {"name": "b:k=1", "weight": 2}, {"name": 3}, {"parts": ["c", {"name": "d"}]}]
    assert registry.specs(told) == ["a", "b:k=1", "c", "d"]
    assert registry.specs({"parts": ["a"], "name": "label"}) == registry.specs("a") == ["a"]
    assert registry.specs(None) == []


def test_further_arguments_come_from_the_caller() -> None:
    assert registry.build("objective", "accuracy:top=5", name="x").name == "x"


def test_a_function_comes_back_as_it_is() -> None:
    made = registry.build("objective", "brevity")
    assert made(completions=["abc"]) == [-3.0]


def test_a_module_and_its_attribute() -> None:
    assert registry.build("objective", "zt_plugins:Accuracy:top=2").top == 2
    assert registry.build("objective", "zt_plugins:brevity")(completions=[""]) == [0.0]


def test_a_dotted_module(write: Write) -> None:
    write("zt_package/__init__.py", "")
    write("zt_package/inner.py", "def f(): return 1")
    assert registry.build("objective", "zt_package.inner:f")() == 1


def test_a_file_and_its_attribute(write: Write) -> None:
    path = write(
        "folder with spaces/my-rewards.py", "class R:\n    def __init__(self, k=0): self.k = k"
    )
    assert registry.build("objective", f"{path}:R").k == 0
    assert registry.build("objective", f"{path}:R:k=7").k == 7


def test_a_file_is_imported_once(write: Write) -> None:
    path = write("counting.py", "class R: pass")
    assert registry.import_file(path) is registry.import_file(str(path))


def test_files_of_one_name_do_not_clash(write: Write) -> None:
    a, b = write("a/rewards.py", "WHO = 'a'"), write("b/rewards.py", "WHO = 'b'")
    assert registry.import_file(a).WHO == "a"
    assert registry.import_file(b).WHO == "b"


def test_a_dataclass_in_a_file_can_look_its_module_up(write: Write) -> None:
    source = "from __future__ import annotations\nimport dataclasses\n"
    path = write("typed.py", f"{source}@dataclasses.dataclass\nclass R:\n    k: int = 3")
    assert registry.build("objective", f"{path}:R").k == 3


def test_an_entry_point_is_found_like_our_own(offer: Callable[[str, str], None]) -> None:
    offer("theirs", "zt_plugins:Accuracy")
    assert registry.build("objective", "theirs:top=9").top == 9


def test_a_yaml_file_names_a_task(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("zt_tasks.py", "CATALOGUE = {'yaml': 'zt_plugins:Reward'}")
    monkeypatch.setattr(registry, "GROUPS", {"task": "zt_tasks"})
    assert registry.build("task", "my_task.yaml").fn == "my_task.yaml"
    assert registry.build("task", "yaml:other.yml").fn == "other.yml"


# Refused --------------------------------------------------------------------------------------


def test_an_unknown_name_has_a_suggestion() -> None:
    assert refused("acuracy") == "unknown objective 'acuracy'; did you mean 'accuracy'?"


def test_arguments_do_not_hide_the_suggestion() -> None:
    assert "did you mean 'accuracy'?" in refused("acuracy:top=5,name=a long name of something")


def test_without_a_close_name_all_are_listed() -> None:
    assert refused("zzz").endswith("choose from: accuracy, brevity, gone, renamed, reward")


@pytest.mark.parametrize("spec", ["", ":", "zzz:f", "zt_plugins:", "zt_plugins.py", "a b:c"])
def test_what_is_no_spec_is_an_unknown_name(spec: str) -> None:
    assert refused(spec).startswith(f"unknown objective {spec!r}")


def test_a_missing_file() -> None:
    assert refused("nowhere/rewards.py:brevity").startswith("no file nowhere/rewards.py: ")


def test_a_syntax_error_has_its_line(write: Write) -> None:
    path = write("broken.py", "x = 1\n\ndef f(:\n    pass\n")
    assert f"{path}:3: syntax error" in refused(f"{path}:f")


def test_a_syntax_error_further_down_is_not_blamed_on_the_file(write: Write) -> None:
    inner = write("zt_broken.py", "x = 1\ndef f(:\n")
    outer = write("outer.py", "\n\n\nimport zt_broken\n")
    message = refused(f"{outer}:f")
    assert f"{outer}:2" not in message
    assert f"{inner}:2" in message


def test_an_exception_at_import(write: Write) -> None:
    path = write("raises.py", "raise RuntimeError('no GPU here')")
    message = refused(f"{path}:f")
    assert str(path) in message
    assert "RuntimeError: no GPU here" in message


def test_a_file_that_failed_is_tried_again_once_mended(write: Write) -> None:
    path = write("mended.py", "raise RuntimeError")
    refused(f"{path}:f")
    path.write_text("def f(): return 'mended'  # longer than before")
    assert registry.build("objective", f"{path}:f")() == "mended"


@pytest.mark.parametrize("where", ["zt_plugins", "zt_plugins.py"])
def test_a_missing_function_has_a_suggestion_from_the_file(where: str, tmp_path: Path) -> None:
    where = str(tmp_path / where) if where.endswith(".py") else where
    expected = f"{where} has no function or class 'brevty'; did you mean 'brevity'?"
    assert refused(f"{where}:brevty") == expected


def test_suggestions_are_of_what_the_file_defines(write: Write) -> None:
    path = write("imports.py", "from zt_plugins import brevity\n\ndef mine(): ...")
    assert refused(f"{path}:brevit").endswith("choose from: mine")


def test_a_module_whose_requirement_is_missing(write: Write) -> None:
    write("zt_needs.py", "import zt_not_installed")
    assert "zt_needs needs 'zt_not_installed': install it" in refused("zt_needs:f")


def test_a_module_that_raises(write: Write) -> None:
    write("zt_raises.py", "1 / 0")
    assert "zt_raises can't be imported: ZeroDivisionError" in refused("zt_raises:f")


def test_a_registered_module_that_is_gone() -> None:
    message = refused("gone")
    assert "'gone'" in message
    assert "zt_no_such_module" in message


def test_a_registered_name_whose_class_is_gone() -> None:
    assert "zt_plugins has no function or class 'Acuracy'" in refused("renamed")


def test_a_name_registered_twice_names_both(offer: Callable[[str, str], None]) -> None:
    offer("accuracy", "their.package:Accuracy")
    message = refused("accuracy")
    assert "registered twice" in message
    assert "zt_plugins:Accuracy" in message
    assert "their.package:Accuracy" in message


def test_the_same_thing_registered_twice_is_one(offer: Callable[[str, str], None]) -> None:
    offer("accuracy", "zt_plugins:Accuracy")
    assert registry.catalogue("objective")["accuracy"] == "zt_plugins:Accuracy"


def test_wrong_arguments_have_the_signature() -> None:
    message = refused("accuracy:tpo=5")
    assert message.startswith("objective 'accuracy:tpo=5': ")
    assert "'tpo'" in message
    assert "Accuracy(top=1, name='accuracy', more=None)" in message


def test_missing_arguments_have_the_signature() -> None:
    assert "it takes Reward(fn)" in refused("reward")


def test_a_function_takes_no_arguments() -> None:
    assert "zt_plugins:brevity is not a class and takes no arguments" in refused("brevity:k=1")


@pytest.mark.parametrize("spec", ["accuracy:top=[1", "accuracy:top=1,more", "accuracy:=1"])
def test_malformed_arguments(spec: str) -> None:
    assert "key=value" in refused(spec)


def test_an_error_inside_a_constructor_is_not_hidden(write: Write) -> None:
    path = write("inside.py", "class R:\n    def __init__(self): raise TypeError('from inside')")
    with pytest.raises(TypeError, match="from inside"):
        registry.build("objective", f"{path}:R")
