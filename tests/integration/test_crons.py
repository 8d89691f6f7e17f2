"""Crons at full length, through services that come, go and change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.servers import Server
from tests.support.serving import running
from tests.support.waiting import wait_until_async
from upnext import MissedRunPolicy, Worker
from upnext.core.keys import Keys

HOUR_MS = 3_600_000


def service(**schedules: Any) -> Worker:
    worker = Worker("w", concurrency=10)
    for name, given in schedules.items():
        options = dict(given) if isinstance(given, dict) else {"schedule": given}

        async def cron() -> None: ...

        cron.__name__ = name
        worker.cron(options.pop("schedule"), **options)(cron)
    return worker


@pytest.fixture
def count(server: Server, namespace: str) -> Callable[[str], int]:
    """How often a cron has run."""
    return lambda cron: int(server.cli("HGET", Keys(namespace).stats, f"{cron}:done") or 0)


@pytest.fixture
def known(server: Server, namespace: str) -> Callable[[], set[str]]:
    return lambda: {name.decode() for name in server.cli("HKEYS", Keys(namespace).crons)}


@pytest.fixture
def queued(server: Server, namespace: str) -> Callable[[str], int]:
    """How many jobs of a cron have not ended."""
    keys = Keys(namespace)
    return lambda cron: sum(server.cli("XLEN", stream) for stream in keys.streams(cron))


async def test_a_cron_removed_from_the_code_stops_and_a_changed_one_moves(
    redis_url: str,
    namespace: str,
    count: Callable[[str], int],
    known: Callable[[], set[str]],
    queued: Callable[[str], int],
) -> None:
    async with running(redis_url, namespace, service(kept="* * * * * *", gone="* * * * * *", moved="* * * * * *")):
        await wait_until_async(lambda: min(map(count, ("kept", "gone", "moved"))) >= 1, 5, "each to tick")
    async with running(redis_url, namespace, service(kept="* * * * * *", moved="0 0 1 1 *")):
        await wait_until_async(lambda: known() == {"kept", "moved"}, 5, "the old one to be forgotten")
        await wait_until_async(lambda: not queued("moved"), 5, "the last of its former ticks to have run")
        before = count("kept"), count("gone"), count("moved")
        await wait_until_async(lambda: count("kept") >= before[0] + 2, 5, "two more ticks")
        assert (count("gone"), count("moved")) == before[1:]
    async with running(redis_url, namespace, service(kept="0 0 1 1 *", moved="*/1 * * * * *")):
        before, begun = (count("moved"), count("kept")), time.monotonic()
        await wait_until_async(lambda: count("moved") >= before[0] + 2, 5, "the moved one to tick again")
        assert count("moved") <= before[0] + 2 + (time.monotonic() - begun), (
            "what it would have ticked meanwhile is no missed run of the new schedule"
        )


@pytest.mark.parametrize(
    ("policy", "most_s", "runs"),
    [
        (MissedRunPolicy.CATCH_UP, None, 4),
        (MissedRunPolicy.CATCH_UP, 2 * 3600, 2),
        (MissedRunPolicy.LATEST_ONLY, None, 1),
        (MissedRunPolicy.LATEST_ONLY, 60, 0),
        (MissedRunPolicy.SKIP, None, 0),
    ],
)
async def test_missed_runs(
    server: Server,
    redis_url: str,
    namespace: str,
    count: Callable[[str], int],
    policy: MissedRunPolicy,
    most_s: int | None,
    runs: int,
) -> None:
    """Everybody was away for four ticks of an hourly cron."""
    minute = (time.gmtime().tm_min + 30) % 60  # half an hour from now, either way
    keys = Keys(namespace)

    def now() -> Worker:
        hourly = {"schedule": f"{minute} * * * *", "missed_run_policy": policy, "max_catch_up_seconds": most_s}
        return service(hourly=hourly, every_second="* * * * * *")

    async with running(redis_url, namespace, now()):
        pass
    away = int(time.time() * 1000) - 4 * HOUR_MS
    server.cli("HSET", keys.cursors, "hourly", away)
    async with running(redis_url, namespace, now()):
        await wait_until_async(
            lambda: int(server.cli("HGET", keys.cursors, "hourly")) > away + 3 * HOUR_MS, 8, "the cursor to move on"
        )
        ticked = count("every_second")
        await wait_until_async(
            lambda: count("every_second") > ticked + 1 and count("hourly") >= runs, 8, "what was due to have run"
        )
        assert count("hourly") == runs


async def test_a_time_zone_and_six_fields(
    server: Server, redis_url: str, namespace: str, count: Callable[[str], int]
) -> None:
    """The wall clock of Kathmandu is 5 h 45 min ahead: a cron of this very minute there ticks, the same of UTC does not."""
    ahead = time.gmtime(time.time() + 5.75 * 3600)
    hours = f"{ahead.tm_hour},{(ahead.tm_hour + 1) % 24}"  # it may end while this runs
    there = {"schedule": f"* * {hours} * * *", "timezone": "Asia/Kathmandu"}
    here = {"schedule": f"* * {hours} * * *"}
    async with running(redis_url, namespace, service(there=there, here=here)):
        await wait_until_async(lambda: count("there") >= 1, 5)
        assert count("here") == 0


async def test_how_late_ticks_are(server: Server, redis_url: str, namespace: str) -> None:
    worker, late_ms = Worker("w", concurrency=4), list[float]()

    @worker.cron("* * * * * *")
    async def every_second() -> None:
        late_ms.append(time.time() % 1 * 1000)

    async with running(redis_url, namespace, worker):
        # A machine that is busy may start some late, not all of them.
        await wait_until_async(lambda: len(late_ms) >= 5 and sorted(late_ms)[1] < 100, 10, "ticks to be on time")
    late_ms.sort()
    print(f"started after the tick, ms: median {late_ms[len(late_ms) // 2]:.1f}, most {late_ms[-1]:.1f}")


@pytest.mark.parametrize(
    ("policy", "runs"), [(MissedRunPolicy.CATCH_UP, 4), (MissedRunPolicy.LATEST_ONLY, 1), (MissedRunPolicy.SKIP, 0)]
)
async def test_a_pause_is_one_gap(
    server: Server,
    redis_url: str,
    namespace: str,
    count: Callable[[str], int],
    queued: Callable[[str], int],
    policy: MissedRunPolicy,
    runs: int,
) -> None:
    """Four ticks fall due while the cron is paused. None is queued, and when it is resumed the policy decides."""
    minute = (time.gmtime().tm_min + 30) % 60
    keys = Keys(namespace)
    worker = service(hourly={"schedule": f"{minute} * * * *", "missed_run_policy": policy}, every_second="* * * * * *")
    async with running(redis_url, namespace, worker):
        await wait_until_async(lambda: count("every_second") >= 1, 5, "the crons to run")
        server.cli("SADD", keys.paused, "hourly")
        away = int(time.time() * 1000) - 4 * HOUR_MS
        server.cli("HSET", keys.cursors, "hourly", away)
        ticked = count("every_second")
        await wait_until_async(lambda: count("every_second") > ticked + 2, 10, "some turns")
        assert (queued("hourly"), count("hourly")) == (0, 0)
        assert int(server.cli("HGET", keys.cursors, "hourly")) == away
        server.cli("SREM", keys.paused, "hourly")
        await wait_until_async(
            lambda: int(server.cli("HGET", keys.cursors, "hourly")) > away + 3 * HOUR_MS, 8, "the cursor to move on"
        )
        ticked = count("every_second")
        await wait_until_async(
            lambda: count("every_second") > ticked + 1 and count("hourly") >= runs, 8, "what was due to have run"
        )
        assert count("hourly") == runs


@pytest.mark.parametrize(("policy", "most"), [(MissedRunPolicy.LATEST_ONLY, 1), (MissedRunPolicy.SKIP, 0)])
async def test_a_short_pause_is_a_gap_too(
    server: Server,
    redis_url: str,
    namespace: str,
    count: Callable[[str], int],
    queued: Callable[[str], int],
    policy: MissedRunPolicy,
    most: int,
) -> None:
    """Ticks less than a minute old are late as a rule, and run under every policy; those of a pause are missed."""
    keys = Keys(namespace)
    worker = service(ticks={"schedule": "* * * * * *", "missed_run_policy": policy}, clock="* * * * * *")
    async with running(redis_url, namespace, worker):
        await wait_until_async(lambda: count("ticks") >= 1, 5, "the cron to run")
        server.cli("SADD", keys.paused, "ticks")
        ticked = count("clock")
        await wait_until_async(lambda: count("clock") > ticked + 4, 20, "some ticks of the pause")
        before, cursor = count("ticks") + queued("ticks"), int(server.cli("HGET", keys.cursors, "ticks"))
        resumed = int(time.time() * 1000)
        server.cli("SREM", keys.paused, "ticks")
        await wait_until_async(lambda: count("ticks") >= before + 3, 20, "it to run again")
        ran, now = count("ticks") + queued("ticks") - before, int(server.cli("HGET", keys.cursors, "ticks"))
        assert resumed - cursor > 3000, "there was a gap"
        assert ran <= most + (now - resumed) // 1000 + 1
