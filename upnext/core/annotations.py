"""From an annotation to the function that makes its value out of plain JSON values, or to None where JSON's own values will do.

pydantic does the work, and is imported only where an annotation asks for more than JSON has.
"""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

from upnext.core import codec

Converter = Callable[[Any], Any]
"""A plain JSON value -> the annotated type. Raises ValueError with one line that says what doesn't fit."""

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


def resolve(annotation: Any, names: dict[str, Any]) -> Any:
    """The annotation with its forward references looked up in `names` (a module's globals); Any when one isn't there."""

    holder: Any = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names, names, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - an annotation is any expression, of names that may exist only for a type checker
        return Any


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


def converter(annotation: Any) -> Converter | None:
    """None: take JSON's value as it is, because the annotation asks for nothing else or is no type of data."""
    if is_plain(annotation):
        return None
    import pydantic  # noqa: PLC0415 - 90 ms that most services never need
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError  # noqa: PLC0415

    # The value sits in a 1-tuple: pydantic takes no config for a bare dataclass or TypedDict, and it is in JSON mode alone
    # that bytes are read as base64.
    boxed: Any = tuple[_adapted(annotation)]
    try:
        adapter = pydantic.TypeAdapter[tuple[Any]](boxed, config=pydantic.ConfigDict(val_json_bytes="base64"))
        validate = adapter.validator.validate_json
    except (PydanticUserError, PydanticUndefinedAnnotation, NameError):
        return None
    encode = codec.dumps
    refusal = pydantic.ValidationError

    def convert(value: Any) -> Any:
        try:
            return validate(encode((value,), ""))[0]
        except refusal as error:
            raise ValueError(_one_line(error)) from None
        except OverflowError as error:
            raise ValueError(str(error)) from None

    return convert


def _one_line(error: Any) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
    got = repr(first["input"])
    if len(got) > 80:
        got = got[:77] + "..."
    return f"{place.lstrip('.') + ': ' if place else ''}{first['msg']}, got {got}"


def _adapted(annotation: Any) -> Any:
    """The same as pydantic needs it.

    Each `typing.TypedDict` as its `typing_extensions` twin (before Python 3.12 pydantic takes no other), an Iterable as a list
    (pydantic's can be read once), a Literal of an Enum's members by their values.
    """
    if sys.version_info < (3, 12) and typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _twin(annotation)
    inner = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is None:
        return annotation
    if origin is typing.Literal:
        return _literal(annotation, inner)
    if origin is types.UnionType or origin is typing.Union:
        return typing.Union[tuple(_adapted(kind) for kind in inner)]  # noqa: UP007 - the members are known only now
    if origin is typing.Annotated:
        return typing.Annotated[(_adapted(inner[0]), *inner[1:])]
    if origin is collections.abc.Iterable:
        origin = list
    try:
        return origin[tuple(kind if kind is Ellipsis else _adapted(kind) for kind in inner)]
    except TypeError:
        return annotation


def _literal(annotation: Any, values: tuple[Any, ...]) -> Any:
    members = {codec.dumps(one, ""): one for one in values if isinstance(one, Enum)}
    if not members:
        return annotation
    import pydantic  # noqa: PLC0415 - imported already, by `converter`

    return typing.Annotated[
        annotation, pydantic.BeforeValidator(lambda value: members.get(codec.dumps(value, ""), value))
    ]


def _twin(kind: Any) -> Any:
    import typing_extensions  # noqa: PLC0415 - a dependency of pydantic, as lazy as it is

    members: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        # `__required_keys__` misses a NotRequired that stood in a string, as under `from __future__ import annotations`.
        origin = typing.get_origin(hint)
        marked = origin is typing.Required or origin is typing.NotRequired
        required = origin is typing.Required if marked else name in cast("frozenset[str]", kind.__required_keys__)
        inner = _adapted(typing.get_args(hint)[0] if marked else hint)
        members[name] = inner if required else typing_extensions.NotRequired[inner]
    return typing_extensions.TypedDict(kind.__name__, members)  # type: ignore[operator]
