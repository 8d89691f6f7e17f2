"""How the values of one annotation travel: to plain JSON values and back, or not at all.

pydantic does the work, and is imported only where an annotation asks for more than JSON has, or a value is none of its annotation's.
"""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

import orjson

from upnext.core import codec
from upnext.core.annotations import Fits, fits, flat, is_plain

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURE = "give the type a serializer that its validator reads, or send plain values"
_CURES = {
    "utf-8": "let its model carry bytes with ConfigDict(ser_json_bytes='base64', val_json_bytes='base64'), or send plain values",
    "Field required": "give the field one alias for reading and writing, or send plain values",
}
"""By what is found in the reason."""


class UnfitError(ValueError):
    """The value is none of the annotation's, nor can be made one. One line, without the place."""


class LossyError(ValueError):
    """The value has a JSON form, but what is read back from it is something else. One line that names the field and the cure."""


class Kind:
    """What is annotated with one type. Made by `kind_of`."""

    __slots__ = ("_adapter", "_annotation", "_fits", "_made", "flat", "plain")

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self.plain = is_plain(annotation)
        """Its values are JSON's own: no adapter is made unless a value is none of them."""
        self.flat = flat(annotation)
        """Its values by their classes, where these say it all."""
        self._fits: Fits | None = fits(annotation) if self.plain else None
        self._made = False
        self._adapter: Adapter | None = None

    def prepare(self) -> None:
        """Make now what the first value would make."""
        if not self.plain:
            self._get()

    def dump(self, value: Any) -> Any:
        """-> plain JSON values, or what the codec makes such of. Raises UnfitError, LossyError."""
        if self._fits is not None and self._fits(value):
            return value
        adapter = self._get()
        return value if adapter is None else adapter.dump(value)

    def load(self, plain: Any) -> Any:
        """Plain JSON values -> the annotated type. Raises UnfitError."""
        if self._fits is not None and self._fits(plain):
            return plain
        adapter = self._get()
        return plain if adapter is None else adapter.load(plain)

    def _get(self) -> Adapter | None:
        if not self._made:
            self._adapter = _adapter(self._annotation)
            self._made = True
        return self._adapter


def kind_of(annotation: Any) -> Kind | None:
    """None: any plain JSON value will do."""
    kind = Kind(annotation)
    return None if kind.plain and fits(annotation) is None else kind


class Adapter:
    """pydantic's adapter of one annotation.

    The value sits in a 1-tuple: pydantic takes no config for a bare dataclass or TypedDict, and it is in JSON mode alone that bytes
    are read as base64.
    """

    __slots__ = ("_forms", "_read", "_refusal", "_take")

    def __init__(self, adapter: Any, refusal: type[ValueError]) -> None:
        self._take: Callable[[Any], tuple[Any]] = adapter.validator.validate_python
        self._read: Callable[[bytes], tuple[Any]] = adapter.validator.validate_json
        self._refusal = refusal
        write = adapter.serializer.to_json
        # By alias is what models are mostly read by; by name those that write one alias and read none; the codec has the last word
        # for what pydantic leaves out of its dumps.
        self._forms: tuple[Callable[[tuple[Any]], Any], ...] = (
            lambda box: write(box, by_alias=True, round_trip=True, warnings=False),
            lambda box: write(box, by_alias=False, round_trip=True, warnings=False),
            lambda box: codec.dumps(box, ""),
        )

    def load(self, plain: Any) -> Any:
        try:
            return self._read(codec.dumps((plain,), ""))[0]
        except (self._refusal, OverflowError) as error:
            raise UnfitError(_one_line(error)) from None

    def dump(self, value: Any) -> Any:
        """-> plain JSON values from which `load` makes an equal value. Raises UnfitError, LossyError."""
        try:
            box = self._take((value,))
        except (self._refusal, OverflowError) as error:
            if not is_json(value):
                raise UnfitError(_one_line(error)) from None
            self.load(value)  # strict types take a text for a date from JSON alone
            return value
        why: str | None = None
        for form in self._forms:
            try:
                plain = orjson.loads(form(box))[0]
                back = self.load(plain)
            except UnfitError as error:
                found = f"its type can't read what it dumps ({error})"
            except Exception as error:  # noqa: BLE001 - the boundary to serializers and validators that users write
                found = f"it can't be dumped ({' '.join(str(error).split())})"
            else:
                place = difference(box[0], back)
                if place is None:
                    return plain
                found = f"{place.lstrip('.') or 'it'} would not come back from JSON as it is"
            why = why or found
        reason = why or ""
        cure = next((cure for sign, cure in _CURES.items() if sign in reason), _CURE)
        raise LossyError(f"{reason}; {cure}")


def _adapter(annotation: Any) -> Adapter | None:
    """None for what is no type of data."""
    import pydantic  # noqa: PLC0415 - 90 ms that most services never need
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError  # noqa: PLC0415

    boxed: Any = tuple[_adapted(annotation)]
    config = pydantic.ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
    try:
        return Adapter(pydantic.TypeAdapter[tuple[Any]](boxed, config=config), pydantic.ValidationError)
    except (PydanticUserError, PydanticUndefinedAnnotation, NameError):
        return None


def difference(sent: Any, back: Any, place: str = "") -> str | None:
    """Where two values of one type differ, as a path (`.items[2].when`); "" for the values themselves, None when they are equal."""
    kind = sent.__class__
    if not isinstance(sent, back.__class__) or (isinstance(sent, Enum) and kind is not back.__class__):
        return place
    if isinstance(sent, (list, tuple, deque)):
        one, other = cast("list[Any]", sent), cast("list[Any]", back)
        if len(one) != len(other):
            return place
        return _first((one[i], other[i], f"{place}[{i}]") for i in range(len(one)))
    if isinstance(sent, dict):
        one, other = cast("dict[Any, Any]", sent), cast("dict[Any, Any]", back)
        if one.keys() != other.keys():
            return place
        return _first((one[key], other[key], f"{place}.{key}") for key in one)
    names = _fields(sent)
    if names is not None:
        found = _first((getattr(sent, one, None), getattr(back, one, None), f"{place}.{one}") for one in names)
        extra = getattr(sent, "__pydantic_extra__", None)
        return found if found is not None or not extra else difference(extra, back.__pydantic_extra__, place)
    if isinstance(sent, datetime) and sent.utcoffset() is not None and back.utcoffset() is not None:
        return None if sent - _EPOCH == back - _EPOCH else place  # `==` is false between zones within a repeated hour
    return None if sent == back or kind.__eq__ is object.__eq__ else place


def _first(pairs: Iterable[tuple[Any, Any, str]]) -> str | None:
    return next((found for one, other, place in pairs if (found := difference(one, other, place)) is not None), None)


def _fields(value: Any) -> Iterable[str] | None:
    """Names of what a model or dataclass holds; None for any other value. Private attributes never travel."""
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    return getattr(value.__class__, "__pydantic_fields__", None)


def is_json(value: Any) -> bool:
    if value.__class__ is list:
        return all(map(is_json, value))
    if value.__class__ is dict:
        return all(key.__class__ is str for key in value) and all(map(is_json, value.values()))
    return value is None or value.__class__ in (str, int, float, bool)


def _one_line(error: Any) -> str:
    if isinstance(error, OverflowError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
    got = repr(first["input"])
    if len(got) > 80:
        got = got[:77] + "..."
    return f"{place.lstrip('.') + ': ' if place else ''}{first['msg']}, got {got}"


_READ_ONCE_OR_ANY: dict[Any, Any] = {
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
}
"""pydantic's Iterable can be read once; the others would keep a tuple that comes back as a list."""


def _adapted(annotation: Any) -> Any:
    """The same as pydantic needs it.

    Each `typing.TypedDict` as its `typing_extensions` twin (before Python 3.12 pydantic takes no other), a sequence of any kind as a
    list, a Literal of an Enum's members by their values.
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
    origin = _READ_ONCE_OR_ANY.get(origin, origin)
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
