"""send: one job for each handler of an event, known to the sender or to the broker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.lua_harness import Workbench, task
from upnext.core import entry
from upnext.engine.calls import client
from upnext.engine.client.queue_client import QueueClient
from upnext.errors import BrokerFullError, DuplicateJobError, SubmitUncertain


def send(work: Workbench, *known: str, **options: Any) -> list[str]:
    return work.broker.send("paid", b'{"order_id":"A1"}', known, **options)


def tasks_of(job_ids: list[str]) -> list[str]:
    return [job_id.rpartition(":")[0] for job_id in job_ids]


def test_every_handler_gets_a_job(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"), task("paid.ship", event="paid"), task("other.log", event="other"))
    sent = send(work)
    assert tasks_of(sent) == ["paid.mail", "paid.ship"]
    taken = work.fetch()
    assert [one.job_id for one in taken] == sent
    for one in taken:
        work.finish(one)
    assert work.leaks() == []


def test_nobody_listens(work: Workbench) -> None:
    assert send(work) == []
    assert work.everything() == {}


def test_handlers_that_only_the_sender_knows_are_added_once(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"))
    assert tasks_of(send(work, "paid.mail", "paid.ship", "paid.ship")) == ["paid.mail", "paid.ship"]
    work.register(task("paid.ship", event="paid"))
    assert [one.task for one in work.fetch()] == ["paid.ship"]


def test_a_handler_of_workers_that_are_away_gets_its_job(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"))
    work.reap()
    [job_id] = send(work)
    work.register(task("paid.mail", event="paid"))
    assert work.take().job_id == job_id


def test_a_handler_not_seen_for_a_week_gets_no_more(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"), task("paid.ship", event="paid"))
    long_ago = work.now_ms() - client.HANDLER_LIFE_MS - 1
    work.broker.command("HSET", work.keys.event("paid"), "paid.ship", long_ago)
    assert tasks_of(send(work)) == ["paid.mail"]
    assert list(work.hash(work.keys.event("paid"))) == ["paid.mail"]


def test_lineage_goes_along(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"))
    send(work, parent_id="p:n1-0", root_id="r:n1-0")
    meta = work.take().meta
    assert (meta.parent_id, meta.root_id) == ("p:n1-0", "r:n1-0")


def test_with_a_key_each_handler_gets_it_once(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"), task("paid.ship", event="paid"))
    sent = send(work, idempotency_key="A1")
    assert len(sent) == 2
    with pytest.raises(DuplicateJobError) as raised:
        send(work, idempotency_key="A1")
    assert raised.value.job_id in sent
    one, two = work.fetch()
    work.finish(one)
    assert tasks_of(send(work, idempotency_key="A1")) == [one.task]
    work.finish(two)
    work.finish(work.take())
    assert work.leaks() == []


def test_the_same_send_twice_is_one(work: Workbench) -> None:
    """A lost reply: the repeat finds its own nonce and the jobs that it made."""
    work.register(task("paid.mail", event="paid"))
    call = client.send(work.keys, "paid", b"{}", [], meta=entry.Meta(), idempotency_key="A1", nonce="mine")
    [first] = work.broker.run(call).answers
    assert work.broker.run(call).answers == [client.Held(str(first), "mine")]
    assert work.lengths("paid.mail") == "n1"


def test_the_bell_rings_for_limited_handlers(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid", max_concurrency=1), task("paid.ship", event="paid"))
    with work.bell() as words:
        send(work)
    assert words == ["tpaid.mail"]


MANY = [f"paid.{number:03}" for number in range(450)]


def test_hundreds_of_handlers_get_one_job_each(work: Workbench) -> None:
    assert tasks_of(send(work, *MANY)) == MANY
    assert [work.lengths(name) for name in MANY] == ["n1"] * len(MANY)


async def test_so_do_those_of_a_large_payload(work: Workbench, redis_url: str, namespace: str) -> None:
    """By the quick way of a live connection, which a call before has made."""
    handlers, payload = MANY[:20], b'"%s"' % (b"x" * 200_000)
    queue = QueueClient(redis_url, namespace)
    try:
        await queue.send("paid", payload, handlers)
        assert tasks_of(await queue.send("paid", payload, handlers)) == handlers
    finally:
        await queue.aclose()
    assert [work.lengths(name) for name in handlers] == ["n2"] * len(handlers)


def _stops_half_way(work: Workbench, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A Redis that becomes full after the first call."""
    run, calls = work.broker.run, list[Any]()

    def full_at_the_second(call: Any) -> Any:
        calls.append(call)
        if len(calls) == 2:
            raise BrokerFullError("full")
        return run(call)

    with monkeypatch.context() as patch:
        patch.setattr(work.broker, "run", full_at_the_second)
        with pytest.raises(SubmitUncertain, match="has reached 200 of its 450 handlers") as raised:
            send(work, *MANY, **options)
    assert "idempotency key" in str(raised.value)
    assert [work.lengths(name) for name in MANY] == ["n1"] * 200 + [""] * 250


def test_a_send_that_stops_half_way_says_how_far_it_came(work: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    _stops_half_way(work, monkeypatch)


def test_with_a_key_a_repeat_reaches_the_others_alone(work: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    _stops_half_way(work, monkeypatch, idempotency_key="A1")
    assert tasks_of(send(work, *MANY, idempotency_key="A1")) == MANY[200:]
    assert [work.lengths(name) for name in MANY] == ["n1"] * len(MANY)


def test_a_call_that_goes_on_can_be_repeated_without_a_key(work: Workbench) -> None:
    """Its reply was lost: a handler that has its job gets no second one."""
    call = client.send(work.keys, "paid", b"{}", MANY[:2], nonce="mine", goes_on=True)
    first = work.broker.run(call).answers
    assert work.broker.run(call).answers == [client.Held(str(job_id), "mine") for job_id in first]
    assert [work.lengths(name) for name in MANY[:2]] == ["n1", "n1"]


def test_those_that_were_left_are_all_that_a_call_goes_on_with(work: Workbench) -> None:
    work.register(task("paid.late", event="paid"))
    done = work.broker.run(client.send(work.keys, "paid", b"{}", MANY[:1], nonce="mine", goes_on=True))
    assert len(done.answers) == 1
    assert work.lengths("paid.late") == ""
