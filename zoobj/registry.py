"""A name, ``pkg.mod:attr``, ``path/file.py:attr`` or an entry point -> the thing it names.

The engine never imports an objective or a task: it asks here, by name. zoobj's own are listed in
the ``CATALOGUE`` of their package, other people's by entry points of the same group; both are
reached in the same way, and neither is imported before it is asked for.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, NamedTuple, get_args

from zoobj.errors import UserError, did_you_mean

# kind -> the package whose CATALOGUE names the built-in ones, and the entry-point group of others
GROUPS = {
    "objective": "zoobj.objectives",
    "task": "zoobj.tasks",
    "method": "zoobj.estimators",
}

_PLAIN = (bool, int, float, NoneType)  # kinds of arguments whose values are checked
_FROM_FILE = "zoobj_file_"  # how the names of modules begin that were imported by path
_FILE = re.compile(r"^(?P<where>.+\.py):(?P<attr>[A-Za-z_]\w*)(?::(?P<rest>.*))?$")
_MODULE = re.compile(r"^(?P<where>[A-Za-z_][\w.]*):(?P<attr>[A-Za-z_]\w*)(?::(?P<rest>.*))?$")


class Found(NamedTuple):
    """What a spec names: the thing itself, where it is defined, and the arguments in the spec."""

    thing: Any
    where: str
    args: tuple[str, ...]
    kwargs: dict[str, Any]


def catalogue(kind: str) -> dict[str, str]:
    """Registered names of one kind -> ``pkg.mod:attr``; nothing is imported but the list.

    Raises:
        UserError: two packages register the same name.
    """
    from importlib.metadata import entry_points  # takes a while, and workers don't need it

    group = GROUPS[kind]
    names: dict[str, str] = dict(importlib.import_module(group).CATALOGUE)
    for point in entry_points(group=group):
        if names.setdefault(point.name, point.value) != point.value:
            raise UserError(
                f"{kind} {point.name!r} is registered twice, by {names[point.name]} and by "
                f"{point.value}: uninstall or rename one of them"
            )
    return names


def find(kind: str, spec: str) -> Found:
    """Look up ``name[:key=value,...]``, ``pkg.mod:attr[:...]`` or ``path/file.py:attr[:...]``.

    Text after a registered name that holds no ``=`` is one positional argument, also before others:
    ``reward:rewards.py:brevity`` is ``Reward("rewards.py:brevity")``, and
    ``sklearn:f1_score:average=macro`` is ``Sklearn("f1_score", average="macro")``.

    Raises:
        UserError: nothing goes by that name; the message has the closest one.
    """
    if kind == "task" and spec.endswith((".yaml", ".yml")) and not spec.startswith("yaml:"):
        spec = f"yaml:{spec}"
    names = catalogue(kind)
    name, _, rest = spec.partition(":")
    if name in names:
        where, _, attr = names[name].partition(":")
        thing = _attribute(_import_module(where, f"{kind} {name!r}"), where, attr)
        return Found(thing, names[name], *_arguments(rest, spec))
    if match := _FILE.match(spec):
        module = import_file(match["where"])
    elif match := _MODULE.match(spec):
        unknown = f"unknown {kind} {spec!r}{did_you_mean(name, names)}"
        module = _import_module(match["where"], f"{kind} {spec!r}", unknown)
    else:
        raise UserError(f"unknown {kind} {spec!r}{did_you_mean(name, names)}")
    thing = _attribute(module, match["where"], match["attr"])
    return Found(thing, f"{match['where']}:{match['attr']}", *_arguments(match["rest"] or "", spec))


def specs(told: Any) -> list[str]:
    """The specs in a setting: itself, or those of a list of parts and of mappings with a ``name``.

    >>> specs(["exact_match", {"name": "reward:rewards.py:brevity", "weight": 0.1}])
    ['exact_match', 'reward:rewards.py:brevity']
    """
    if isinstance(told, dict):
        told = told["parts"] if "parts" in told else told.get("name")
    if isinstance(told, (list, tuple)):
        return [spec for part in told for spec in specs(part)]
    return [told] if isinstance(told, str) else []


def build(kind: str, spec: str, /, **more: Any) -> Any:
    """Find a class by spec and make an instance; a function or an instance comes back as it is."""
    thing, where, args, kwargs = find(kind, spec)
    if not inspect.isclass(thing):
        if args or kwargs:
            raise UserError(f"{kind} {spec!r}: {where} is not a class and takes no arguments")
        return thing
    if both := sorted({*kwargs} & {*more}):
        raise UserError(f"{kind} {spec!r}: {both[0]} is a setting of its own: --{both[0]}")
    return call(thing, f"{kind} {spec!r}", *args, **kwargs, **more)


def call(make: Callable[..., Any], what: str, /, *args: Any, **kwargs: Any) -> Any:
    """``make(*args, **kwargs)`` with a clear error where the arguments don't fit its signature."""
    try:
        signature = inspect.signature(make)
    except ValueError as error:  # some of those written in C
        raise UserError(f"{what} can't be used: {error}") from None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{what}: {error}; it takes {make.__name__}{signature}") from None
    known = _passed_on(make)
    for name in kwargs:
        if known is not None and name not in known:
            raise UserError(f"{what}: it takes no {name!r}{did_you_mean(name, sorted(known))}")
    if misfit := _misfit(signature.parameters, kwargs):
        raise UserError(f"{what}: {misfit}")
    return make(*args, **kwargs)


def _misfit(parameters: Mapping[str, inspect.Parameter], told: dict[str, Any]) -> str | None:
    """What is wrong with a value: a word where a number, or true or false, is wanted."""
    for name, value in told.items():
        annotation = parameters[name].annotation if name in parameters else Any
        wanted = get_args(annotation) or (annotation,)
        if type(value) in wanted or any(kind not in _PLAIN for kind in wanted):
            continue
        if bool in wanted:
            return f"{name} {value!r} is neither true nor false"
        if isinstance(value, bool) or not isinstance(value, Real):
            return f"{name} {value!r} is not a number"
    return None


def _passed_on(make: Any) -> set[str] | None:
    """Names of arguments of a class that hands what it doesn't know to its base; None: any name."""
    names: set[str] = set()
    for kind in inspect.getmro(make) if inspect.isclass(make) else ():
        if "__init__" not in vars(kind) or kind is object:
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in named and p.name != "self"}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None


def imported_files() -> dict[str, str]:
    """Names of the modules that were imported so, and their paths."""
    names = [name for name in sys.modules if name.startswith(_FROM_FILE)]
    return {name: str(sys.modules[name].__file__) for name in names}


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file by its path; imported once, however often it is asked for.

    Raises:
        UserError: no such file, a syntax error, or an exception while it is imported.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"no file {path}: give a path to a Python file, as in 'rewards.py:reward'")
    name = f"{_FROM_FILE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        where = path if error.filename in (None, str(file)) else error.filename
        line = error.lineno or 1
        raise UserError(f"{where}:{line}: syntax error: {error.msg}; mend it") from None
    except (Exception, SystemExit) as error:  # a script may end itself
        del sys.modules[name]
        raise UserError(
            f"{path} can't be imported: {type(error).__name__}: {error}; mend it, or install "
            "what it needs"
        ) from error
    return module


def _import_module(where: str, what: str, unknown: str | None = None) -> ModuleType:
    """Import a module by name; ``unknown`` is the message where there is none."""
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and not f"{where}.".startswith(f"{error.name}."):
            raise UserError(f"{what}: {where} needs {error.name!r}: install it") from None
        missing = f"{what} is registered as {where}, and there is no such module: reinstall it"
        raise UserError(unknown or missing) from None
    except Exception as error:
        raise UserError(
            f"{what}: {where} can't be imported: {type(error).__name__}: {error}; mend it"
        ) from error


def _attribute(module: ModuleType, where: str, attr: str) -> Any:
    if hasattr(module, attr):
        return getattr(module, attr)
    # Offer what the file itself defines, not what it imports.
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    raise UserError(f"{where} has no function or class {attr!r}{did_you_mean(attr, own)}")


def _arguments(rest: str, spec: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """``"text:k=1,name=x"`` -> ``(("text",), {"k": 1, "name": "x"})``; either may be left out."""
    import yaml

    if not rest:
        return (), {}
    if "=" not in rest:
        return (rest,), {}
    text, colon, _ = rest.partition("=")[0].rpartition(":")
    kwargs = {}
    for part in rest[len(text + colon) :].split(","):
        key, equals, value = part.partition("=")
        try:
            kwargs[key.strip()] = yaml.safe_load(value)
        except Exception:  # also what PyYAML's constructors of values raise
            equals = ""
        if not (equals and key.strip().isidentifier()):
            raise UserError(f"{spec!r}: {part!r} is no key=value; separate several by commas")
    return ((text,) if text else ()), kwargs
