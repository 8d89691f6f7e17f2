"""Arguments of `upnext call` against a registered signature."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnext.core.binding import Signature
from upnext.core.signatures import fits, parameters, payload
from upnext.errors import InvalidArgumentsError


def plain(order_id: str, items: list[str], note: str = "a, (b", *, express: bool = False) -> dict[str, int]: ...
def open_ended(order_id: str, **kwargs: Any) -> None: ...
def positional(a: int, b: int = 2, /, c: int = 3, *rest: int) -> None: ...
def nothing() -> None: ...
def odd(value: object = object(), other: str = "it's = (") -> None: ...


FUNCTIONS = [plain, open_ended, positional, nothing, odd]


@pytest.mark.parametrize(
    ("function", "kwargs", "expected"),
    [
        (plain, {"order_id": "A", "items": []}, {"order_id": "A", "items": []}),
        (plain, {"order_id": "A", "items": [], "express": True}, {"order_id": "A", "items": [], "express": True}),
        (open_ended, {"order_id": "A", "more": 1}, {"order_id": "A", "more": 1}),
        (positional, {"a": 1, "c": 5}, [[1], {"c": 5}]),
        (positional, {"a": 1, "b": 4}, [[1, 4], {}]),
        (nothing, {}, {}),
        (odd, {"other": "x"}, {"other": "x"}),
    ],
)
def test_the_payload_is_what_the_worker_decodes(function: Any, kwargs: dict[str, Any], expected: Any) -> None:
    declared = Signature.of(function)
    raw = payload(declared.describe(), kwargs)
    assert json.loads(raw) == expected
    args, decoded = declared.decode(raw)
    function(*args, **decoded)


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (plain, {"order_id": "A"}, "missing argument 'items'"),
        (plain, {"order_id": "A", "items": [], "itmes": []}, "unexpected argument 'itmes'"),
        (positional, {"b": 1}, "missing argument 'a'"),
        (nothing, {"x": 1}, "unexpected argument 'x'"),
        (open_ended, {}, "missing argument 'order_id'"),
    ],
)
def test_a_wrong_call_is_told_with_the_signature(function: Any, kwargs: dict[str, Any], message: str) -> None:
    signature = Signature.of(function).describe()
    with pytest.raises(InvalidArgumentsError, match=message) as caught:
        payload(signature, kwargs)
    assert signature in str(caught.value)


def test_positional_only_arguments_can_not_be_skipped() -> None:
    with pytest.raises(InvalidArgumentsError, match="'b' can't be given without 'a'"):
        payload("f(a=1, b=2, /)", {"b": 3})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_names_are_those_of_the_function(function: Any) -> None:
    import inspect

    declared = parameters(Signature.of(function).describe())
    theirs = inspect.signature(function).parameters.values()
    named = [one for one in theirs if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    assert [(one.name, one.required) for one in declared.named] == [
        (one.name, one.default is one.empty) for one in named
    ]
    assert declared.extra == any(one.kind is one.VAR_KEYWORD for one in theirs)


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    parameters(text)
    parameters(f"f({text})")


def test_arguments_by_position_take_the_first_names() -> None:
    assert (
        payload("ship(a: int, b: str, *, c: bool = False) -> None", {"c": True}, (1, "x"))
        == b'{"a":1,"b":"x","c":true}'
    )


def test_plain_types_are_checked_and_others_are_not() -> None:
    fitting = [
        ("int", 1),
        ("int", "12"),
        ("float", 1),
        ("str | None", None),
        ("list[str]", ()),
        ("dict[str, int]", {}),
        ("Item", 3),
        ("", 3),
    ]
    not_fitting = [
        ("int", "x"),
        ("int", 1.5),
        ("int", []),
        ("str", 1),
        ("str | int", []),
        ("list[str]", "x"),
        ("bool", []),
        ("None", 0),
    ]
    assert [fits(kind, value) for kind, value in fitting] == [True] * len(fitting)
    assert [fits(kind, value) for kind, value in not_fitting] == [False] * len(not_fitting)
