"""Values to JSON bytes and back: orjson, plus the Python types that JSON lacks. What is silently wrong elsewhere is refused here.

| Python | JSON |
|---|---|
| datetime, date, time | ISO 8601; an aware one with its offset (the zone's name is lost) |
| timedelta | ISO 8601 duration, `P1DT2H0.5S` |
| UUID, Decimal, path | string |
| Enum | its value |
| bytes, bytearray, memoryview | URL-safe base64 |
| tuple, namedtuple, set, frozenset, deque | array |
| dataclass, pydantic model, any mapping | object |

Keys of an object may be str, int, UUID, date, datetime or an Enum of these; they arrive as str unless an annotation says otherwise.
NaN, Infinity, integers beyond 64 bits, and anything else raise EncodingError with the path of the value.
"""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

import orjson

from upnext.errors import EncodingError

PAYLOAD_CAP_BYTES = 1024 * 1024
"""Default cap of a job's encoded arguments."""

_MAX_DEPTH = 200
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
# Left to `_simpler`: orjson drops the seconds of a UTC offset, and a dataclass's fields that start with an underscore.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

_orjson_dumps = orjson.dumps


def dumps(value: Any, where: str) -> bytes:
    """-> JSON. `where` begins the path in the message of EncodingError: "result" gives "result.items[2].when: …"."""
    try:
        raw = _orjson_dumps(value, _simpler, _OPTIONS)
    except TypeError:
        return _dumps_slowly(value, where)
    # orjson writes NaN and Infinity as null.
    if b"null" in raw and _may_hide_nan(value):
        return _dumps_slowly(value, where)
    return raw


def loads(raw: bytes) -> Any:
    """JSON -> plain values. Raises ValueError for bytes that are not JSON."""
    return orjson.loads(raw)


def _dumps_slowly(value: Any, where: str) -> bytes:
    plain = _plain(value, where, 0)
    try:
        return _orjson_dumps(plain)
    except TypeError as error:
        raise EncodingError(f"{where}: {error}") from error


def _may_hide_nan(value: Any) -> bool:
    kind = value.__class__
    if kind is str or kind is int or kind is bool or value is None:
        return False
    if kind is float:
        return not math.isfinite(value)
    if kind is dict:
        return any(map(_may_hide_nan, value.values()))
    if kind is list:
        return any(map(_may_hide_nan, value))
    return True


def _plain(value: Any, path: str, depth: int) -> Any:
    """The same value in JSON's own types. Raises EncodingError naming the path of what has none."""
    if value is None or value is True or value is False:
        return value
    if depth > _MAX_DEPTH:
        raise EncodingError(f"{_shown(path)}: nested deeper than {_MAX_DEPTH} levels, or it contains itself")
    if isinstance(value, Enum):
        return _plain(value.value, path, depth + 1)
    if isinstance(value, str):
        return _checked_text(value, path)
    if isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise EncodingError(f"{_shown(path)}: the integer is beyond 64 bits; send it as a str")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise EncodingError(f"{_shown(path)}: {float(value)} has no JSON form")
        return float(value)
    if isinstance(value, dict):
        return _plain_object(cast("dict[Any, Any]", value), path, depth)
    if isinstance(value, (list, tuple)):
        items = cast("list[Any] | tuple[Any, ...]", value)
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(items)]
    try:
        simpler = _simpler(value)
    except _NoJsonFormError as error:
        raise EncodingError(f"{_shown(path)}: {error}") from error.__cause__
    return _plain(simpler, path, depth + 1)


def _plain_object(value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key, path)
        if name in plain:
            raise EncodingError(f"{_shown(path)}: two keys are both {name!r} in JSON")
        # No dot at the start, nor after words that lead in ("argument ").
        inner = f"{path}{name}" if not path or path.endswith(" ") else f"{path}.{name}"
        plain[name] = _plain(item, inner, depth + 1)
    return plain


def _key(key: Any, path: str) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return _checked_text(key, path)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))
    if isinstance(key, UUID):
        return str(key)
    if isinstance(key, date):
        return cast("str", _simpler(key))
    raise EncodingError(f"{_shown(path)}: a key of type {type(key).__name__} has no JSON form; use str")


def _checked_text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EncodingError(f"{_shown(path)}: the text holds a lone surrogate, which UTF-8 can't carry") from None
    return str(value)


def _shown(path: str) -> str:
    path = path.strip() or "value"
    return path if len(path) <= 120 else f"{path[:60]}…{path[-60:]}"


class _NoJsonFormError(TypeError):
    """The text without a path; `_plain` adds it."""


def _simpler(value: Any) -> Any:
    """One step towards JSON: a value of types nearer to it. The hook of orjson, and the step of `_plain`."""
    kind = value.__class__
    step = _STEPS.get(kind)
    if step is not None:
        return step(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(kind, "__pydantic_serializer__"):
        return _dump_model(value)
    for base, step in _STEPS.items():
        if isinstance(value, base):
            return step(value)
    if hasattr(kind, "__fspath__"):
        return cast("Any", value).__fspath__()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    hint = "; was an await forgotten?" if isinstance(value, Awaitable) else ""
    raise _NoJsonFormError(f"{kind.__name__} has no JSON form{hint}")


def _dump_model(model: Any) -> Any:
    # By alias and round_trip: so that the same model, as an annotation, reads it back.
    try:
        return model.model_dump(mode="json", by_alias=True, round_trip=True)
    except Exception as error:  # the boundary to serializers that users write into their models
        raise _NoJsonFormError(f"{type(model).__name__} can't be dumped: {error}") from error


def _iso_moment(moment: datetime) -> str:
    offset = moment.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        # RFC 3339 has no seconds in an offset (local mean times have them); the instant counts.
        try:
            return (moment.replace(tzinfo=None) - offset).isoformat() + "Z"
        except OverflowError:
            raise _NoJsonFormError("the datetime is out of range in UTC") from None
    return moment.isoformat()


def _iso_time(value: time) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    offset = value.utcoffset()
    if offset is None:
        raise _NoJsonFormError(f"time in zone {value.tzinfo} has no fixed offset; send a datetime")
    if offset % timedelta(minutes=1):
        raise _NoJsonFormError("time with seconds in its UTC offset has no JSON form")
    return value.isoformat()


def _iso_duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    return f"{sign}P{value.days}DT{value.seconds}.{value.microseconds:06d}S"


def _finite(value: Decimal) -> str:
    if not value.is_finite():
        raise _NoJsonFormError(f"{value} has no JSON form")
    return str(value)


def _base64(value: bytes | bytearray | memoryview) -> str:
    return base64.urlsafe_b64encode(value).decode()


def _list(value: Any) -> list[Any]:
    return list(value)


_STEPS: dict[type, Callable[[Any], Any]] = {
    datetime: _iso_moment,
    date: date.isoformat,
    time: _iso_time,
    timedelta: _iso_duration,
    Decimal: _finite,
    UUID: str,
    bytes: _base64,
    bytearray: _base64,
    memoryview: _base64,
    set: _list,
    frozenset: _list,
    tuple: _list,
    deque: _list,
    float: float,
}
"""datetime stands before date, its base, for the search by isinstance."""
