"""No script ends half done: it reads and checks what it needs before its first write, so that one that fails has written nothing.

Each key that a script touches is made unreadable in turn: by another type, by garbage in its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest

from tests.integration.lua_harness import CONSUMER, Taken, Workbench, task
from upnext.core.entry import Meta
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.core.schedules import ScheduleSpec, encode
from upnext.core.series import Times
from upnext.core.spec import CronSpec
from upnext.core.submission import Submission
from upnext.engine.calls import admin, client, lease, schedules, series, worker
from upnext.engine.calls.worker import Finish
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import Call, script

GARBAGE = "{no JSON"
SCHEDULE = ScheduleSpec("nightly", "ship", CronSpec("* * * * *", overlap=False))
LAST_ID = "18446744073709551615-18446744073709551615"


def held(work: Workbench, **options: Any) -> Taken:
    """A queued, a delayed, a dead and a running job; -> the running one."""
    work.register(task("ship", max_concurrency=9), task("pack"), task("tidy", cron=CronSpec("* * * * *")))
    work.submit("pack")
    work.fail(work.take())
    work.submit("ship", delay_s=0.0, parent_id="p:n1-0")
    work.broker.run(
        lease.beat(work.keys, work.epoch, daemon="d1", token="t", lease_ms=9, leadership_ms=99, consumers=[])
    )
    work.submit("ship", idempotency_key="k", **options)
    one = work.take()
    work.submit("ship")
    return one


def _end(one: Taken, **changes: Any) -> Finish:
    return Finish(one.task, one.lane, one.entry_id, JobStatus.DONE, b"{}", one.meta, **changes)


def _finish(work: Workbench) -> Call[Any]:
    work.register(task("ship"), task("pack"))
    jobs = [work.submit("ship"), work.submit("pack"), work.submit("ship", idempotency_key="k")]
    one, *others = work.fetch(len(jobs))
    plain = Finish(one.task, one.lane, one.entry_id, JobStatus.DONE, b"{}")
    return work.finish_call(plain, *(_end(other, bury=True) for other in others))


def _delayed(work: Workbench) -> str:
    held(work)
    return work.broker.command("ZRANGE", work.keys.delayed, 0, 0)[0].decode()


def _queued(work: Workbench) -> str:
    work.register(task("ship"))
    return work.submit("ship", idempotency_key="k")


def _submits(work: Workbench) -> Call[Any]:
    held(work)
    jobs = [
        Submission("ship", b"{}"),
        Submission("pack", b"{}", delay_s=5.0),
        Submission("pack", b"{}", idempotency_key="k2"),
    ]
    return client.submit(work.keys, [(job, None) for job in jobs], "nonce")


def _replaces(work: Workbench, **options: Any) -> Call[Any]:
    held(work)
    work.submit("ship", idempotency_key="r", delay_s=60.0)
    job = Submission("ship", b"{}", idempotency_key="r", replace=True, **options)
    return client.replace(work.keys, job, None, "nonce")


def _sends(work: Workbench) -> Call[Any]:
    work.register(task("a.one", event="a"), task("a.two", event="a"))
    return client.send(work.keys, "a", b"{}", ["a.one", "a.two"], idempotency_key="k", nonce="n")


def _tick(work: Workbench) -> Call[Any]:
    held(work)
    work.broker.command("HSET", work.keys.cursors, "tidy", 0)
    tick_ms = work.now_ms() // 60_000 * 60_000
    term = int(work.hash(work.keys.leader)["epoch"])
    return lease.tick(
        work.keys, work.epoch, term=term, cron="tidy", tick_ms=tick_ms, payload=b"{}",
        meta=Meta(tick_ms=tick_ms), fire=True,
    )  # fmt: skip


def _makes(work: Workbench) -> Call[int]:
    return schedules.set_schedule(work.keys, SCHEDULE, b"{}")


def _made(work: Workbench) -> Taken:
    one = held(work)
    work.broker.run(_makes(work))
    return one


def _tick_of_a_schedule(work: Workbench) -> Call[Any]:
    _made(work)
    work.broker.command("HSET", work.keys.schedules_state, "nightly", 0)
    tick_ms = work.now_ms() // 60_000 * 60_000
    term = int(work.hash(work.keys.leader)["epoch"])
    return lease.tick(
        work.keys, work.epoch, term=term, cron="nightly", tick_ms=tick_ms, payload=b"",
        meta=Meta(tick_ms=tick_ms), fire=True, overlap=False, schedule=(SCHEDULE, encode(SCHEDULE)),
    )  # fmt: skip


def _reap(work: Workbench) -> Call[Any]:
    one = held(work)
    other = work.take()
    work.names = ["ship", "pack"]
    return work.reap_call(CONSUMER, one, other, charge="crash")


def _note(work: Workbench, one: Taken) -> Call[Any]:
    return worker.note(work.keys, one.task, one.lane, one.entry_id, one.job_id, b"{}")


def _watched(work: Workbench) -> str:
    job_id = _queued(work)
    work.broker.run(client.watch(work.keys, job_id, "c1", 1))
    return job_id


SCENARIOS: dict[str, Callable[[Workbench], Call[Any]]] = {
    "attach": lambda work: held(work) and lease.attach(work.keys, work.epoch, CONSUMER, 7),
    "beat": lambda work: (
        held(work)
        and lease.beat(work.keys, work.epoch, daemon="d2", token="t", lease_ms=9, leadership_ms=9, consumers=[CONSUMER])
    ),
    "cancel": lambda work: client.cancel(work.keys, _delayed(work)),
    "cancel queued": lambda work: client.cancel(work.keys, _queued(work)),
    "cancel running": lambda work: client.cancel(work.keys, held(work).job_id),
    "finish": _finish,
    "hand_back": lambda work: worker.hand_back(
        work.keys, work.epoch, [(one.task, one.lane, one.entry_id) for one in [held(work), *work.fetch(1)]]
    ),
    "linger": lambda work: held(work) and lease.linger(work.keys, work.epoch, CONSUMER, "ship", 1),
    "note": lambda work: _note(work, held(work)),
    "note_times": lambda work: held(work) and series.note_times(work.keys, work.now_ms(), {"ship": Times({1: 1}, {})}),
    "pause_task": lambda work: held(work) and admin.pause_task(work.keys, "ship"),
    "promote": lambda work: held(work) and lease.promote(work.keys, work.epoch, 10),
    "purge_dead": lambda work: held(work) and admin.purge_dead(work.keys, work.dead_ids()),
    "purge_delayed": lambda work: held(work) and admin.purge_delayed(work.keys, "ship", "0"),
    "purge_queued": lambda work: held(work) and admin.purge_queued(work.keys, "ship", "n"),
    "reap": _reap,
    "replace": _replaces,
    "replace by a delayed one": lambda work: _replaces(work, delay_s=60.0),
    "resign": lambda work: held(work) and lease.resign(work.keys, work.epoch, daemon="d1", token="t"),
    "resume_task": lambda work: held(work) and admin.resume_task(work.keys, "ship"),
    "retry": lambda work: worker.retry(
        work.keys, work.epoch, [work.put_back(held(work)), *map(work.put_back, work.fetch(1))]
    ),
    "retry_dead": lambda work: held(work) and admin.retry_dead(work.keys, work.dead_ids()),
    "sample": lambda work: held(work) and series.sample(work.keys, work.epoch, 30_000_000, 1, "0"),
    "send": _sends,
    "submit": _submits,
    "tick": _tick,
    "set_schedule": lambda work: held(work) and _makes(work),
    "switch_schedule": lambda work: _made(work) and schedules.switch_schedule(work.keys, "nightly", paused=True),
    "remove_schedule": lambda work: _made(work) and schedules.remove_schedule(work.keys, "nightly"),
    "tick of a schedule": _tick_of_a_schedule,
    "unwatch": lambda work: client.unwatch(work.keys, _watched(work), "c1", 1),
    "watch": lambda work: client.watch(work.keys, _watched(work), "c2", 2),
}

OWN_TESTS = {
    "fetch": "what it took before the failure is in its reply: see below",
    "finish_again": "types first, as finish; its writes are those of test_finish_again.py",
    "free_suspects": "it adds before it removes",
    **dict.fromkeys(
        (
            "announce",
            "note_activity",
            "report",
            "watch_daemons",
            "withdraw_report",
            "register",
            "remove",
            "set_limits",
            "withdraw",
        ),
        "they hold no jobs, and are repeated",
    ),
    "remove_bad": "what it removes is broken: see test_remove_bad.py",
    "set_aside": "see test_set_aside.py",
}


def writers() -> Iterator[str]:
    for file in (resources.files("upnext.engine") / "lua").iterdir():
        name = file.name.removesuffix(".lua")
        if file.name.endswith(".lua") and "no-writes" not in file.read_text().partition("\n")[0]:
            text = script(name).text
            if re.search(r"'(XADD|XACK|XDEL|SET|DEL|HSET|HDEL|ZADD|ZREM|SADD|SREM|INCR|XREADGROUP)'", text):
                yield name


def test_every_script_that_writes_is_here() -> None:
    here = {name.partition(" ")[0] for name in SCENARIOS} | set(OWN_TESTS)
    assert sorted(set(writers()) - here) == []


def _another_type(work: Workbench, key: str) -> None:
    kind = work.broker.command("TYPE", key)
    work.broker.command("DEL", key)
    if kind == b"string":
        work.broker.command("RPUSH", key, GARBAGE)
    else:
        work.broker.command("SET", key, GARBAGE)


def _garbage(work: Workbench, key: str) -> None:
    match work.broker.command("TYPE", key):
        case b"hash":
            for field in work.broker.command("HKEYS", key):
                work.broker.command("HSET", key, field, GARBAGE)
        case b"string":
            work.broker.command("SET", key, GARBAGE)
        case _:
            pass


def _places(work: Workbench) -> int:
    """In how many places there is a job or what became of one."""
    found = 0
    letters: list[str] = []
    if work.broker.command("TYPE", work.keys.dead) == b"zset":
        letters = work.dead_ids()
    for key in work.everything():
        match work.broker.command("TYPE", key):
            case b"stream" if ":s:" in key:
                found += work.broker.command("XLEN", key)
            case b"zset" if key in (work.keys.delayed, work.keys.dead):
                found += work.broker.command("ZCARD", key)
            case b"string" if key.startswith(work.keys.result_prefix):
                found += key.removeprefix(work.keys.result_prefix) not in letters
            case _:
                pass
    return found


def _clear(work: Workbench) -> None:
    if names := list(work.everything()):
        work.broker.command("DEL", *names)


def _touched(work: Workbench, call: Call[Any]) -> list[str]:
    """The keys that are there or are named, the data set's own name apart: all is refused without that."""
    return sorted({*work.everything(), *call.keys} - {Keys(work.keys.namespace).epoch})


@pytest.mark.parametrize("spoil", [_another_type, _garbage], ids=["type", "garbage"])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_one_that_fails_has_written_nothing(
    work: Workbench, name: str, spoil: Callable[[Workbench, str], None]
) -> None:
    keys = _touched(work, SCENARIOS[name](work))
    for key in keys:
        _clear(work)
        call = SCENARIOS[name](work)
        if not work.broker.command("EXISTS", key) and spoil is _garbage:
            continue
        spoil(work, key)
        before, places = work.everything(), _places(work)
        try:
            work.broker.run_once(call)
        except ReplyError as error:
            changed = {
                one for one in before.keys() | work.everything().keys() if before.get(one) != work.everything().get(one)
            }
            assert not changed, f"{name} failed at {key} ({error}), and had written {changed}"
        else:
            if not name.startswith("purge"):
                assert _places(work) >= places, f"{name} lost a job at {key}"


def _exhaust(work: Workbench, name: str, lane: str) -> None:
    """From now on this lane takes nothing."""
    work.broker.command("XADD", work.keys.stream(name, lane), LAST_ID, "p1", "{}")


def test_reap_leaves_what_the_lane_does_not_take_where_it_is(work: Workbench) -> None:
    work.register(task("ship"), task("pack"))
    stuck, moved = work.submit("ship"), work.submit("pack")
    work.fetch(2)
    _exhaust(work, "ship", "b")
    done = work.reap()
    assert (done.moved, done.pending, done.gone) == (1, 1, False)
    assert stuck.partition(":n")[2] in done.problem
    assert work.metas("pack", "b")[0].job_id == moved
    work.broker.command("DEL", work.keys.stream("ship", "b"))
    work.broker.command("XGROUP", "CREATE", work.keys.stream("ship", "b"), "w", "0", "MKSTREAM")
    done = work.reap()
    assert (done.moved, done.pending, done.gone, done.problem) == (1, 0, True, "")
    assert work.metas("ship", "b")[0].job_id == stuck


def test_hand_back_keeps_what_the_lane_does_not_take(work: Workbench) -> None:
    work.register(task("ship"), task("pack"))
    work.submit("ship")
    work.submit("pack")
    one, other = sorted(work.fetch(2), key=lambda taken: taken.task)
    _exhaust(work, "ship", "b")
    assert work.hand_back(one, other) == 1
    assert (work.pending("ship"), work.lengths("pack")) == (1, "b1")
    with pytest.raises(ReplyError, match="exhausted"):
        work.hand_back(other)


def test_promote_puts_off_what_the_lane_does_not_take(work: Workbench) -> None:
    work.register(task("ship"), task("pack"))
    stuck = work.submit("ship", delay_s=0.0)
    work.submit("pack", delay_s=0.0)
    _exhaust(work, "ship", "n")
    done = work.broker.run(lease.promote(work.keys, work.epoch, 10))
    assert done.count == 1
    assert [job_id for job_id, _ in done.put_off] == [stuck]
    assert work.broker.command("ZSCORE", work.keys.delayed, stuck) is not None
    assert done.next_us is not None
    assert done.next_us > 5_000_000


def test_promote_passes_on_what_it_can_not_read(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", delay_s=0.0)
    work.broker.command("HSET", work.keys.delayed_jobs, job_id, GARBAGE)
    assert work.promote()[0] == 1
    [(_, fields)] = work.lane("ship", "n")
    assert fields == {b"packed": GARBAGE.encode()}


def test_retry_dead_keeps_what_the_lane_does_not_take(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    work.fail(work.take())
    _exhaust(work, "ship", "n")
    with pytest.raises(ReplyError, match="exhausted"):
        work.broker.run(admin.retry_dead(work.keys, [job_id]))
    assert work.dead_ids() == [job_id]


def test_a_tick_that_the_lane_does_not_take_is_not_passed_over(work: Workbench) -> None:
    call = _tick(work)
    _exhaust(work, "tidy", "n")
    with pytest.raises(ReplyError, match="exhausted"):
        work.broker.run(call)
    assert work.hash(work.keys.cursors)["tidy"] == "0"


def test_a_submit_that_the_lane_does_not_take_says_so_and_the_others_are_queued(work: Workbench) -> None:
    work.register(task("ship"), task("pack"))
    _exhaust(work, "ship", "n")
    jobs = [Submission("ship", b"{}", idempotency_key="k"), Submission("pack", b"{}")]
    refused, queued = work.broker.run(client.submit(work.keys, [(job, None) for job in jobs], "n"))
    assert isinstance(refused, client.Refused)
    assert "exhausted" in refused.text
    assert work.lane("pack", "n")[0][0].decode() in str(queued)
    with pytest.raises(ReplyError, match="exhausted"):
        work.broker.submit(jobs[0])


def test_fetch_gives_what_it_took_beside_what_it_could_not_read(work: Workbench) -> None:
    work.register(task("pack"), task("ship", max_concurrency=1), task("tidy"))
    ids = {work.submit("pack"), work.submit("tidy")}
    work.broker.command("HSET", work.keys.limits, "ship", GARBAGE)
    call = worker.fetch(work.keys, work.epoch, CONSUMER, work.names, budget=10, lanes=["hnb"] * 3, most_limited=1)
    got = work.broker.run(call)
    assert {f"{name}:{lane}{entries[0][0].decode()}" for name, lane, entries in got.entries} == ids
    assert got.problem is not None
    again = work.broker.run(call)  # no error: a worker that finds no job beside it goes on as well
    assert (again.entries, again.problem) == ([], got.problem)
