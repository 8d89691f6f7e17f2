"""Calls travel through payloads and arrive as they left; calls that don't fit are refused with the signature."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core.binding import Signature
from upnext.errors import EncodingError, InvalidArgumentsError

if TYPE_CHECKING:
    from upnext.core.spec import Arguments, OnlyForCheckers  # pyright: ignore[reportAttributeAccessIssue]


def process_order(order_id: str, items: list[str]) -> dict[str, Any]: ...
def untyped_order(order_id, items): ...
def defaults(a: int, b: int = 2, *, c: date | None = None) -> None: ...
def anything(order_id: str, **rest: UUID) -> None: ...
def positional(a: date, /, b: int = 1) -> None: ...
def starred(a: int, *more: date, flag: bool = False, **rest: Any) -> None: ...
def nothing() -> None: ...
def unknown(a: OnlyForCheckers, when: datetime) -> OnlyForCheckers: ...
def later(it: Later) -> list[Later]: ...
def bare(a, b=3): ...
def gap(a: int = 1, b: int = 2, /, *, c: int = 3) -> None: ...


@dataclass
class Later:
    n: int


ID = UUID("12345678-1234-5678-1234-567812345678")


def test_a_signature_is_arguments_of_the_spec() -> None:
    it: Arguments = Signature.of(process_order)
    assert it.describe()


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "payload", "decoded"),
    [
        (process_order, ("a", ["b"]), {}, b'{"order_id":"a","items":["b"]}', ((), {"order_id": "a", "items": ["b"]})),
        (process_order, ("a",), {"items": []}, b'{"order_id":"a","items":[]}', ((), {"order_id": "a", "items": []})),
        (
            process_order,
            (),
            {"items": [], "order_id": "a"},
            b'{"items":[],"order_id":"a"}',
            ((), {"order_id": "a", "items": []}),
        ),
        (defaults, (1,), {}, b'{"a":1}', ((), {"a": 1})),
        (
            defaults,
            (1, 5),
            {"c": date(2026, 1, 2)},
            b'{"a":1,"b":5,"c":"2026-01-02"}',
            ((), {"a": 1, "b": 5, "c": date(2026, 1, 2)}),
        ),
        (
            anything,
            ("a",),
            {"who": ID},
            b'{"order_id":"a","who":"%s"}' % str(ID).encode(),
            ((), {"order_id": "a", "who": ID}),
        ),
        (positional, (date(2026, 1, 2),), {"b": 3}, b'[["2026-01-02"],{"b":3}]', ((date(2026, 1, 2),), {"b": 3})),
        (starred, (1, date(2026, 1, 2)), {"x": 1}, b'[[1,"2026-01-02"],{"x":1}]', ((1, date(2026, 1, 2)), {"x": 1})),
        (nothing, (), {}, b"{}", ((), {})),
        (
            unknown,
            (5, datetime(2026, 1, 2, tzinfo=UTC)),
            {},
            b'{"a":5,"when":"2026-01-02T00:00:00Z"}',
            ((), {"a": 5, "when": datetime(2026, 1, 2, tzinfo=UTC)}),
        ),
        (later, (Later(4),), {}, b'{"it":{"n":4}}', ((), {"it": Later(4)})),
        (bare, (None,), {}, b'{"a":null}', ((), {"a": None})),
    ],
)
def test_a_call_through_its_payload(function: Any, args: Any, kwargs: Any, payload: bytes, decoded: Any) -> None:
    signature = Signature.of(function)
    assert signature.encode(args, kwargs) == payload
    assert signature.decode(payload) == decoded


NAMES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "x", "flag", "order_id", "items"]), st.integers(0, 9), max_size=4
)


@settings(deadline=None)
@given(st.sampled_from([untyped_order, nothing, bare, gap]), st.lists(st.integers(0, 9), max_size=3).map(tuple), NAMES)
def test_encode_accepts_exactly_what_python_would(function: Any, args: Any, kwargs: Any) -> None:
    signature = Signature.of(function)
    try:
        function(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidArgumentsError):
            signature.encode(args, kwargs)
        return
    again, named = signature.decode(signature.encode(args, kwargs))
    function(*again, **named)


SIGNATURES = {
    process_order: "process_order(order_id: str, items: list[str]) -> dict[str, Any]",
    defaults: "defaults(a: int, b: int = 2, *, c: date | None = None) -> None",
    anything: "anything(order_id: str, **rest: UUID) -> None",
    positional: "positional(a: date, /, b: int = 1) -> None",
    starred: "starred(a: int, *more: date, flag: bool = False, **rest: Any) -> None",
    nothing: "nothing() -> None",
    bare: "bare(a, b=3)",
    gap: "gap(a: int = 1, b: int = 2, /, *, c: int = 3) -> None",
}


@pytest.mark.parametrize(("function", "text"), SIGNATURES.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_describe(function: Any, text: str) -> None:
    assert Signature.of(function).describe() == text


def test_describe_of_evaluated_annotations_and_long_defaults() -> None:
    def function(a, b): ...

    function.__annotations__ = {"a": list[str], "b": datetime, "return": None}
    function.__defaults__ = ("x" * 99,)
    assert Signature.of(function).describe() == "function(a: list[str], b: datetime.datetime = ...) -> None"


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "what"),
    [
        (process_order, (), {}, "lacks argument 'order_id', 'items'"),
        (process_order, ("a",), {}, "lacks argument 'items'"),
        (process_order, ("a",), {"itmes": []}, "lacks argument 'items'"),
        (process_order, ("a", []), {"colour": 1}, "has no argument 'colour'"),
        (defaults, (1,), {"d": 1, "cc": 2}, "has no argument 'cc', 'd' (did you mean 'c'?)"),
        (process_order, ("a", [], 3), {}, "takes 2 positional arguments, got 3"),
        (process_order, ("a", []), {"items": []}, "got argument 'items' twice"),
        (positional, (), {"a": 1}, "takes argument 'a' by position only"),
        (positional, (1, 2), {"b": 1}, "got argument 'b' twice"),
        (positional, (1, 2, 3), {}, "takes 2 positional arguments, got 3"),
        (positional, (), {}, "lacks argument 'a'"),
    ],
)
def test_refusals_show_the_signature(function: Any, args: Any, kwargs: Any, what: str) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        Signature.of(function).encode(args, kwargs)
    assert str(caught.value) == f"{function.__name__}() {what}; its signature is {SIGNATURES[function]}"


NOT_A_DATE = "Input should be a valid date, got []"


@pytest.mark.parametrize(
    ("function", "payload", "what"),
    [
        (process_order, b"[]", "the payload is not a JSON object"),
        (process_order, b'{"order_id":"a"}', "lacks argument 'items'"),
        (process_order, b'{"order_id":"a","items":[],"x":1}', "has no argument 'x'"),
        (positional, b"{}", "the payload is not of the form [[positional], {by name}]"),
        (positional, b"[[1,2,3],{}]", "takes 2 positional arguments, got 3"),
        (positional, b"[[],{}]", "lacks argument 'a'"),
        (positional, b"[[[]],{}]", f"argument 'a' doesn't fit: {NOT_A_DATE}"),
        (starred, b"[[1,[]],{}]", f"argument '[1]' doesn't fit: {NOT_A_DATE}"),
        (defaults, b'{"a":1,"c":[]}', f"argument 'c' doesn't fit: {NOT_A_DATE}"),
    ],
)
def test_refusals_of_payloads(function: Any, payload: bytes, what: str) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        Signature.of(function).decode(payload)
    assert str(caught.value) == f"{function.__name__}() {what}; its signature is {SIGNATURES[function]}"


def test_a_payload_that_is_no_json_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentsError, match=r"^nothing\(\) the payload is not JSON \(.*\); its signature is nothing"
    ):
        Signature.of(nothing).decode(b"{")


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (
            process_order,
            {"order_id": "a", "items": ["b", math.nan]},
            "process_order(): argument items[1]: nan has no JSON form",
        ),
        (anything, {"order_id": object()}, "anything(): argument order_id: object has no JSON form"),
        (starred, {"a": {"b": object()}}, "starred(): argument a.b: object has no JSON form"),
    ],
)
def test_a_value_without_json_is_refused_by_argument(function: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(EncodingError) as caught:
        Signature.of(function).encode((), kwargs)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("function", "payload", "decoded"),
    [
        (process_order, b'{"order_id":"a","items":[],"more":1}', ((), {"order_id": "a", "items": []})),
        (anything, b'{"order_id":"a","who":"%s"}' % str(ID).encode(), ((), {"order_id": "a", "who": ID})),
        (nothing, b'{"x":1}', ((), {})),
        (positional, b'{"a":"2026-01-02","b":2,"x":0}', ((date(2026, 1, 2),), {"b": 2})),
        (starred, b'{"a":1,"x":2}', ((), {"a": 1, "x": 2})),
        (gap, b'{"b":5,"c":6}', ((), {"c": 6})),
    ],
)
def test_an_event_gives_each_handler_what_it_names(function: Any, payload: bytes, decoded: Any) -> None:
    args, kwargs = Signature.of(function).decode_event(payload)
    assert (args, kwargs) == decoded
    function(*args, **kwargs)


@pytest.mark.parametrize(
    ("payload", "what"),
    [(b'{"order_id":"a","x":1}', "lacks argument 'items'"), (b"[]", "the event's payload is not a JSON object")],
)
def test_refusals_of_events(payload: bytes, what: str) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        Signature.of(process_order).decode_event(payload)
    assert str(caught.value) == f"process_order() {what}; its signature is {SIGNATURES[process_order]}"


def test_an_event_is_sent_as_an_object_whatever_the_handler_looks_like() -> None:
    assert Signature.of(positional).encode_event((date(2026, 1, 2), 2), {}) == b'{"a":"2026-01-02","b":2}'
    with pytest.raises(InvalidArgumentsError, match=r"an event carries named values only, none for \*args"):
        Signature.of(starred).encode_event((1, 2), {})
    with pytest.raises(EncodingError, match=r"^process_order\(\): argument items: object has no JSON form$"):
        Signature.of(process_order).encode_event(("a",), {"items": object()})


def returns_date() -> date: ...


def test_results_come_back_by_annotation() -> None:
    signature = Signature.of(returns_date)
    assert signature.decode_result(signature.encode_result(date(2026, 1, 2))) == date(2026, 1, 2)
    assert Signature.of(later).decode_result(b'[{"n":1}]') == [Later(1)]
    assert Signature.of(bare).decode_result(b'{"n":1}') == {"n": 1}
    assert signature.encode_result(None) == b"null"


class Colour(Enum):
    RED = "red"
    ONE = 1


def chosen(one: Literal[Colour.RED, "blue"], many: Iterable[date]) -> None: ...


def test_an_iterable_can_be_read_twice_and_a_literal_may_name_members_of_an_enum() -> None:
    signature = Signature.of(chosen)
    _, got = signature.decode(signature.encode((Colour.RED, (date(2026, 1, 2),)), {}))
    assert got == {"one": Colour.RED, "many": [date(2026, 1, 2)]}
    assert signature.decode(b'{"one":"blue","many":[]}')[1]["one"] == "blue"
    with pytest.raises(InvalidArgumentsError, match="argument 'one' doesn't fit"):
        signature.decode(b'{"one":1,"many":[]}')


def test_a_coroutine_as_result_asks_whether_an_await_was_forgotten() -> None:
    async def late() -> None: ...

    coroutine = late()
    with pytest.raises(EncodingError, match=r"result: coroutine has no JSON form; was an await forgotten\?"):
        Signature.of(bare).encode_result(coroutine)
    coroutine.close()


def test_a_result_of_another_type_than_annotated_is_said_aloud() -> None:
    with pytest.raises(EncodingError) as caught:
        Signature.of(returns_date).decode_result(b"null")
    assert (
        str(caught.value)
        == "the result of returns_date() is no date as annotated: Input should be a valid date, got None"
    )


def test_a_result_without_json_names_the_part() -> None:
    with pytest.raises(EncodingError, match=r"^result\.rows\[1\]: object has no JSON form$"):
        Signature.of(bare).encode_result({"rows": [1, object()]})


def test_skip_and_name() -> None:
    signature = Signature.of(defaults, skip=1, name="shop.defaults")
    assert signature.describe() == "shop.defaults(b: int = 2, *, c: date | None = None) -> None"
    assert signature.encode((3,), {}) == b'{"b":3}'


class Callable:
    def __call__(self, when: date) -> None: ...
    def method(self, when: date) -> None: ...


def wraps(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "function",
    [Callable(), Callable().method, wraps(Callable().method), functools.partial(Callable.method, Callable())],
    ids=["instance", "method", "wrapped", "partial"],
)
def test_other_callables(function: Any) -> None:
    signature = Signature.of(function)
    assert signature.decode(signature.encode((date(2026, 1, 2),), {})) == ((), {"when": date(2026, 1, 2)})


def test_pydantic_is_not_imported_for_plain_annotations() -> None:
    program = (
        "import sys\nfrom upnext.core.binding import Signature\n"
        "def f(a: str, b: list[int], c: dict[str, object] | None = None) -> dict: ...\n"
        "s = Signature.of(f); s.prepare(); s.decode(s.encode(('a', [1]), {}))\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
