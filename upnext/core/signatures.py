"""Reads a registered signature, `ship(order_id: str, *, express: bool = False) -> dict`, and fits arguments to it. Pure.

Names, presence and plain types (str, int, float, bool, list, dict, None and their unions) are checked here, so that a slip of the pen is
reported at once; other types are the worker's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from upnext.core import codec
from upnext.errors import InvalidArgumentsError

_PARAMETER = re.compile(r"(\*{0,2})([^\W\d]\w*)(.*)\Z", re.DOTALL)
_OPENING, _CLOSING = "([{<", ")]}>"


@dataclass(frozen=True, slots=True)
class Parameter:
    """`kind`, `default`: the annotation and the default as they are written, "" for none."""

    name: str
    required: bool
    positional_only: bool
    keyword_only: bool = False
    kind: str = ""
    default: str = ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """`extra`: it takes any other keyword too. `by_list`: the payload is a list, [positional, keywords]. `rest`: the name of its *args."""

    named: tuple[Parameter, ...]
    extra: bool
    by_list: bool
    rest: str = ""


def parameters(signature: str) -> Parameters:
    """What stands between the brackets."""
    named: list[Parameter] = []
    extra = by_list = keyword_only = False
    rest_name = ""
    for text in _split(_inside(signature)):
        if text == "/":
            named = [replace(one, positional_only=True) for one in named]
            by_list = True
            continue
        if text == "*":
            keyword_only = True
            continue
        match = _PARAMETER.match(text)
        if match is None:
            continue
        stars, name, rest = match.groups()
        if stars == "**":
            extra = True
        elif stars == "*":
            by_list = keyword_only = True
            rest_name = name
        else:
            kind, default = _kind_and_default(rest)
            one = Parameter(
                name, not default, positional_only=False, keyword_only=keyword_only, kind=kind, default=default
            )
            named.append(one)
    return Parameters(tuple(named), extra, by_list, rest_name)


def by_name(signature: str, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a payload that is a list: what *args takes is a list under its name."""
    declared = parameters(signature)
    places = [one.name for one in declared.named if not one.keyword_only]
    rest = {declared.rest: list(positional[len(places) :])} if len(positional) > len(places) else {}
    return {**named, **dict(zip(places, positional, strict=False)), **rest}


def payload(signature: str, kwargs: Mapping[str, Any], args: Sequence[Any] = ()) -> bytes:
    """The encoded arguments of a call; `args` by position.

    Raises InvalidArgumentsError, which shows the signature; EncodingError for a number that JSON can't carry exactly.
    """
    declared = parameters(signature)
    kwargs = _by_name(declared, args, kwargs, signature)
    names = {one.name for one in declared.named}
    unknown = [name for name in kwargs if name not in names]
    missing = [one.name for one in declared.named if one.required and one.name not in kwargs]
    if unknown and not declared.extra:
        raise InvalidArgumentsError(f"unexpected argument {unknown[0]!r}; the task is {signature}")
    if missing:
        raise InvalidArgumentsError(f"missing argument {missing[0]!r}; the task is {signature}")
    for one in declared.named:
        if one.name in kwargs and not fits(one.kind, kwargs[one.name]):
            raise InvalidArgumentsError(
                f"argument {one.name!r} must be {one.kind}, not {kwargs[one.name]!r:.80}; the task is {signature}"
            )
    if not declared.by_list:
        return codec.dumps(dict(kwargs), "argument ")
    return codec.dumps([_positional(declared, kwargs, signature), _keywords(declared, kwargs)], "arguments")


def fits(kind: str, value: Any) -> bool:
    """Whether a value can be of an annotation, as far as that is plain; True for any other annotation.

    Text that reads as a number fits `int` and `float`, as it does in a worker.
    """
    known = [_PLAIN.get(one.strip().partition("[")[0]) for one in _split(kind, "|")]
    return not known or any(one is None or one(value) for one in known)


def _is_number(value: Any, read: Callable[[Any], object]) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        read(value)
    except (ValueError, OverflowError):
        return False
    return True


_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: _is_number(value, int) and not (isinstance(value, float) and not value.is_integer()),
    "float": lambda value: _is_number(value, float),
    "bool": lambda value: isinstance(value, bool | str | int),
    "list": lambda value: isinstance(value, list | tuple),
    "dict": lambda value: isinstance(value, Mapping),
    "None": lambda value: value is None,
}


def _by_name(declared: Parameters, args: Sequence[Any], kwargs: Mapping[str, Any], signature: str) -> Mapping[str, Any]:
    if not args:
        return kwargs
    places = [one.name for one in declared.named if not one.keyword_only]
    if len(args) > len(places):
        raise InvalidArgumentsError(
            f"{len(places)} positional arguments are taken, not {len(args)}; the task is {signature}"
        )
    named = dict(zip(places, args, strict=False))
    for name in kwargs:
        if name in named:
            raise InvalidArgumentsError(f"argument {name!r} is given twice; the task is {signature}")
    return {**named, **kwargs}


def _positional(declared: Parameters, kwargs: Mapping[str, Any], signature: str) -> list[Any]:
    values: list[Any] = []
    left_out: str | None = None
    for one in declared.named:
        if not one.positional_only:
            break
        if one.name not in kwargs:
            left_out = left_out or one.name
        elif left_out is not None:
            raise InvalidArgumentsError(
                f"argument {one.name!r} can't be given without {left_out!r}; the task is {signature}"
            )
        else:
            values.append(kwargs[one.name])
    return values


def _keywords(declared: Parameters, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    positional = {one.name for one in declared.named if one.positional_only}
    return {name: value for name, value in kwargs.items() if name not in positional}


def _inside(signature: str) -> str:
    """The text in the outermost brackets."""
    start = signature.find("(")
    if start < 0:
        return ""
    for at, depth in _depths(signature, start):
        if depth == 0:
            return signature[start + 1 : at]
    return signature[start + 1 :]


def _split(text: str, at_each: str = ",") -> list[str]:
    """At the commas (or what else) that are in no bracket and no string."""
    parts: list[str] = []
    start = 0
    for at, depth in _depths(text, 0):
        if text[at] == at_each and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _kind_and_default(rest: str) -> tuple[str, str]:
    """What follows a parameter's name -> its annotation and its default."""
    end = next((at for at, depth in _depths(rest, 0) if rest[at] == "=" and depth == 0), len(rest))
    return rest[:end].strip().removeprefix(":").strip(), rest[end + 1 :].strip()


def union(kind: str) -> list[str]:
    """The members of an annotation, `str | None` -> [str, None]."""
    return _split(kind, "|")


def choices(kind: str) -> list[str]:
    """What a Literal allows, as Python has it; [] for any other annotation."""
    name, bracket, _ = kind.partition("[")
    return _split(kind[len(name) + 1 : -1]) if bracket and name.rpartition(".")[2] == "Literal" else []


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """(index, bracket depth after it) of every character that is not inside a string."""
    depth, quote, at = 0, "", start
    while at < len(text):
        letter = text[at]
        if quote:
            if letter == "\\":
                at += 1
            elif letter == quote:
                quote = ""
        elif letter in "'\"":
            quote = letter
        else:
            arrow = letter == ">" and text[at - 1 : at] == "-"
            depth += (letter in _OPENING) - (letter in _CLOSING and not arrow)
            yield at, depth
        at += 1
