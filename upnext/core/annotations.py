"""What an annotation asks for: whether JSON's own values will do, which values those are, and what can't come back from JSON."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

_TEXT = frozenset({str})

Fits = Callable[[Any], bool]
Flat = tuple[type | None, bool, frozenset[type] | None]
"""(list, dict or None for a scalar; whether its keys are text; the classes of what is in it, or of itself; None: any)."""

_PLAIN: frozenset[Any] = frozenset({Any, object, str, int, float, bool, None, type(None), list, dict})
_LISTS: frozenset[Any] = frozenset(
    {
        list,
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Collection,
        collections.abc.Iterable,
    }
)
_OBJECTS: frozenset[Any] = frozenset({dict, collections.abc.Mapping, collections.abc.MutableMapping})


_TEXT_IN_JSON = (bytes, bytearray, UUID, date, time, timedelta, Decimal)


class UnresolvedError(Exception):
    """An annotation names what isn't there at run time."""


def resolve(annotation: Any, names: dict[str, Any]) -> Any:
    """The annotation with its forward references looked up in `names` (a module's globals). Raises UnresolvedError."""
    holder: Any = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names, names, include_extras=True)["it"]
    except Exception as error:  # noqa: BLE001 - an annotation is any expression, of names that may exist only for a type checker
        raise UnresolvedError(f"{type(error).__name__}: {error}") from None


def is_plain(annotation: Any) -> bool:
    """Whether a value of this type comes out of JSON as it went in."""
    if isinstance(annotation, typing.TypeVar):
        return True
    if isinstance(annotation, typing.NewType):
        return is_plain(annotation.__supertype__)
    origin = typing.get_origin(annotation)
    if origin is None:
        return _in(annotation, _PLAIN) or _in(annotation, _LISTS) or _in(annotation, _OBJECTS)
    inner = typing.get_args(annotation)
    if origin is typing.Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in inner)
    if origin is typing.Union or origin is types.UnionType or _in(origin, _LISTS):
        return all(is_plain(kind) for kind in inner)
    if _in(origin, _OBJECTS):
        return inner[0] is str and is_plain(inner[1])
    return False


def _in(annotation: Any, kinds: frozenset[Any]) -> bool:
    try:
        return annotation in kinds
    except TypeError:  # an annotation needs no hash
        return False


def fits(annotation: Any) -> Fits | None:
    """For a plain annotation: whether a value is one of its values already. None: every value is."""
    if isinstance(annotation, typing.TypeVar):
        return None
    if isinstance(annotation, typing.NewType):
        return fits(annotation.__supertype__)
    kinds = scalars(annotation)
    if kinds is not None:
        return lambda value: value.__class__ in kinds
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        return lambda value: any(value is one or (value == one and value.__class__ is one.__class__) for one in inner)
    if origin is typing.Union or origin is types.UnionType:
        members = [fits(kind) for kind in inner]
        known = [member for member in members if member is not None]
        return None if len(known) < len(members) else lambda value: any(member(value) for member in known)
    if _in(origin, _LISTS):
        each = fits(inner[0]) if inner else None
        return lambda value: value.__class__ is list and (each is None or all(map(each, value)))
    if _in(origin, _OBJECTS):
        each = fits(inner[1]) if inner else None
        return lambda value: (
            value.__class__ is dict
            and (not inner or _TEXT.issuperset(map(type, value)))
            and (each is None or all(map(each, value.values())))
        )
    return None


def scalars(annotation: Any) -> frozenset[type] | None:
    """The classes of the values of a plain annotation without an inside; None for any other annotation."""
    if isinstance(annotation, typing.NewType):
        return scalars(annotation.__supertype__)
    if _in(annotation, frozenset(_SCALARS)):
        return _SCALARS[annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [scalars(kind) for kind in typing.get_args(annotation)]
        return None if None in members else frozenset[type]().union(*(one for one in members if one is not None))
    return None


def flat(annotation: Any) -> Flat | None:
    """For a plain annotation that is a scalar, or a list or object of scalars or of anything; None for any other."""
    if isinstance(annotation, typing.NewType):
        return flat(annotation.__supertype__)
    classes = scalars(annotation)
    if classes is not None:
        return None, False, classes
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    outer = list if _in(origin, _LISTS) else dict if _in(origin, _OBJECTS) else None
    if outer is None or not is_plain(annotation):
        return None
    each = inner[-1] if inner else Any
    classes = scalars(each)
    return (outer, outer is dict and bool(inner), classes) if classes is not None or fits(each) is None else None


_SCALARS: dict[Any, frozenset[type]] = {
    str: frozenset({str}),
    int: frozenset({int}),
    bool: frozenset({bool}),
    float: frozenset({float, int}),
    None: frozenset({type(None)}),
    type(None): frozenset({type(None)}),
}


def refusal(annotation: Any) -> str | None:
    """Why values of this type can't come back from JSON as they went, where the annotation alone shows it, and what to write instead."""
    if _is_secret(annotation):
        return f"{annotation.__name__} is dumped as asterisks; send what names the secret, and look it up in the task"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        # What else it says may be a serializer.
        return None if _is_secret(inner[0]) else refusal(inner[0])
    if origin is typing.Literal:
        return None
    if (origin is typing.Union or origin is types.UnionType) and str in inner:
        for kind in inner:
            if isinstance(kind, type) and (issubclass(kind, _TEXT_IN_JSON) or hasattr(cast("Any", kind), "__fspath__")):
                return f"str and {kind.__name__} are both text in JSON; annotate it with one of them"
    return next((found for kind in inner if (found := refusal(kind)) is not None), None)


def _is_secret(annotation: Any) -> bool:
    """By name: pydantic is not imported for it."""
    bases = getattr(annotation, "__mro__", ())
    return any(base.__name__ == "_SecretBase" and base.__module__ == "pydantic.types" for base in bases)
