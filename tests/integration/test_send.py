"""send: one job for each handler of an event, known to the sender or to the broker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.lua_harness import Workbench, task
from upnext.core import entry
from upnext.engine.calls import client
from upnext.errors import DuplicateJobError


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
    [first] = work.broker.run(call)
    assert work.broker.run(call) == [client.Held(str(first), "mine")]
    assert work.lengths("paid.mail") == "n1"


def test_the_bell_rings_for_limited_handlers(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid", max_concurrency=1), task("paid.ship", event="paid"))
    with work.bell() as words:
        send(work)
    assert words == ["tpaid.mail"]
