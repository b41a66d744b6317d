"""The form of generated texts: a regular expression, JSON, JSON of a schema."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, ScoreError
from zoobj.objectives.extras import NeedsExtra


class RegexMatch(Objective):
    r"""1 if the completion matches a regular expression, else 0.

    ``regex_match:pattern=yes|no``; a pattern with a comma stands alone: ``regex_match:\d{1,3}``.
    One that YAML takes for something else than text (``[ab]``, ``yes``) does so, too. Python's
    syntax; a pattern with nested repeats, as in ``(a+)+b``, can take for ever on some texts.

    Args:
        pattern: the expression.
        search: it may match anywhere in the completion; by default it must match all of it.

    Raises:
        UserError: the pattern is no text or no regular expression.

    >>> batch = Batch(prompts=["?"] * 2, references=[[]] * 2, completions=["42", "42 mills"])
    >>> RegexMatch(r"\d+").score(batch), RegexMatch(r"\d+", search=True).score(batch)
    ([1.0, 0.0], [1.0, 1.0])
    """

    name = "regex_match"

    def __init__(self, pattern: str, search: bool = False):
        if not isinstance(pattern, str):
            raise UserError(
                f"regex_match: YAML takes the pattern for {pattern!r}: give it alone, as in "
                "'regex_match:[ab]'"
            )
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"regex_match: pattern {pattern!r}: {error}; mend it") from None
        self.search = search

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        match = self.pattern.search if self.search else self.pattern.fullmatch
        return [float(match(text) is not None) for text in batch.completions]


class JSONValid(Objective):
    """1 if the whole completion is a JSON text (RFC 8259), else 0.

    A bare number, or a word in quotes, is one as well: ask ``json_schema`` for an object. NaN and
    Infinity, which Python writes, are not JSON, nor is a text in a code fence.

    >>> batch = Batch(prompts=["?"] * 2, references=[[]] * 2, completions=['{"a": 1}', "{'a': 1}"])
    >>> JSONValid().score(batch)
    [1.0, 0.0]
    """

    name = "json_valid"

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        return [float(_is_valid(text)) for text in batch.completions]


class JSONSchema(NeedsExtra):
    """1 if the whole completion is JSON that fits a JSON schema, else 0.

    By jsonschema, of the draft that the schema names in "$schema" (else the latest). References to
    other documents are not fetched. "format" is an annotation and is not checked.

    Args:
        schema: a file, or the schema itself.
        column: instead, the column of the data set with each row's schema, or its text.

    Raises:
        UserError: not one of the two, no such file, no schema, or jsonschema is not installed.

    >>> batch = Batch(prompts=["?"] * 2, references=[[]] * 2, completions=['{"age": 3}', '{}'])
    >>> JSONSchema({"type": "object", "required": ["age"]}).score(batch)
    [1.0, 0.0]
    """

    name = "json_schema"
    package, extra = "jsonschema", "json"

    def __init__(
        self, schema: str | Path | dict[str, Any] | bool | None = None, column: str | None = None
    ):
        super().__init__()
        if (schema is None) == (column is None):
            raise UserError("json_schema: give schema (a file) or column (of the data set)")
        self.schema, self.column = schema, column
        if isinstance(schema, (str, Path)):
            self.schema = _load(Path(schema).expanduser())
        if schema is not None:
            _checked(self.schema, f"schema {schema}")

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        if self.column is None:
            validators = [_validator(self.schema)] * len(batch)
        else:
            validators = [_validator(schema) for schema in self._of_rows(batch)]
        pairs = zip(batch.completions, validators, strict=True)
        return [float(_is_valid(text, validator)) for text, validator in pairs]

    def _of_rows(self, batch: Batch) -> list[Any]:
        if self.column not in batch.rows:
            known = ", ".join(sorted(batch.rows)) or "none"
            raise ScoreError(f"json_schema: there is no column {self.column!r}; there are: {known}")
        schemas = []
        for given in batch.rows[self.column]:
            try:
                schema = json.loads(given) if isinstance(given, str) else given
            except ValueError as error:
                raise ScoreError(f"json_schema: {self.column} {given!r}: {error}") from None
            schemas.append(_checked(schema, f"{self.column} {given!r}"))
        return schemas


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"json_schema: schema {path}: {error.strerror}; name a file") from None
    except ValueError as error:
        raise UserError(f"json_schema: schema {path} is not JSON: {error}") from None


def _checked(schema: Any, where: str) -> Any:
    """The schema, if it is one."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise UserError(f"json_schema: {where} is no JSON schema: {error.message}") from None
    return schema


def _validator(schema: Any) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    # An empty registry: nothing is fetched.
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _is_valid(text: str, validator: Any = None) -> bool:
    """Whether the text is JSON, and what the validator accepts."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer)
        return validator is None or bool(validator.is_valid(value))
    except (ValueError, ArithmeticError, RecursionError):
        return False  # no JSON, or too large or too deeply nested to be read


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _integer(text: str) -> int:
    return int(Decimal(text))  # int() refuses numbers of thousands of digits
