"""submit: jobs come in, queued or delayed; a key lets one in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.lua_harness import CONSUMER, PAYLOAD, Workbench, task
from tests.support.servers import Server
from upnext.core import entry, ids
from upnext.core.submission import Submission
from upnext.engine.calls.client import Held
from upnext.errors import BrokerFullError, DuplicateJobError


def test_a_job_is_one_entry_and_nothing_else(work: Workbench) -> None:
    job_id = work.submit("ship")
    parsed = ids.parse(job_id)
    assert (parsed.task, parsed.born) == ("ship", "n")
    assert work.lane("ship", "n") == [(parsed.entry_id.encode(), {b"p1": PAYLOAD})]
    assert list(work.everything()) == [work.keys.stream("ship", "n")]


def test_priority_chooses_the_lane(work: Workbench) -> None:
    assert ids.parse(work.submit("ship", priority="high")).born == "h"
    assert work.lengths("ship") == "h1"


def test_lineage_trace_and_reply_to_travel_in_the_entry(work: Workbench) -> None:
    job = Submission("ship", b"{}", parent_id="p:n1-0", root_id="r:n1-0", trace="00-abc-def-01")
    work.submit_as(job, reply_to="ear")
    [meta] = work.metas("ship", "n")
    assert meta == entry.Meta(parent_id="p:n1-0", root_id="r:n1-0", trace="00-abc-def-01", reply_to="ear")


def test_delayed_by_a_time_and_by_a_delay(work: Workbench) -> None:
    at = work.submit("ship", at_us=4_000_000_000_000_001)
    before_us = work.now_us()
    later = work.submit("ship", delay_s=1.500_001_2, priority="high")
    after_us = work.now_us()
    assert ids.parse(at).born == ids.parse(later).born == "d"
    assert work.broker.command("ZSCORE", work.keys.delayed, at) == b"4000000000000001"
    due_us = int(work.broker.command("ZSCORE", work.keys.delayed, later))
    assert before_us + 1_500_002 <= due_us <= after_us + 1_500_002, "a part of a microsecond counts as one: never early"
    assert work.lengths("ship") == ""
    lane, meta, payload = entry.unpack(work.broker.command("HGET", work.keys.delayed_jobs, later))
    assert (lane, meta, payload) == ("h", entry.Meta(), PAYLOAD)


def test_delayed_ids_differ_within_a_millisecond(work: Workbench) -> None:
    jobs = work.broker.submit_many([Submission("ship", b"{}", delay_s=60.0)] * 200)
    assert len(set(jobs)) == 200
    assert work.broker.command("ZCARD", work.keys.delayed) == 200


def test_a_delay_longer_than_any_ttl_is_kept(work: Workbench) -> None:
    job_id = work.submit("ship", delay_s=3e8, idempotency_key="k")
    assert work.broker.command("PTTL", work.keys.delayed_jobs) == -1
    assert work.broker.command("HEXISTS", work.keys.delayed_jobs, job_id) == 1


@pytest.mark.parametrize(("delay_s", "least_ms"), [(None, 60_000), (100.0, 160_000)])
def test_its_time_to_live_counts_from_when_it_is_due(work: Workbench, delay_s: float | None, least_ms: int) -> None:
    before_ms = work.now_ms()
    job_id = work.submit("ship", queue_ttl_s=60.0, delay_s=delay_s)
    if delay_s is None:
        [meta] = work.metas("ship", "n")
    else:
        _, meta, _ = entry.unpack(work.broker.command("HGET", work.keys.delayed_jobs, job_id))
    assert meta.expires_ms is not None
    assert before_ms + least_ms <= meta.expires_ms <= work.now_ms() + least_ms + 1


def test_a_key_lets_one_in(work: Workbench) -> None:
    job_id = work.submit("ship", idempotency_key="A1")
    with pytest.raises(DuplicateJobError) as raised:
        work.submit("ship", idempotency_key="A1")
    assert raised.value.job_id == job_id
    assert work.lengths("ship") == "n1"
    work.submit("pack", idempotency_key="A1")  # a key counts within its task


def test_a_key_holds_for_its_ttl_at_most(work: Workbench) -> None:
    work.submit("ship", idempotency_key="A1", idempotency_ttl_s=120.0)
    assert 0 < work.broker.command("PTTL", work.keys.idem("ship:A1")) <= 120_000


@pytest.mark.parametrize("delay_s", [None, 60.0])
def test_the_same_submit_twice_is_one(work: Workbench, delay_s: float | None) -> None:
    """A lost reply: the repeat finds its own nonce and the job that it made."""
    job = Submission("ship", b"{}", idempotency_key="A1", delay_s=delay_s)
    first = work.submit_as(job, nonce="mine")
    before = work.everything()
    assert work.submit_as(job, nonce="mine") == Held(str(first), "mine")
    assert work.everything() == before


def test_a_thousand_of_many_tasks_in_one_go(work: Workbench) -> None:
    many = [Submission(f"t{number % 7}", b"%d" % number) for number in range(2500)]
    jobs = work.broker.submit_many(many)
    assert len(set(jobs)) == 2500
    assert [ids.parse(job_id).task for job_id in jobs] == [job.task for job in many]
    found = {
        job_id: fields[b"p1"]
        for name in {job.task for job in many}
        for job_id, fields in ((f"{name}:n{entry_id.decode()}", fields) for entry_id, fields in work.lane(name, "n"))
    }
    assert [found[job_id] for job_id in jobs] == [job.payload for job in many]


def test_the_bell_rings_for_a_new_head_and_for_limited_tasks(work: Workbench) -> None:
    work.register(task("free"), task("tight", max_concurrency=1))
    with work.bell() as words:
        work.submit("free")
        work.submit("tight")
        work.submit("free", delay_s=100.0)
        work.submit("free", delay_s=200.0)
        work.submit("free", delay_s=50.0)
    assert words == ["ttight", "d", "d"]


@contextmanager
def full(server: Server) -> Iterator[None]:
    server.cli("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        server.cli("CONFIG", "SET", "maxmemory", 0)


def test_a_full_broker_takes_nothing_and_running_work_ends(own_server: Server, namespace: str) -> None:
    from upnext.engine.client.sync_client import SyncQueueClient

    work = Workbench(SyncQueueClient(own_server.url, namespace))
    work.register(task("ship", retries=1), task("paid.mail", event="paid"))
    for _ in range(4):
        work.submit("ship")
    done, failed, back, lost = work.fetch()
    before = work.everything()
    with full(own_server):
        with pytest.raises(BrokerFullError):
            work.submit("ship")
        with pytest.raises(BrokerFullError):
            work.submit("ship", idempotency_key="k", delay_s=1.0)
        with pytest.raises(BrokerFullError):
            work.broker.send("paid", b"{}", [])
        assert work.everything() == before
        work.finish(done)
        assert work.retry(work.put_back(failed)) == [1]
        assert work.hand_back(back) == 1
        assert work.promote()[0] == 1
        assert work.reap(CONSUMER, lost, charge="crash").moved == 1
    work.broker.close()
