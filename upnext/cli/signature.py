"""Reads a registered signature, `ship(order_id: str, *, express: bool = False) -> dict`, and fits keyword arguments to it. Pure.

Names and presence are checked here, so that a slip of the pen is reported at once; types are the worker's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from upnext.core import codec
from upnext.errors import InvalidArgumentsError

_PARAMETER = re.compile(r"(\*{0,2})([^\W\d]\w*)(.*)\Z", re.DOTALL)
_OPENING, _CLOSING = "([{<", ")]}>"


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    required: bool
    positional_only: bool


@dataclass(frozen=True, slots=True)
class Parameters:
    """`extra`: it takes any other keyword too. `by_list`: the payload is a list, [positional, keywords]."""

    named: tuple[Parameter, ...]
    extra: bool
    by_list: bool


def parameters(signature: str) -> Parameters:
    """What stands between the brackets."""
    named: list[Parameter] = []
    extra = by_list = False
    for text in _split(_inside(signature)):
        if text == "/":
            named = [Parameter(one.name, one.required, positional_only=True) for one in named]
            by_list = True
            continue
        match = _PARAMETER.match(text)
        if match is None:
            continue
        stars, name, rest = match.groups()
        if stars == "**":
            extra = True
        elif stars == "*":
            by_list = True
        else:
            named.append(Parameter(name, required=not _has_default(rest), positional_only=False))
    return Parameters(tuple(named), extra, by_list)


def payload(signature: str, kwargs: Mapping[str, Any]) -> bytes:
    """The encoded arguments of a call.

    Raises InvalidArgumentsError, which shows the signature; EncodingError for a number that JSON can't carry exactly.
    """
    declared = parameters(signature)
    names = {one.name for one in declared.named}
    unknown = [name for name in kwargs if name not in names]
    missing = [one.name for one in declared.named if one.required and one.name not in kwargs]
    if unknown and not declared.extra:
        raise InvalidArgumentsError(f"unexpected argument {unknown[0]!r}; the task is {signature}")
    if missing:
        raise InvalidArgumentsError(f"missing argument {missing[0]!r}; the task is {signature}")
    if not declared.by_list:
        return codec.dumps(dict(kwargs), "argument ")
    return codec.dumps([_positional(declared, kwargs, signature), _keywords(declared, kwargs)], "arguments")


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


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket and no string."""
    parts: list[str] = []
    start = 0
    for at, depth in _depths(text, 0):
        if text[at] == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _has_default(rest: str) -> bool:
    return any(rest[at] == "=" and depth == 0 for at, depth in _depths(rest, 0))


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
