"""What people see of arguments and errors that a task declares as not to be shown."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from upnext.core.redaction import HIDDEN, json_shown, restored, text_shown
from upnext.errors import ServiceError
from upnext.worker import Worker


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"card": "4111", "amount": 3}, {"card": HIDDEN, "amount": 3}),
        ({"card": {"number": 1}}, {"card": HIDDEN}),
        ({"order": {"card": "4111", "lines": [{"card": 1}]}}, {"order": {"card": HIDDEN, "lines": [{"card": HIDDEN}]}}),
        ([1, "4111"], [1, "4111"]),
        (None, None),
    ],
)
def test_values_under_the_names_are_hidden_at_any_depth(value: Any, shown: Any) -> None:
    assert orjson.loads(json_shown(orjson.dumps(value), ("card",))) == shown


def test_what_is_no_json_is_hidden_whole() -> None:
    assert orjson.loads(json_shown(b"{card", ("card",))) == HIDDEN


def test_nothing_is_read_where_nothing_is_hidden() -> None:
    assert json_shown(b"{no json", ()) == b"{no json"


def test_texts_lose_the_values_of_such_arguments() -> None:
    payload = orjson.dumps({"card": {"number": "4111 1111", "pin": 1234, "ok": True, "n": 7}, "order": "A1"})
    text = "declined: '4111 1111' pin 1234, order A1, True, 7"
    assert text_shown(text, payload, ("card",)) == f"declined: '{HIDDEN}' pin {HIDDEN}, order A1, True, 7"


def test_a_text_beside_a_broken_payload_stays() -> None:
    assert text_shown("what it says", b"\xff", ("card",)) == "what it says"


def test_edited_arguments_get_back_what_was_hidden() -> None:
    payload = orjson.dumps({"card": "4111", "order": {"card": [1, 2], "id": "A"}, "amount": 3})
    given = {"card": HIDDEN, "order": {"card": HIDDEN, "id": "B"}, "amount": 4}
    assert restored(given, payload, ("card",)) == {"card": "4111", "order": {"card": [1, 2], "id": "B"}, "amount": 4}
    assert restored({"card": "5500"}, payload, ("card",)) == {"card": "5500"}


@pytest.mark.parametrize(
    ("redact", "says"),
    [
        ("card", "redact must be a sequence of names"),
        (("crad",), "did you mean 'card'?"),
        ((1,), "redact names 1, which is not an argument of it"),
    ],
)
def test_wrong_names_are_refused_when_declared(redact: Any, says: str) -> None:
    worker = Worker("shop")
    with pytest.raises(ServiceError) as caught:

        @worker.task(redact=redact)
        async def pay(card: str) -> None: ...

    assert says in str(caught.value)
