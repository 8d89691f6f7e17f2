"""A form made from a task's signature: which fields it has, and what was typed as arguments. Pure.

Names, presence and plain types are checked where the job is submitted, as for every other caller.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from upnext.core import signatures
from upnext.core.signatures import Parameter
from upnext.errors import InvalidArgumentsError

PREFIX = "arg."
"""A field of the form is named so, and then as its argument."""


class Input(StrEnum):
    """What a field takes."""

    TEXT = "text"
    NUMBER = "number"
    CHOICE = "choice"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Field:
    """One argument. `choices`: of a CHOICE, as JSON; `typed`: what stands in it."""

    name: str
    kind: str
    required: bool
    default: str
    input: Input
    choices: tuple[str, ...] = ()
    typed: str = ""


_NUMBERS = {"int", "float"}
_TEXTS = {"str", "Decimal", "datetime", "date", "time", "timedelta", "UUID", "bytes", "Path"}
"""Types whose values are written as text in JSON."""
_NESTED = {"list", "dict", "tuple", "set", "frozenset", "Sequence", "Mapping"}


def fields(signature: str, typed: Mapping[str, str] | None = None) -> list[Field]:
    """A field for each named argument; `typed`: what a refused form had."""
    typed = typed or {}
    return [_field(one, typed.get(PREFIX + one.name, "")) for one in signatures.parameters(signature).named]


def arguments(signature: str, typed: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that a form gives. A field that is empty is left out, unless it has to be given and may be an empty text.

    Raises InvalidArgumentsError, one line that names the argument.
    """
    found: dict[str, Any] = {}
    for one in fields(signature, typed):
        if one.typed or (one.required and one.kind == "str" and PREFIX + one.name in typed):
            found[one.name] = _value(one)
    return found


def _field(one: Parameter, typed: str) -> Field:
    kind, choices = _input(one.kind)
    return Field(one.name, one.kind, one.required, one.default, kind, choices, typed)


def _input(kind: str) -> tuple[Input, tuple[str, ...]]:
    """What a field of this annotation takes, and its choices."""
    members = signatures.union(kind)
    names = {_bare(one) for one in members} - {"None"}
    if names == {"bool"}:
        return Input.CHOICE, ("true", "false", *(["null"] if len(members) > 1 else []))
    if len(members) == 1 and (literals := _literals(kind)):
        return Input.CHOICE, literals
    if names and names <= _NUMBERS:
        return Input.NUMBER, ()
    if len(names) == 1 and names <= _TEXTS:
        return Input.TEXT, ()
    return Input.JSON, ()


def _literals(kind: str) -> tuple[str, ...]:
    """The values of a Literal as JSON; () where it has one that JSON has not."""
    try:
        return tuple(orjson.dumps(ast.literal_eval(one)).decode() for one in signatures.choices(kind))
    except (ValueError, SyntaxError, TypeError):
        return ()


def _bare(kind: str) -> str:
    """`upnext.models.Item[int]` -> `Item`."""
    return kind.partition("[")[0].strip().rpartition(".")[2]


def _value(one: Field) -> Any:
    """Read what was typed. A word that is not JSON is a text, where the annotation may be one: of an Enum, for example."""
    if one.input is Input.TEXT:
        return one.typed.replace("\r\n", "\n")  # browsers send line ends so
    try:
        return orjson.loads(one.typed)
    except orjson.JSONDecodeError as error:
        if {_bare(member) for member in signatures.union(one.kind)} & _NESTED:
            raise InvalidArgumentsError(f"argument {one.name!r} is not JSON: {error}") from None
        return one.typed
