"""A value of an annotated type arrives as it was sent, or is refused where it is sent, with the field and the cure."""

from __future__ import annotations

import collections.abc
import sys
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

import upnext
from upnext.core import adapters
from upnext.core.adapters import difference
from upnext.core.binding import Signature
from upnext.errors import EncodingError, InvalidArgumentsError, ServiceError


def signature_of(annotation: Any, default: Any = ...) -> Signature:
    def function(value: Any = default) -> Any: ...

    function.__annotations__ = {"value": annotation, "return": annotation}
    if default is ...:
        function.__defaults__ = None
    return Signature.of(function)


def trip(annotation: Any, value: Any) -> Any:
    signature = signature_of(annotation)
    _, arrived = signature.decode(signature.encode((value,), {}))
    return arrived["value"]


class Alias(pydantic.BaseModel):
    v: int = pydantic.Field(alias="V")


class WriteAs(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=pydantic.AliasGenerator(serialization_alias=to_camel))
    user_id: int


class Choices(pydantic.BaseModel):
    v: int = pydantic.Field(validation_alias=pydantic.AliasChoices("V", "vv"))


class Hidden(pydantic.BaseModel):
    a: int
    token: str = pydantic.Field(default="", exclude=True)


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


class Revealed(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.field_serializer("password")
    def _reveal(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class Blob(pydantic.BaseModel):
    data: bytes


class Carried(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Count(pydantic.BaseModel):
    n: int


class Cached(pydantic.BaseModel):
    n: int
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list[int])


class Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    when: date


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    BIG = "big"


class Point(NamedTuple):
    x: int
    when: date


class Row(TypedDict):
    when: datetime


@dataclass
class Item:
    name: str
    price: Decimal
    _hidden: int = 7
    tags: set[str] = field(default_factory=set[str])


@dataclass(eq=False)
class Plain:
    n: int


def test_what_a_type_dumps_in_its_own_way_arrives() -> None:
    for annotation, value in (
        (Alias, Alias(V=1)),
        (WriteAs, WriteAs(user_id=1)),
        (Revealed, Revealed(password=pydantic.SecretStr("hunter2"))),
        (Blob, Blob(data=b"plain")),
        (Carried, Carried(data=b"\x89PNG")),
        (pydantic.HttpUrl, pydantic.HttpUrl("http://x/")),
        (Item, Item("a", Decimal("1.50"), _hidden=9, tags={"b"})),
        (Size, Size.BIG),
        (Literal[Colour.RED], Colour.RED),
        (list[Row], [{"when": datetime(2026, 1, 1)}]),
        (Point | None, Point(1, date(2026, 1, 1))),
        (Annotated[bytes, pydantic.Field(min_length=1)], b"\xff"),
    ):
        arrived = trip(annotation, value)
        assert (arrived, type(arrived)) == (value, type(value))


def test_private_attributes_and_identity_refuse_nothing() -> None:
    value = Cached(n=1)
    value._seen.append(3)
    assert trip(Cached, value).n == 1
    assert trip(Plain, Plain(3)).n == 3


def test_an_instant_of_the_repeated_hour_arrives() -> None:
    value = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert trip(datetime, value).timestamp() == value.timestamp()


@pytest.mark.parametrize(
    ("annotation", "value", "place"),
    [
        (Choices, Choices.model_validate({"vv": 1}), "V: Field required"),
        (Hidden, Hidden(a=1, token="t"), "token would not come back"),
        (list[Hidden], [Hidden(a=1), Hidden(a=1, token="t")], "[1].token would not come back"),
        (Login, Login(password=pydantic.SecretStr("hunter2")), "password would not come back"),
        (Blob, Blob(data=b"\x89PNG"), "invalid utf-8"),
        (Count, Count(n=2**70), "can't"),
        (Annotated[int, pydantic.AfterValidator(lambda n: n + 1)], 1, "it would not come back"),
        (list[float | date], [float("inf")], "can't read what it dumps"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(annotation: Any, value: Any, place: str) -> None:
    signature = signature_of(annotation)
    with pytest.raises(EncodingError) as caught:
        signature.encode((value,), {})
    assert str(caught.value).startswith("function(): argument value")
    assert place in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(EncodingError, match="result"):
        signature.encode_result(value)


@pytest.mark.parametrize(
    ("annotation", "given", "arrives"),
    [
        (int, "5", 5),
        (float, 1, 1),
        (int | None, None, None),
        (list[int], (1, 2), [1, 2]),
        (collections.abc.Sequence[date], (date(2026, 1, 1),), [date(2026, 1, 1)]),
        (date, "2026-01-01", date(2026, 1, 1)),
        (Closed, {"when": "2026-01-01"}, Closed(when=date(2026, 1, 1))),
        (str, Size.BIG, "big"),
        (list, [date(2026, 1, 1)], ["2026-01-01"]),
    ],
)
def test_what_the_annotation_can_convert_is_converted(annotation: Any, given: Any, arrives: Any) -> None:
    assert trip(annotation, given) == arrives


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "zz"),
        (int, None),
        (str, 5),
        (str, uuid.UUID(int=1)),
        (list[str], [uuid.UUID(int=1)]),
        (dict[str, int], {"a": "zz"}),
        (dict[str, Any], {5: "zz"}),
        (list[int] | None, ["zz"]),
        (Literal["a", 1], "b"),
        (dict, Count(n=1)),
    ],
)
def test_what_is_no_value_of_the_annotation_is_refused_at_both_ends(annotation: Any, value: Any) -> None:
    signature = signature_of(annotation)
    with pytest.raises(InvalidArgumentsError, match="argument 'value' doesn't fit"):
        signature.encode((value,), {})
    with pytest.raises(InvalidArgumentsError, match="argument 'value' doesn't fit"):
        signature.decode(b'{"value":[[1]]}')


def test_a_default_of_none_takes_none() -> None:
    signature = signature_of(int, None)
    assert signature.decode(signature.encode((None,), {})) == ((), {"value": None})
    with pytest.raises(InvalidArgumentsError):
        signature.encode(("zz",), {})


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (bytes | str, "str and bytes are both text"),
        (str | uuid.UUID | None, "str and UUID are both text"),
        (dict[str, list[str | date]], "str and date are both text"),
        (str | Path, "str and Path are both text"),
        (pydantic.SecretStr, "dumped as asterisks"),
        (list[pydantic.SecretBytes], "dumped as asterisks"),
    ],
)
def test_an_annotation_that_cannot_keep_its_values_is_refused_at_declaration(annotation: Any, why: str) -> None:
    async def function(value: Any) -> Any: ...

    function.__annotations__ = {"value": annotation}
    with pytest.raises(ServiceError, match=why):
        upnext.Worker("w").task(function)
    with pytest.raises(ServiceError, match=why):
        upnext.Worker("w").event("e").on(function)


def test_a_secret_with_a_serializer_of_its_own_is_declared() -> None:
    shown = pydantic.PlainSerializer(lambda secret: secret.get_secret_value(), return_type=str)
    assert signature_of(Annotated[pydantic.SecretStr, shown]).check() == []
    value = pydantic.SecretStr("hunter2")
    assert trip(Annotated[pydantic.SecretStr, shown], value) == value


def test_unresolved_annotations_are_named() -> None:
    signature = signature_of("OnlyForCheckers")
    lines = signature.check()
    assert len(lines) == 2
    assert "the annotation OnlyForCheckers of argument 'value' can't be looked up" in lines[0]


def test_plain_values_pay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No adapter, no conversion: the one call of Python is the codec's."""

    def function(a: int, b: str, c: list[int], d: dict[str, float | None], e: bool = False) -> None: ...

    signature = Signature.of(function)
    signature.prepare()

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(adapters.Kind, "dump", refuse)
    monkeypatch.setattr(adapters.Kind, "load", refuse)
    calls: list[str] = []
    sys.setprofile(lambda frame, what, _: calls.append(frame.f_code.co_name) if what == "call" else None)
    try:
        payload = signature.encode((1,), {"b": "x", "c": [1, 2], "d": {"a": 1.5}, "e": True})
        encoded, calls[:] = [*calls], []
        signature.decode(payload)
    finally:
        sys.setprofile(None)
    assert encoded == ["encode", "_by_name", "_are_flat", "dumps"]
    assert [name for name in calls if name != "<lambda>"] == ["decode", "_are_flat"]


@st.composite
def typed(draw: st.DrawFn, depth: int = 0) -> tuple[Any, Any]:
    """A type, and one of its values."""
    leaves: list[tuple[Any, st.SearchStrategy[Any]]] = [
        (int, st.integers(-(2**63), 2**64 - 1)),
        (int, st.integers()),
        (str, st.text(st.characters(codec="utf-8"))),
        (bool, st.booleans()),
        (float, st.floats()),
        (bytes, st.binary()),
        (date, st.dates()),
        (datetime, st.datetimes(timezones=st.none() | st.timezones())),
        (time, st.times()),
        (timedelta, st.timedeltas()),
        (Decimal, st.decimals()),
        (uuid.UUID, st.uuids()),
        (Colour, st.just(Colour.RED)),
        (Size, st.just(Size.BIG)),
        (Count, st.builds(Count, n=st.integers())),
        (Hidden, st.builds(Hidden, a=st.integers(), token=st.text(st.characters(codec="utf-8"), max_size=2))),
        (Blob, st.builds(Blob, data=st.binary(max_size=3))),
        (Item, st.builds(Item, name=st.just("a"), price=st.decimals(allow_nan=False, allow_infinity=False))),
        (Point, st.builds(Point, x=st.integers(), when=st.dates())),
    ]
    shape = (
        draw(st.sampled_from(["leaf", "leaf", "list", "tuple", "set", "dict", "union", "optional"]))
        if depth < 3
        else "leaf"
    )
    if shape == "leaf":
        kind, values = draw(st.sampled_from(leaves))
        return kind, draw(values)
    kind, value = draw(typed(depth + 1))
    if shape == "list":
        return list[kind], [value]
    if shape == "tuple":
        return tuple[kind, ...], (value, value)
    if shape == "set":
        try:
            return set[kind], {value}
        except TypeError:
            return list[kind], [value]
    if shape == "dict":
        return dict[str, kind], {"a": value}
    if shape == "optional":
        return Optional[kind], draw(st.sampled_from([value, None]))  # noqa: UP045 - a type known only now
    other, _ = draw(typed(depth + 1))
    return Union[kind, other], value  # noqa: UP007 - as above


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(typed())
def test_any_typed_value_arrives_equal_or_is_refused(one: tuple[Any, Any]) -> None:
    annotation, value = one
    signature = signature_of(annotation)
    try:
        signature.check()
        payload = signature.encode((value,), {})
    except (ServiceError, EncodingError):
        return
    _, arrived = signature.decode(payload)
    assert difference(value, arrived["value"]) is None
    assert difference(value, signature.decode_result(signature.encode_result(value))) is None
