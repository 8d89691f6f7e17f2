"""Schedules that are made at run time: fired as crons are, kept whatever registers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

import upnext
from tests.integration.lua_harness import Workbench
from tests.integration.made_schedules import MINUTE_MS, ready, spec, tick
from tests.support.servers import Server
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.entry import Meta
from upnext.core.keys import Keys
from upnext.engine.calls import schedules as calls
from upnext.engine.calls.lease import FIRED, GONE, HELD, PASSED, PAUSED, UNKNOWN
from upnext.engine.views import crons
from upnext.errors import InvalidArgumentsError, PayloadTooLargeError, UsageError

EVERY_SECOND = "* * * * * *"


def test_a_tick_starts_one_job_with_the_arguments_that_are_kept(work: Workbench) -> None:
    made = spec()
    tick_ms = ready(work, made)
    kind, entry_id = tick(work, made, tick_ms)
    assert kind == FIRED
    [(found, fields)] = work.lane("ship", "n")
    assert (found.decode(), fields[b"p1"]) == (entry_id, b'{"order_id":"A1"}')
    assert work.metas("ship", "n") == [Meta(tick_ms=tick_ms)]
    before = work.everything()
    assert tick(work, made, tick_ms) == (PASSED, tick_ms), "once ever"
    assert work.everything() == before
    [listed] = crons.schedules(work.broker, work.keys)
    assert (listed.last_ms, listed.task, listed.waits, listed.service) == (tick_ms, "ship", None, "orders")


def test_a_tick_of_what_was_changed_or_removed_meanwhile_fires_nothing(work: Workbench) -> None:
    made = spec()
    tick_ms = ready(work, made)
    other = spec(of="pack")
    work.broker.run(calls.set_schedule(work.keys, other, b"{}"))
    before = work.everything()
    assert tick(work, made, tick_ms) == (GONE, 0)
    assert work.everything() == before
    assert work.broker.run(calls.remove_schedule(work.keys, "nightly"))
    assert tick(work, other, tick_ms) == (GONE, 0)
    assert work.hash(work.keys.schedules_state) == work.hash(work.keys.schedules_arguments) == {}
    assert not work.broker.run(calls.remove_schedule(work.keys, "nightly"))


def test_it_waits_while_it_or_its_task_is_paused_or_unknown_and_its_cursor_stays(work: Workbench) -> None:
    made = spec()
    tick_ms = ready(work, made)
    assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=True)) == calls.CHANGED
    assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=True)) == calls.UNCHANGED
    assert tick(work, made, tick_ms) == (PAUSED, 0)
    assert crons.schedule(work.broker, work.keys, "nightly").waits == "it is paused"
    work.broker.run(calls.set_schedule(work.keys, made, b"{}"))
    assert crons.schedule(work.broker, work.keys, "nightly").paused, "an operator's pause stays"
    assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=False)) == calls.CHANGED
    work.broker.command("SADD", work.keys.paused, "ship")
    assert tick(work, made, tick_ms) == (PAUSED, 0)
    assert crons.schedule(work.broker, work.keys, "nightly").waits == "its task ship is paused"
    work.broker.command("SREM", work.keys.paused, "ship")
    definition = work.broker.command("HGET", work.keys.tasks, "ship")
    work.broker.command("HDEL", work.keys.tasks, "ship")
    assert tick(work, made, tick_ms) == (UNKNOWN, 0)
    assert crons.schedule(work.broker, work.keys, "nightly").waits == "its task ship is not registered"
    assert work.hash(work.keys.schedules_state) == {"nightly": "0"}
    work.broker.command("HSET", work.keys.tasks, "ship", definition)
    assert tick(work, made, tick_ms)[0] == FIRED
    assert work.broker.run(calls.switch_schedule(work.keys, "other", paused=True)) == calls.UNKNOWN


def test_no_overlap(work: Workbench) -> None:
    made = spec(overlap=False)
    tick_ms = ready(work, made)
    kind, entry_id = tick(work, made, tick_ms - MINUTE_MS)
    assert kind == FIRED
    assert tick(work, made, tick_ms) == (HELD, f"ship:n{entry_id}")
    assert crons.schedule(work.broker, work.keys, "nightly").skipped == 1
    work.finish(work.take())
    work.broker.command("HSET", work.keys.schedules_state, "nightly", 0)
    assert tick(work, made, tick_ms)[0] == FIRED, "the job's end has freed it"


# -- by the public interface, with schedulers that run


@pytest.fixture
def count(server: Server, namespace: str) -> Callable[[str], int]:
    """How often a task has run."""
    return lambda name: int(server.cli("HGET", Keys(namespace).stats, f"{name}:done") or 0)


def service(seen: list[str]) -> upnext.Worker:
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def report(kind: str, copies: int = 1) -> None:
        context = upnext.get_current_context()
        one = await upnext.job(context.job_id)
        seen.append(f"{kind} {copies} {one.labels}")

    return worker


async def test_a_schedule_runs_its_task_with_its_arguments_until_it_is_removed(redis_url: str, namespace: str) -> None:
    seen: list[str] = []
    worker = service(seen)
    report = worker.tasks["report"]
    async with serving(worker, redis_url, namespace):
        made = await upnext.schedule("sales", report.options(labels={"of": "A"}), cron=EVERY_SECOND, args=("sales",))
        assert (made.name, made.task, made.cron, made.waits) == ("sales", "report", EVERY_SECOND, None)
        again = await upnext.schedule(
            "by-name", "report", every=timedelta(seconds=1), kwargs={"kind": "x", "copies": 2}
        )
        assert (again.every_s, again.cron) == (1.0, None)
        await wait_until_async(lambda: "sales 1 {'schedule': 'sales', 'of': 'A'}" in seen, 20)
        await wait_until_async(lambda: seen.count("x 2 {'schedule': 'by-name'}") >= 2, 20)
        assert await upnext.pause_schedule("by-name")
        assert not await upnext.pause_schedule("by-name")
        assert [(one.name, one.paused) for one in await upnext.schedules()] == [("by-name", True), ("sales", False)]
        assert await asyncio.to_thread(upnext.resume_schedule_sync, "by-name")
        assert await upnext.remove_schedule("sales")
        assert not await upnext.remove_schedule("sales")
        assert [one.name for one in await upnext.schedules()] == ["by-name"]


async def test_it_outlives_its_service_and_waits_for_its_task(
    redis_url: str, namespace: str, count: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ticks of the time without the task are one gap: the newest runs when the task is there."""
    other = upnext.Worker("other")

    @other.task
    async def nothing() -> None: ...

    async with serving(other, redis_url, namespace):
        with pytest.raises(UsageError, match="report"):
            await upnext.schedule("sales", "report", every=1, kwargs={"kind": "x"})
        made = await upnext.schedule("sales", "report", every=1, kwargs={"kind": "x"}, check=False)
        assert made.waits == "its task report is not registered"
    seen: list[str] = []
    async with serving(service(seen), redis_url, namespace):
        await wait_until_async(lambda: count("report") >= 2, 40)
        [found] = await upnext.schedules()
        assert found.waits is None


async def test_two_schedulers_start_one_job_for_each_tick(server: Server, redis_url: str, namespace: str) -> None:
    ticks: list[int] = []
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def note() -> None:
        ticks.append(1)

    async with serving(worker, redis_url, namespace, copies=2):
        await upnext.schedule("often", note, cron=EVERY_SECOND)
        state = Keys(namespace).schedules_state
        begun = int(server.cli("HGET", state, "often"))
        await wait_until_async(lambda: len(ticks) >= 4, 30)
        await upnext.remove_schedule("often")
        assert len(ticks) <= (int(server.cli("TIME")[0]) * 1000 - begun) / 1000 + 1


async def test_what_can_not_be_meant(redis_url: str, namespace: str) -> None:
    worker = service([])
    report = worker.tasks["report"]
    async with serving(worker, redis_url, namespace):
        for options, words in (
            ({}, "one of them"),
            ({"cron": EVERY_SECOND, "every": 5}, "one of them"),
            ({"every": 0.5}, "at least 1 second"),
            ({"cron": "61 * * * *"}, "minute"),
            ({"cron": "0 0 30 2 *"}, "never due"),
            ({"cron": "0 9 * * *", "timezone": "Mars/Base"}, "no time zone"),
            ({"every": 5, "missed_run_policy": "often"}, "missed_run_policy"),
            ({"every": 5, "overlap": 1}, "overlap must be True or False"),
        ):
            with pytest.raises(UsageError, match=words):
                await upnext.schedule("odd", report, kwargs={"kind": "x"}, **options)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="without spaces"):
            await upnext.schedule("two words", report, every=5, kwargs={"kind": "x"})
        with pytest.raises(UsageError, match="a schedule says when"):
            await upnext.schedule("odd", report.options(delay=5), every=5, kwargs={"kind": "x"})
        with pytest.raises(InvalidArgumentsError, match="lacks argument 'kind'"):
            await upnext.schedule("odd", report, every=5)
        with pytest.raises(InvalidArgumentsError, match="unexpected argument 'sort'"):
            await upnext.schedule("odd", "report", every=5, kwargs={"kind": "x", "sort": 1})
        with pytest.raises(PayloadTooLargeError, match="over the cap of 65,536"):
            await upnext.schedule("odd", report, every=5, kwargs={"kind": "x" * 70_000})
        with pytest.raises(UsageError, match=r"no schedule 'odd' is known here \(known: none\)"):
            await upnext.resume_schedule("odd")
        assert await upnext.schedules() == []


async def test_a_declared_cron_has_arguments(redis_url: str, namespace: str) -> None:
    seen: list[str] = []
    worker = upnext.Worker("w")

    @worker.cron(EVERY_SECOND, args=("sales",), kwargs={"copies": 3})
    async def report(kind: str, copies: int = 1) -> None:
        seen.append(f"{kind} {copies}")

    async with serving(worker, redis_url, namespace):
        await wait_until_async(lambda: "sales 3" in seen, 20)
