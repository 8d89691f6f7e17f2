"""reap: a dead consumer's entries go back, the guilty are charged, the consumer is removed when nothing is left."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import CONSUMER, OTHER, Taken, Workbench, task
from upnext.core import entry
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import lease


def only(work: Workbench, lane: str) -> entry.Meta:
    [meta] = work.metas("ship", lane)
    return meta


def again(work: Workbench, **options: bool) -> Taken:
    """The consumer registers again and takes the one job."""
    work.register(task("ship"))
    return work.take(**options)


def test_prefetched_jobs_go_back_uncharged(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", priority="high", parent_id="p:n1-0", root_id="r:n1-0")
    work.take()
    with work.bell() as words:
        done = work.reap(charge="crash")
    assert (done.moved, done.pending, done.gone, done.buried) == (1, 0, True, 0)
    assert words == ["b"]
    meta = only(work, "b")
    assert (meta.job_id, meta.lane, meta.crashes, meta.lost_hosts) == (job_id, "h", 0, 0)
    assert (meta.parent_id, meta.root_id) == ("p:n1-0", "r:n1-0")
    assert work.hash(work.keys.where)[job_id].startswith("b ")
    work.finish(again(work))
    assert work.leaks() == []


def test_the_consumer_is_gone_for_good(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    work.submit("a")
    work.take()
    work.reap()
    for key in (work.keys.consumers, work.keys.leases, work.keys.graves):
        assert work.broker.command("EXISTS", key) == 0
    for stream in work.keys.streams("a"):
        assert work.broker.command("XINFO", "CONSUMERS", stream, "w") == []


def test_a_job_that_had_started_is_charged_with_its_cause(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    started = work.take()
    work.submit("ship")
    work.take()
    work.reap(CONSUMER, started, charge="crash", cause="oom")
    guilty, innocent = work.metas("ship", "b")
    assert (guilty.job_id, guilty.crashes, guilty.cause) == (job_id, 1, "oom")
    assert (innocent.crashes, innocent.cause) == (0, None)
    assert work.stats() == {"ship:crashes": 1}


def test_it_is_buried_at_max_crashes(work: Workbench) -> None:
    work.register(task("ship", max_crashes=2))
    job_id = work.submit("ship", idempotency_key="k", parent_id="p:n1-0", root_id="r:n1-0")
    work.reap(CONSUMER, work.take(), charge="crash")
    work.register(task("ship", max_crashes=2))
    done = work.reap(CONSUMER, work.take(), charge="crash", cause="hung", detail="line 1\nline 2")
    assert (done.moved, done.buried) == (0, 1)
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.status, outcome.reason, outcome.crashes) == (JobStatus.DEAD, FailureReason.CRASH, 2)
    assert (outcome.cause, outcome.error.traceback, outcome.worker) == ("hung", "line 1\nline 2", CONSUMER)
    assert outcome.parent_id == "p:n1-0"
    assert work.dead_ids() == [job_id]
    lane, meta, payload = entry.unpack(work.broker.command("HGET", work.keys.dead_jobs, job_id))
    assert (lane, meta.crashes, meta.cause, payload) == ("n", 2, "hung", b'{"order_id":"A1"}')
    assert work.leaks() == []


def test_with_max_crashes_one_the_first_buries(work: Workbench) -> None:
    work.register(task("ship", max_crashes=1))
    job_id = work.submit("ship")
    assert work.reap(CONSUMER, work.take(), charge="crash").buried == 1
    assert work.dead_ids() == [job_id]
    assert work.leaks() == []


def test_several_suspects_are_set_apart_uncharged(work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(3):
        work.submit("ship")
    one, two, _ = work.fetch()
    work.reap(CONSUMER, one, two, charge="crash")
    assert work.lengths("ship") == "b1 x2"
    assert [(meta.suspect, meta.crashes) for meta in work.metas("ship", "x")] == [(True, 0)] * 2


def test_a_suspect_that_dies_alone_is_charged_and_stays_apart(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.submit("ship")
    work.reap(CONSUMER, *work.fetch(), charge="crash")
    suspect = again(work, suspect=True)
    work.reap(CONSUMER, suspect, charge="crash")
    assert work.lengths("ship") == "x2"
    assert sorted((meta.job_id == suspect.job_id, meta.crashes) for meta in work.metas("ship", "x")) == [
        (False, 0),
        (True, 1),
    ]


def test_a_suspect_that_dies_alone_shows_the_culprit_of_its_crash(work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(3):
        work.submit("ship")
    done = work.reap(CONSUMER, *work.fetch(), charge="crash", crash="c7")
    assert (done.apart, done.shown) == (3, ())
    assert {meta.suspect_of for meta in work.metas("ship", "x")} == {"c7"}
    done = work.reap(CONSUMER, again(work, suspect=True), charge="crash", crash="c8")
    assert (done.apart, done.shown) == (1, ("c7",))
    assert sorted((meta.crashes, meta.suspect_of) for meta in work.metas("ship", "x")) == [
        (0, "c7"), (0, "c7"), (1, None)
    ]  # fmt: skip


def test_one_that_was_charged_once_is_no_suspect_of_that_crash_any_more(work: Workbench) -> None:
    """It runs alone until it is buried, and each of its crashes is its own."""
    work.register(task("ship"))
    for _ in range(2):
        work.submit("ship")
    work.reap(CONSUMER, *work.fetch(), charge="crash")
    one = again(work, suspect=True)
    work.reap(CONSUMER, one, charge="crash")
    work.register(task("ship"))
    again_one = next(job for _ in range(2) if (job := work.take(suspect=True)).job_id == one.job_id)
    assert work.reap(CONSUMER, again_one, charge="crash").shown == ()


def test_one_job_each_of_two_consumers_in_one_process_are_suspects(work: Workbench) -> None:
    for consumer in (CONSUMER, OTHER):
        work.register(task("ship"), consumer=consumer)
        work.submit("ship")
        work.reap(consumer, work.take(consumer=consumer), charge="crash", crash="c7", suspects=2)
    assert work.lengths("ship") == "x2"
    assert [(meta.crashes, meta.suspect_of) for meta in work.metas("ship", "x")] == [(0, "c7")] * 2


def test_a_suspect_that_was_only_fetched_stays_apart_uncharged(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.submit("ship")
    work.reap(CONSUMER, *work.fetch(), charge="crash")
    again(work, suspect=True)
    work.reap(charge="crash")
    assert work.lengths("ship") == "x2"
    assert [meta.crashes for meta in work.metas("ship", "x")] == [0, 0]


def test_forty_nine_innocent_and_one_guilty(work: Workbench) -> None:
    """Alone in its process each suspect shows what it is: only the guilty one is buried, nobody else is charged."""
    work.register(task("ship"))
    jobs = work.broker.submit_many([Submission("ship", b"{}")] * 50)
    guilty = jobs[17]
    work.reap(CONSUMER, *work.fetch(50), charge="crash")
    assert work.lengths("ship") == "x50"
    crashes = 0
    for _ in range(60):
        work.register(task("ship"))
        taken = work.fetch(50, suspect=True)
        if not taken:
            break
        [one] = taken
        if one.job_id == guilty:
            crashes += 1
            work.reap(CONSUMER, one, charge="crash")
        else:
            assert one.meta.crashes == 0
            work.finish(one)
    assert crashes == 3
    assert work.dead_ids() == [guilty]
    assert work.stats() == {"ship:crashes": 3, "ship:dead": 1, "ship:done": 49}
    assert work.leaks() == []


def test_a_lost_host_counts_apart_and_for_every_entry(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    for lost in range(1, 10):
        again(work)
        work.reap(charge="host", cause="lost host")
        meta = only(work, "b")
        assert (meta.lost_hosts, meta.crashes) == (lost, 0)
    again(work)
    assert work.reap(charge="host", cause="lost host").buried == 1
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.status is JobStatus.DEAD
    assert "10 hosts" in outcome.error.message
    assert work.leaks() == []


def test_a_foreign_consumer_keeps_its_jobs_when_its_lease_was_renewed_after_it_was_seen(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.take()
    seen = work.broker.command("ZSCORE", work.keys.leases, CONSUMER).decode()
    work.broker.command("ZINCRBY", work.keys.leases, -3_600_000, CONSUMER)
    before = work.everything()
    assert work.reap(seen=seen).pending == -1, "whatever the clock showed when it was renewed"
    assert work.everything() == before


def test_a_foreign_consumer_loses_its_jobs_when_its_lease_is_as_it_was_seen(work: Workbench) -> None:
    work.register(task("ship"), lease_ms=3_600_000)
    work.submit("ship")
    work.take()
    seen = work.broker.command("ZSCORE", work.keys.leases, CONSUMER).decode()
    assert work.reap(seen=seen).moved == 1, "though its end lies an hour ahead, by a clock that was set back"


def test_a_foreign_one_without_a_lease_has_no_say(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.take()
    work.broker.command("ZREM", work.keys.leases, CONSUMER)
    assert work.reap(seen="1").moved == 1


@pytest.mark.parametrize("charge", ["none", "crash", "host"])
def test_a_job_that_had_started_expires_no_more(work: Workbench, charge: str) -> None:
    work.register(task("ship"))
    had_started, prefetched = (work.submit("ship", queue_ttl_s=60.0) for _ in range(2))
    work.reap(CONSUMER, next(one for one in work.fetch(2) if one.job_id == had_started), charge=charge)
    bounded = {meta.job_id for meta in work.metas("ship", "b") if meta.expires_ms is not None}
    # nobody knows what had started on a host that was lost
    assert bounded == (set() if charge == "host" else {prefetched})


def test_a_first_sweep_keeps_the_record_and_digs_a_grave(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.take()
    done = work.reap(final=False)
    assert (done.moved, done.pending, done.gone) == (1, 0, False)
    assert list(work.hash(work.keys.consumers)) == [CONSUMER]
    assert work.broker.command("ZSCORE", work.keys.leases, CONSUMER) is None
    dug = work.broker.command("ZSCORE", work.keys.graves, CONSUMER)
    assert work.reap(final=False).moved == 0
    assert work.broker.command("ZSCORE", work.keys.graves, CONSUMER) == dug
    assert work.reap().gone
    assert work.broker.command("EXISTS", work.keys.graves) == 0


def test_what_a_dead_read_was_fed_later_goes_back_too(work: Workbench) -> None:
    work.register(task("ship"))
    work.reap(final=False)
    work.submit("ship")
    stream = work.keys.stream("ship", "n")
    work.broker.command("XREADGROUP", "GROUP", "w", CONSUMER, "STREAMS", stream, ">")
    assert work.reap().moved == 1


def test_at_most_two_hundred_a_call(work: Workbench) -> None:
    work.register(task("ship"))
    work.broker.submit_many([Submission("ship", b"{}")] * 300)
    work.fetch(300)
    first = work.reap()
    assert (first.moved, first.gone) == (200, False)
    assert first.pending > 0
    second = work.reap()
    assert (second.moved, second.pending, second.gone) == (100, 0, True)
    assert work.lengths("ship") == "b300"


def test_replayed_and_unknown(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.reap(CONSUMER, one, charge="crash")
    before = work.everything()
    assert work.reap(CONSUMER, one, charge="crash").moved == 0
    assert work.reap("nobody").gone
    assert work.everything() == before


def test_a_job_that_ended_before_is_not_revived(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.finish(one)
    assert work.reap(CONSUMER, one, charge="crash").moved == 0
    assert work.stats() == {"ship:done": 1}
    assert work.leaks() == []


def test_siblings_keep_theirs(work: Workbench) -> None:
    work.register(task("ship"))
    work.register(task("ship"), consumer=OTHER)
    work.submit("ship")
    work.submit("ship")
    mine, theirs = work.take(), work.take(consumer=OTHER)
    work.reap(CONSUMER, mine, charge="crash")
    assert work.pending("ship") == 1
    work.finish(theirs)


def test_a_task_that_nobody_registered(work: Workbench) -> None:
    work.register(task("ship"))
    work.names = ["ship", "unheard-of"]
    assert work.reap().gone


@pytest.mark.parametrize(
    "fields", [("p2", b"newer", "m", b"\x02binary"), ("what", b"ever"), ("p1", b"{}", "m", b"{broken")]
)
def test_an_entry_that_we_cannot_read_holds_nothing_up(work: Workbench, fields: tuple[str | bytes, ...]) -> None:
    work.register(task("ship"))
    work.add("ship", "n", *fields)
    job_id = work.submit("ship")
    work.broker.command("XREADGROUP", "GROUP", "w", CONSUMER, "STREAMS", work.keys.stream("ship", "n"), ">")
    done = work.reap(charge="host")
    assert (done.moved, done.gone) == (2, True)
    [(_, moved), (_, ours)] = work.lane("ship", "b")
    raw = [word.encode() if isinstance(word, str) else word for word in fields]
    assert moved == dict(zip(raw[::2], raw[1::2], strict=True))
    assert entry.decode_meta(ours[b"m"]).job_id == job_id


def test_an_entry_of_a_newer_schema_stays_one(work: Workbench) -> None:
    work.register(task("ship"))
    work.add("ship", "n", "p2", b"\x01newer")
    work.broker.command("XREADGROUP", "GROUP", "w", CONSUMER, "STREAMS", work.keys.stream("ship", "n"), ">")
    work.reap()
    [(_, moved)] = work.lane("ship", "b")
    assert moved[b"p2"] == b"\x01newer"


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.refuses_another_epoch(lambda epoch: work.reap_call(CONSUMER, one, epoch=epoch, charge="crash"))


def test_a_consumer_of_hundreds_of_tasks_is_reaped_by_parts(work: Workbench) -> None:
    """Its record goes with the last part, so that a reaper that breaks off is followed by another; its place in the groups with each."""
    names = [f"t{number}" for number in range(450)]
    for start in range(0, len(names), 150):
        work.register(*(task(name) for name in names[start : start + 150]))
    for name in names[::90]:
        work.submit(name)
    work.names = names
    taken = work.fetch(10)
    assert len(taken) == 5
    parts = lease.reap_parts(names)
    assert [len(part) for part in parts] == [200, 200, 50]
    while parts:
        call = lease.reap(
            work.keys, work.epoch, consumer=CONSUMER, tasks=parts[0], final=True, more=len(parts) > 1, cause="stopped"
        )
        done = work.broker.run(call)
        if done.pending == 0:
            parts.popleft()
            assert done.gone == (not parts)
            assert (CONSUMER in work.hash(work.keys.consumers)) == bool(parts)
    assert [work.lengths(one.task) for one in taken] == ["b1"] * 5
    for one in taken:
        assert work.broker.command("XINFO", "CONSUMERS", work.keys.stream(one.task, "n"), "w") == []
    assert work.broker.command("ZCARD", work.keys.graves) == 0
