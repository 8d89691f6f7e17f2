"""Values survive the way to JSON and back by annotation, and what can't is refused by name."""

from __future__ import annotations

import base64
import math
import typing
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pydantic
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core import codec
from upnext.core.adapters import kind_of
from upnext.core.annotations import is_plain
from upnext.errors import EncodingError


class Colour(Enum):
    RED = "red"
    DEEP = 2


class Level(IntEnum):
    LOW = 1


class Size(StrEnum):
    BIG = "big"


class Point(NamedTuple):
    x: int
    when: date


@dataclass
class Item:
    name: str
    price: Decimal
    photo: bytes = b""
    _hidden: int = 7
    tags: set[str] = field(default_factory=set)


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(alias="Street")
    since: date


class Old(typing.TypedDict):
    at: datetime
    note: typing_extensions.NotRequired[str]


class New(typing_extensions.TypedDict):
    at: datetime


def back(value: Any, annotation: Any) -> Any:
    kind = kind_of(annotation)
    plain = codec.loads(codec.dumps(value, "value"))
    return kind.load(plain) if kind else plain


YEAR_2 = datetime(2, 1, 1)
OFFSETS = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30)), timezone(timedelta(hours=9))])
MOMENTS = st.datetimes(min_value=YEAR_2) | st.datetimes(min_value=YEAR_2, timezones=OFFSETS)
ROUND_TRIPS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (datetime, MOMENTS),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas(timedelta(days=-(10**8)), timedelta(days=10**8))),
    (uuid.UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (bytes, st.binary()),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Size, st.sampled_from(Size)),
    (set[int], st.sets(st.integers(-(2**63), 2**63 - 1))),
    (frozenset[str], st.frozensets(st.text())),
    (tuple[int, str], st.tuples(st.integers(-(2**63), 2**63 - 1), st.text())),
    (tuple[bytes, ...], st.lists(st.binary()).map(tuple)),
    (dict[int, date], st.dictionaries(st.integers(0, 9), st.dates())),
    (dict[date, int], st.dictionaries(st.dates(), st.integers(0, 9))),
    (dict[uuid.UUID, None], st.dictionaries(st.uuids(), st.none())),
    (Point, st.builds(Point, st.integers(0, 9), st.dates())),
    (Item, st.builds(Item, st.text(), st.decimals(-9, 9), st.binary(), st.integers(0, 9), st.sets(st.text()))),
    (datetime | None, st.none() | MOMENTS),
    (list[Item | None], st.lists(st.none() | st.builds(Item, st.text(), st.decimals(0, 9)))),
    (Old, st.fixed_dictionaries({"at": MOMENTS}, optional={"note": st.text()})),
    (New, st.fixed_dictionaries({"at": MOMENTS})),
    (list[Old], st.lists(st.fixed_dictionaries({"at": MOMENTS}))),
    (Address, st.builds(Address, Street=st.text(), since=st.dates())),
    (Path, st.just(Path("/srv/a"))),
]


@pytest.mark.parametrize(("annotation", "values"), ROUND_TRIPS, ids=lambda it: getattr(it, "__name__", None))
def test_a_typed_value_comes_back_equal(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(values)
    def check(value: Any) -> None:
        again = back(value, annotation)
        assert again == value
        assert type(again) is type(value)

    check()


ZONES = st.sampled_from([ZoneInfo("Asia/Tokyo"), ZoneInfo("Europe/Dublin"), ZoneInfo("America/New_York")])


@settings(deadline=None)
@given(st.datetimes(min_value=YEAR_2, timezones=ZONES))
def test_a_moment_in_a_zone_comes_back_as_the_same_instant(value: datetime) -> None:
    # By their timestamps: Python calls a time that the clock repeats unequal to any of another zone (PEP 495).
    assert back(value, datetime).timestamp() == value.timestamp()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(deadline=None)
@given(JSON)
def test_plain_json_comes_back_as_it_went(value: Any) -> None:
    assert codec.loads(codec.dumps(value, "value")) == value


@settings(deadline=None)
@given(JSON, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_no_nan_gets_through_beside_anything(value: Any, bad: float) -> None:
    with pytest.raises(EncodingError):
        codec.dumps({"a": value, "b": [value, bad]}, "value")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (timedelta(days=1, hours=2, milliseconds=500), b'"P1DT7200.500000S"'),
        (-timedelta(seconds=90), b'"-P0DT90.000000S"'),
        (b"\xff\xfe~", b'"' + base64.urlsafe_b64encode(b"\xff\xfe~") + b'"'),
        (memoryview(b"a"), b'"YQ=="'),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(seconds=3208))), b'"2026-01-01T23:06:32Z"'),
        (time(1, 2, tzinfo=UTC), b'"01:02:00+00:00"'),
        (deque([1]), b"[1]"),
        (MappingProxyType({"a": (1, 2)}), b'{"a":[1,2]}'),
        (OrderedDict(a=None), b'{"a":null}'),
        ({"a": {Colour.DEEP: Colour.RED, 5: None}}, b'{"a":{"2":"red","5":null}}'),
        (Item("a", Decimal("1.10")), b'{"name":"a","price":"1.10","photo":"","_hidden":7,"tags":[]}'),
        (None, b"null"),
    ],
)
def test_written_form(value: Any, written: bytes) -> None:
    assert codec.dumps(value, "value") == written


class Odd:
    pass


class Unserializable(pydantic.BaseModel):
    raw: bytes


def loop() -> list[Any]:
    it: list[Any] = []
    it.append(it)
    return it


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Odd(), "result: Odd has no JSON form"),
        (Odd, "result: type has no JSON form"),
        ({"items": [1, 2, {"when": Odd()}]}, "result.items[2].when: Odd has no JSON form"),
        ({"a": (1, {Odd()})}, "result.a[1][0]: Odd has no JSON form"),
        (Item("a", Odd()), "result.price: Odd has no JSON form"),  # pyright: ignore[reportArgumentType]
        ([math.nan], "result[0]: nan has no JSON form"),
        ({"a": {"b": -math.inf}}, "result.a.b: -inf has no JSON form"),
        ([Decimal("NaN")], "result[0]: NaN has no JSON form"),
        ({"a": 2**64}, "result.a: the integer is beyond 64 bits; send it as a str"),
        ("\ud800", "result: the text holds a lone surrogate, which UTF-8 can't carry"),
        ({"a": {"\ud800": 1}}, "result.a: the text holds a lone surrogate, which UTF-8 can't carry"),
        ({"a": {None: 1}}, "result.a: a key of type NoneType has no JSON form; use str"),
        ({True: 1}, "result: a key of type bool has no JSON form; use str"),
        ({1: "a", "1": "b"}, "result: two keys are both '1' in JSON"),
        (loop(), f"result{'[0]' * 18}…{'[0]' * 20}: nested deeper than 200 levels, or it contains itself"),
        (
            time(1, tzinfo=ZoneInfo("Europe/Paris")),
            "result: time in zone Europe/Paris has no fixed offset; send a datetime",
        ),
        (
            time(1, tzinfo=timezone(timedelta(seconds=1))),
            "result: time with seconds in its UTC offset has no JSON form",
        ),
    ],
)
def test_refusals_name_the_place(value: Any, message: str) -> None:
    with pytest.raises(EncodingError) as caught:
        codec.dumps(value, "result")
    assert str(caught.value) == message


def test_a_model_that_cannot_be_dumped_is_refused_by_name() -> None:
    with pytest.raises(EncodingError, match=r"^result\[0\]: Unserializable can't be dumped: "):
        codec.dumps([Unserializable(raw=b"\xff")], "result")


def test_loads_refuses_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="unexpected"):
        codec.loads(b"{")


T = typing.TypeVar("T")
Name = typing.NewType("Name", str)


@pytest.mark.parametrize(
    "annotation",
    [
        Any, object, str, int | None, list, dict, list[str], list[dict[str, int]], dict[str, Any], typing.Literal["a", 1],
        typing.Mapping[str, list[int]], typing.Sequence[str], typing.Iterable[int], T, Name,
    ],
    ids=str,
)  # fmt: skip
def test_plain_annotations_need_no_conversion(annotation: Any) -> None:
    assert is_plain(annotation)
    kind = kind_of(annotation)
    assert kind is None or kind.plain


@pytest.mark.parametrize("annotation", [Odd, list[Odd], tuple[Odd], typing.Annotated[Odd, 1]], ids=str)
def test_an_annotation_that_is_no_type_of_data_takes_anything(annotation: Any) -> None:
    kind, value = kind_of(annotation), object()
    assert kind is not None
    kind.prepare()
    assert kind.dump(value) is value
    assert kind.load(value) is value


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (date, [], "Input should be a valid date, got []"),
        (list[Point], [[1, []]], "[0][1]: Input should be a valid date, got []"),
        (Item, {"name": "a"}, "price: Field required, got {'name': 'a'}"),
        (int | timedelta, "-P999999999DT1S", "days=-1000000000; must have magnitude <= 999999999"),
        (Size, "x" * 100, "Input should be 'big', got '" + "x" * 76 + "..."),
    ],
)
def test_conversion_says_what_does_not_fit(annotation: Any, value: Any, message: str) -> None:
    kind = kind_of(annotation)
    assert kind is not None
    with pytest.raises(ValueError, match=r".") as caught:
        kind.load(value)
    assert str(caught.value) == message
