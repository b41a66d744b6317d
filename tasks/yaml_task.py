"""A task described by a YAML file, with lm-evaluation-harness's keys where they fit."""

import ast
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from zoobj.errors import UserError, did_you_mean
from zoobj.task import SPLITS, Row, Task

# lm-evaluation-harness's names of what we call the kind of output
_OUTPUT: dict[str, Literal["generation", "choices"]] = {
    "generate_until": "generation",
    "multiple_choice": "choices",
}


def _several(value: Any) -> Any:
    """A single text stands for a list of one."""
    return [value] if isinstance(value, str) else value


class _Generation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    until: Annotated[list[str], BeforeValidator(_several)] = ["\n"]
    max_gen_toks: int = Field(default=16, ge=1)


class _Description(BaseModel):
    """The keys of the file. doc_to_text and the others are Jinja templates over a row's columns,
    or the name of a column.
    """

    model_config = ConfigDict(extra="forbid")
    task: str
    dataset_path: str | None = None
    dataset_name: str | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    data_files: dict[Literal["train", "validation", "test"], str] = {}
    output_type: Literal["generate_until", "multiple_choice"] = "generate_until"
    doc_to_text: str
    doc_to_target: str
    doc_to_choice: str | list[str] | None = None
    generation_kwargs: _Generation = _Generation()
    num_fewshot: int = Field(default=0, ge=0)
    length_normalized: bool = False
    objective: str | None = None


class YamlTask(Task):
    """A task from a YAML file: ``--task my_task.yaml``.

    Keys: task, dataset_path, dataset_name, training_split, validation_split, test_split (or
    data_files: {train: ..., test: ...}, relative to the file), output_type, doc_to_text,
    doc_to_target, doc_to_choice, generation_kwargs {until, max_gen_toks}, num_fewshot,
    length_normalized, objective.

    Args:
        path: the YAML file.
        **settings: as for every task; they win over the file's.
    """

    def __init__(self, path: str, **settings: Any):
        self.path = Path(path).expanduser()
        told = _load(self.path)
        self.name, self.output = told.task, _OUTPUT[told.output_type]
        default = "accuracy" if self.output == "choices" else "exact_match"
        self.objective = told.objective or default
        self.stop = told.generation_kwargs.until
        self.max_new_tokens = told.generation_kwargs.max_gen_toks
        self.length_normalized = told.length_normalized
        self.dataset_path, self.dataset_name = told.dataset_path, told.dataset_name
        theirs = (told.training_split, told.validation_split, told.test_split)
        self.hub_splits = {s: name for s, name in zip(SPLITS, theirs, strict=True) if name}
        self.num_fewshot = told.num_fewshot
        super().__init__(**settings)
        local: dict[str, Any] = {s: self.path.parent / f for s, f in told.data_files.items()}
        self.files = {**local, **self.files}
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        self._text = _template(environment, told.doc_to_text)
        self._target = _template(environment, told.doc_to_target)
        self._choices = told.doc_to_choice
        if isinstance(told.doc_to_choice, str):
            self._choice = _template(environment, told.doc_to_choice)

    def prompt(self, row: Row) -> str:
        return str(_render(self._text, row)).rstrip(" ")

    def reference(self, row: Row) -> Any:
        target = _render(self._target, row)
        if self.output == "choices":
            return self._label(target, row)
        return [str(text) for text in target] if isinstance(target, list) else [str(target)]

    def choices(self, row: Row) -> list[str]:
        if isinstance(self._choices, list):
            return self._choices
        choices = _render(self._choice, row)
        if isinstance(choices, str):
            choices = _listed(choices)
        if not isinstance(choices, list):
            raise TypeError(f"doc_to_choice gives {choices!r}, which is no list")
        return [str(choice) for choice in choices]

    def _label(self, target: Any, row: Row) -> int:
        """The gold choice, given by its number or by its text."""
        if type(target) is int:
            return target
        choices = self.choices(row)
        if str(target) in choices:
            return choices.index(str(target))
        return int(target)


def _load(path: Path) -> _Description:
    if not path.is_file():
        raise UserError(f"task file {path}: no such file")
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        description = _Description.model_validate(told)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "content"
        model = _Generation if key.startswith("generation_kwargs.") else _Description
        known = did_you_mean(key.rpartition(".")[2], model.model_fields)
        hint = known if "extra" in problem["type"] else ""
        raise UserError(f"task file {path}: {key}: {problem['msg']}{hint}") from error
    except Exception as error:  # PyYAML lets through what its constructors of values raise
        raise UserError(f"task file {path} is not YAML: {error}") from error
    if description.output_type == "multiple_choice" and not description.doc_to_choice:
        raise UserError(f"task file {path}: output_type multiple_choice needs doc_to_choice")
    return description


def _template(environment: jinja2.Environment, text: str) -> str | jinja2.Template:
    """A template, or the plain name of a column."""
    if "{" not in text:
        return text
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"template {text!r}: {error}") from error


def _render(template: str | jinja2.Template, row: Row) -> Any:
    if isinstance(template, str):
        return row[template]
    try:
        return template.render(**row)
    except jinja2.UndefinedError as error:
        raise KeyError(str(error)) from error


def _listed(text: str) -> Any:
    """The list that a template rendered: as Python writes it, or by hand, without quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return yaml.load(text, Loader=yaml.BaseLoader)  # words such as yes stay words
