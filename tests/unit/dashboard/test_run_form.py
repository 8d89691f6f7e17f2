"""A form made from a signature: its fields, and what was typed as arguments."""

from __future__ import annotations

from typing import Any

import pytest

from upnext.core.signatures import payload
from upnext.dashboard import run_form
from upnext.dashboard.run_form import Input
from upnext.errors import InvalidArgumentsError

SIGNATURE = (
    "ship(order_id: str, cents: int, *, express: bool = False, note: str | None = None, size: Literal['s', 'l'] = 's', "
    "items: list[shop.Item] = [], at: datetime.datetime | None = None, colour: shop.Colour = 'red', share: float = 0.5, rest='x') -> None"
)


def typed(**values: str) -> dict[str, str]:
    return {run_form.PREFIX + name: value for name, value in values.items()}


def test_each_argument_has_a_field_that_takes_its_type() -> None:
    found = {one.name: one for one in run_form.fields(SIGNATURE)}
    assert {name: one.input for name, one in found.items()} == {
        "order_id": Input.TEXT,
        "cents": Input.NUMBER,
        "express": Input.CHOICE,
        "note": Input.TEXT,
        "size": Input.CHOICE,
        "items": Input.JSON,
        "at": Input.TEXT,
        "colour": Input.JSON,
        "share": Input.NUMBER,
        "rest": Input.JSON,
    }
    assert [one.name for one in found.values() if one.required] == ["order_id", "cents"]
    assert (found["express"].choices, found["size"].choices) == (("true", "false"), ('"s"', '"l"'))
    assert (found["express"].default, found["share"].default) == ("False", "0.5")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (typed(order_id="A1", cents="5"), {"order_id": "A1", "cents": 5}),
        (typed(order_id="5", cents="5", express="", note=""), {"order_id": "5", "cents": 5}),
        (typed(order_id="", cents="5"), {"order_id": "", "cents": 5}),
        (typed(order_id="a\r\nb", cents="5", express="true"), {"order_id": "a\nb", "cents": 5, "express": True}),
        (typed(order_id="A", cents="5", size='"l"', share=".5"), {"order_id": "A", "cents": 5, "size": "l", "share": ".5"}),
        (
            typed(order_id="A", cents="5", items='[{"n": 1}]', colour="blue", at="2026-01-01"),
            {"order_id": "A", "cents": 5, "items": [{"n": 1}], "colour": "blue", "at": "2026-01-01"},
        ),
    ],
)  # fmt: skip
def test_what_was_typed_becomes_arguments(given: dict[str, str], expected: dict[str, Any]) -> None:
    found = run_form.arguments(SIGNATURE, given)
    assert found == expected
    assert payload(SIGNATURE, found)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (typed(order_id="A1", cents="many"), "argument 'cents' must be int, not 'many'"),
        (typed(order_id="A1", cents="1.5"), "argument 'cents' must be int, not 1.5"),
        (typed(order_id="A1", cents=""), "missing argument 'cents'"),
        (typed(order_id="A1", cents="1", items="[1"), "argument 'items' is not JSON"),
        (typed(order_id="A1", cents="1", items="1"), "argument 'items' must be list"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given: dict[str, str], line: str) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        payload(SIGNATURE, run_form.arguments(SIGNATURE, given))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_refused_form_keeps_what_was_typed() -> None:
    found = {one.name: one.typed for one in run_form.fields(SIGNATURE, typed(order_id="A1", cents="many"))}
    assert (found["order_id"], found["cents"], found["note"]) == ("A1", "many", "")


@pytest.mark.parametrize(
    "signature",
    ["", "nothing() -> None", "open(**kwargs)", "odd(value: object = <object>)", "f(x: Literal[b'x'])", "f(x: "],
)
def test_odd_signatures_make_a_form_too(signature: str) -> None:
    assert run_form.arguments(signature, {"arg.": ""}) == {}
