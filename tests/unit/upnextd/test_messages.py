"""The inner protocol: every message survives its way, and what isn't one is refused."""

from __future__ import annotations

import dataclasses
import typing

import orjson
import pytest

from upnextd.shared import messages
from upnextd.shared.messages import (
    PROTOCOL,
    Assignment,
    DeclaredApi,
    DeclaredWorker,
    Died,
    Drain,
    ExecOrder,
    Imported,
    Message,
    MessageError,
    ProtocolError,
    SchedulerReport,
    SecretRead,
    Shape,
    StartedJob,
    Stop,
    TemplateOrder,
)

TEMPLATE = TemplateOrder(supervisor_pid=7, generation=2, service="s.py", name="s", only=("a", "b"))
ASSIGNMENT = Assignment(
    token=3, slot="worker-1", role="worker", quarantine=False, generation=2, incarnation=1, name="s", redis_url=None,
    embedded_url="unix://x", namespace="n", daemon_id="d", since_ms=1, since_s=2.5, generation_ms=4, provisional=True,
    boot_timeout_s=5, metered=False, stop_timeout_s=30.0, paused=True,
)  # fmt: skip
SAMPLES: dict[object, object] = {
    str: "ä\n\"", int: 3, bool: True, float: 1.5, str | None: None, int | None: 4, tuple[str, ...]: ("x", "y"),
    tuple[StartedJob, ...]: (StartedJob(task="t", lane="b", entry_id="1-0", job_id="t:n1-2", age_s=0.5),),
    tuple[SecretRead, ...]: (SecretRead(name="key", source="exec"),),
    tuple[DeclaredApi, ...]: (
        DeclaredApi(name="front", host="127.0.0.1", port=80, path=None, processes=2, graceful_timeout_s=3.0),
    ),
    tuple[DeclaredWorker, ...]: (DeclaredWorker(name="w", concurrency=2, tasks=("t",), redis_url=None),),
}  # fmt: skip


def sample(kind: type[Message]) -> Message:
    hints = typing.get_type_hints(kind)
    fields = {name: SAMPLES[hint] for name, hint in hints.items() if name != "protocol"}
    return kind(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", messages.OPERATIONS.values(), ids=list(messages.OPERATIONS))
def test_every_message_arrives_as_it_was_sent(kind: type[Message]) -> None:
    message = sample(kind)
    assert messages.decode(messages.encode(message)) == message
    assert b"\n" not in messages.encode(message)


def test_every_message_of_a_direction_has_an_operation() -> None:
    assert set(typing.get_args(Message)) == set(messages.OPERATIONS.values())


def test_orders_arrive_as_they_were_sent() -> None:
    shapes = (Shape(name="w", concurrency=3, tasks=("t", "u")),)
    order = ExecOrder(template=TEMPLATE, assignment=ASSIGNMENT, shapes=shapes)
    for sent in (TEMPLATE, ASSIGNMENT, order):
        assert messages.decode_order(type(sent), messages.encode_order(sent)) == sent


def test_what_an_upgrade_hands_over() -> None:
    died = sample(Died)
    assert messages.from_json(Died, orjson.loads(orjson.dumps(messages.as_json(died)))) == died


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"op":1}', b'{"op":"what"}', b'{"op":"drain"}', b'{"op":"drain","number":"1"}',
        b'{"op":"drain","number":true}', b'{"op":"drain","number":1,"more":2}', b'{"op":"stop","grace_s":null}',
        b'{"op":"alive","consumers":"abc"}', b'{"op":"alive","consumers":[1]}', b'{"op":["drain"],"number":1}',
        b'{"op":"died","started":[3]}', b"\xff",
    ],
)  # fmt: skip
def test_what_is_not_a_message_is_refused(raw: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode(raw)


def test_an_integer_is_a_number_of_seconds() -> None:
    assert messages.decode(b'{"op":"stop","grace_s":3}') == Stop(grace_s=3)
    report = SchedulerReport(leader=True, epoch=None, connected=True, suspects=False)
    assert messages.decode(messages.encode(report)) == report


def test_another_protocol_is_named() -> None:
    """Whatever else is different in it."""
    first = sample(Imported)
    raw = orjson.loads(messages.encode(first)) | {"protocol": PROTOCOL + 1, "something": "new"}
    with pytest.raises(ProtocolError, match=f"another version.*{PROTOCOL + 1} meets {PROTOCOL}"):
        messages.decode(orjson.dumps(raw))
    order = orjson.dumps(dataclasses.asdict(TEMPLATE) | {"protocol": PROTOCOL + 1, "something": "new"})
    with pytest.raises(ProtocolError):
        messages.decode_order(TemplateOrder, order)


def test_only_first_messages_bear_the_number() -> None:
    bearers = {kind for kind in messages.OPERATIONS.values() if "protocol" in typing.get_type_hints(kind)}
    assert bearers == {Imported}
    assert messages.encode(Drain(number=1)) == b'{"op":"drain","number":1}'
