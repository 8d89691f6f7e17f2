"""What daemons announce, and what becomes of crons, handlers and tasks when they stop, restart or run other code."""

from __future__ import annotations

import json

import pytest

from tests.support.fleet import Fleet, task
from upnext.core import cron as cron_rules
from upnext.core import ownership
from upnext.core.spec import CronSpec, TaskKind, TaskSpec
from upnext.engine.attempt import CURRENT
from upnext.engine.calls import admin
from upnext.engine.calls import ownership as ownership_module
from upnext.engine.scheduler import announcements, cron_loop, scheduler
from upnext.engine.worker import membership

EVERY_SECOND = CronSpec("* * * * * *")
NEVER_SOON = CronSpec("0 0 1 1 *")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announcements every 0.1 s, which count for 2 s."""
    monkeypatch.setattr(scheduler, "ANNOUNCE_S", 0.1)
    for module in (announcements, ownership, scheduler):
        monkeypatch.setattr(module, "ANNOUNCER_LEASE_MS", 2_000)
    monkeypatch.setattr(scheduler, "BEAT_S", 0.2)
    for module in (membership, scheduler):
        monkeypatch.setattr(module, "LEASE_MS", 2_000)


def cron(name: str, when: CronSpec = NEVER_SOON) -> TaskSpec:
    async def run() -> int:
        assert CURRENT.get() is not None
        return 1

    return task(run, name=name, cron=when)


def handler(name: str, event: str = "paid") -> TaskSpec:
    async def run() -> int:
        return 1

    return task(run, name=name, event=event)


async def names(fleet: Fleet, key: str) -> set[str]:
    return {name.decode() for name in await fleet.command("HKEYS", key)}


async def turns(fleet: Fleet, count: int = 3) -> None:
    """So many announcements of each daemon have come and gone, each with its tidying."""
    before: dict[bytes, bytes] = {}

    async def all_renewed() -> bool:
        flat = await fleet.command("ZRANGE", fleet.keys.announced, 0, -1, "WITHSCORES")
        now = dict(zip(flat[::2], flat[1::2], strict=True))
        return all(
            daemon.encode() in now and now[daemon.encode()] != before.get(daemon.encode()) for daemon in fleet.daemons
        )

    for _ in range(count + 1):
        await fleet.until(all_renewed)
        flat = await fleet.command("ZRANGE", fleet.keys.announced, 0, -1, "WITHSCORES")
        before |= dict(zip(flat[::2], flat[1::2], strict=True))


async def test_two_daemons_with_only_take_nothing_from_each_other(redis_url: str, namespace: str) -> None:
    first, second, mail, stock = cron("first"), cron("second"), handler("mail"), handler("stock")
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(first, mail, daemon="d1", generation_ms=1)
        await fleet.scheduler("d1", first, mail, declared=[second, stock], generation_ms=1)
        await fleet.worker(second, stock, daemon="d2", generation_ms=2)
        await fleet.scheduler("d2", second, stock, declared=[first, mail], generation_ms=2)
        await turns(fleet)
        assert await names(fleet, fleet.keys.crons) == {"first", "second"}
        assert await names(fleet, fleet.keys.event("paid")) == {"paid.mail", "paid.stock"}


async def test_an_old_host_that_restarts_takes_nothing(redis_url: str, namespace: str) -> None:
    kept, new, mail, stock = cron("kept"), cron("new", EVERY_SECOND), handler("mail"), handler("stock")
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(kept, new, mail, stock, daemon="d-new", generation_ms=10)
        await fleet.scheduler("d-new", kept, new, mail, stock, generation_ms=10)
        await turns(fleet, 1)
        await fleet.worker(kept, mail, daemon="d-old", generation_ms=20)
        await fleet.scheduler("d-old", kept, mail, generation_ms=20)
        await turns(fleet)
        assert await names(fleet, fleet.keys.crons) == {"kept", "new"}
        assert await names(fleet, fleet.keys.event("paid")) == {"paid.mail", "paid.stock"}


async def test_the_new_host_may_restart_meanwhile(redis_url: str, namespace: str) -> None:
    new, stock, kept = cron("new"), handler("stock"), cron("kept")
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(new, stock, kept, daemon="d-new", generation_ms=10)
        await fleet.scheduler("d-new", new, stock, kept, generation_ms=10)
        await turns(fleet, 1)
        await life.stop()
        await fleet.no_scheduler()
        await fleet.worker(kept, daemon="d-old", generation_ms=20)
        await fleet.scheduler("d-old", kept, generation_ms=20)
        await turns(fleet)
        assert await names(fleet, fleet.keys.crons) == {"kept", "new"}
        assert await names(fleet, fleet.keys.event("paid")) == {"paid.stock"}


async def test_what_it_dropped_goes_with_its_host(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "GRACE_MS", -2_000)
    gone, kept, mail = cron("gone"), cron("kept"), handler("mail")
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(gone, kept, mail, daemon="d1", generation_ms=10)
        await fleet.scheduler("d1", gone, kept, mail, generation_ms=10)
        await turns(fleet, 1)
        await fleet.worker(kept, daemon="d2", generation_ms=20)
        await fleet.scheduler("d2", kept, generation_ms=20)
        await turns(fleet, 1)
        assert await names(fleet, fleet.keys.crons) == {"gone", "kept"}, "it is served"
        await life.stop()
        await fleet.no_scheduler()
        await fleet.scheduler("d2", kept, generation_ms=20)

        async def left() -> bool:
            return await names(fleet, fleet.keys.tasks) == {"kept"}

        await fleet.until(left)
        assert await names(fleet, fleet.keys.crons) == {"kept"}
        assert await fleet.command("EXISTS", fleet.keys.event("paid")) == 0
        assert await fleet.leaks() == []


async def test_a_cron_that_lapsed_catches_up_when_it_comes_back(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ownership.LAPSE_MS, TaskKind.CRON, -2_000)
    monkeypatch.setattr(cron_loop, "LAPSE_MS", 60_000)
    tidy, mail = cron("tidy", EVERY_SECOND), handler("mail")
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(tidy, mail, daemon="d1")
        await fleet.scheduler("d1", tidy, mail)
        await turns(fleet, 1)
        await life.stop()
        await fleet.no_scheduler()
        await fleet.scheduler("d2", cron("other"), service="another")

        async def lapsed() -> bool:
            return "tidy" not in await names(fleet, fleet.keys.tasks)

        await fleet.until(lapsed)
        cursor = await fleet.command("HGET", fleet.keys.cursors, "tidy")
        assert cursor is not None
        assert await names(fleet, fleet.keys.event("paid")) == {"paid.mail"}, "events wait for workers that are away"
        await fleet.no_scheduler()
        await fleet.worker(tidy, mail, daemon="d1", generation_ms=9)
        assert await fleet.command("HGET", fleet.keys.cursors, "tidy") == cursor


async def test_code_that_is_being_developed_leaves_nothing(redis_url: str, namespace: str) -> None:
    tidy, mail = cron("tidy"), handler("mail")
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(tidy, mail, daemon="local-1", passing=True)
        await fleet.scheduler("local-1", tidy, mail, returns=False, passing=True)
        await turns(fleet, 1)
        assert await names(fleet, fleet.keys.crons) == {"tidy"}
        await life.stop()
        await fleet.no_scheduler()
        for key in (fleet.keys.tasks, fleet.keys.crons, fleet.keys.event("paid"), fleet.keys.announcers):
            assert await names(fleet, key) == set()


async def test_a_renamed_task_goes_once_its_jobs_have_ended(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "JOBS_AGAIN_MS", 0)

    async def run() -> int:
        return 1

    old, new = task(run, name="old"), task(run, name="new")
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(old)
        await fleet.scheduler("d1", old)
        await turns(fleet, 1)
        await life.stop()
        await fleet.no_scheduler()
        queued = await fleet.submit("old")
        delayed = await fleet.submit("old", of={"delay_s": 3600})
        await fleet.worker(new, generation_ms=2)
        await fleet.scheduler("d1", new, generation_ms=2)
        await turns(fleet)
        assert await names(fleet, fleet.keys.tasks) == {"old", "new"}
        await fleet.broker.cancel(queued)
        await turns(fleet)
        assert await names(fleet, fleet.keys.tasks) == {"old", "new"}, "it has a delayed job"
        await fleet.broker.cancel(delayed)

        async def renamed() -> bool:
            return await names(fleet, fleet.keys.tasks) == {"new"}

        await fleet.until(renamed)


async def test_what_was_removed_by_mistake_is_registered_again(redis_url: str, namespace: str) -> None:
    tidy, mail = cron("tidy"), handler("mail")
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(tidy, mail)
        await fleet.scheduler("d1", tidy, mail)
        await turns(fleet, 1)
        await fleet.command("DEL", fleet.keys.crons, fleet.keys.tasks, fleet.keys.event("paid"))

        async def back() -> bool:
            return (await names(fleet, fleet.keys.crons), await names(fleet, fleet.keys.event("paid"))) == (
                {"tidy"},
                {"paid.mail"},
            )

        await fleet.until(back)


async def test_bad_rows_end_no_leadership_and_are_named_once(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    tidy = cron("tidy")
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(tidy)
        leader = await fleet.scheduler("d1", tidy)
        await turns(fleet, 1)
        await fleet.command("HSET", fleet.keys.tasks, "bad", "no JSON")
        await turns(fleet)
        assert sum("can't be read" in line for line in caplog.messages) == 1
        await fleet.command("DEL", fleet.keys.seen)
        await fleet.command("SET", fleet.keys.seen, "of another type")
        await fleet.until(lambda: any("held a string, not a hash" in line for line in caplog.messages))
        assert leader.leader
        await turns(fleet)
        assert await names(fleet, fleet.keys.tasks) == {"bad", "tidy"}


async def test_a_skew_is_one_line(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ownership, "SKEW_AFTER_MS", 0)

    async def ship() -> int:
        return 1

    async def other(order_id: str = "") -> int:
        return len(order_id)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship))
        await fleet.scheduler("d1", task(ship), host_name="host-1")
        await fleet.scheduler("d2", task(other, name="ship"), host_name="host-2")
        await turns(fleet)
        [line] = [line for line in caplog.messages if "different code" in line]
        assert "host-1, host-2" in line
        assert "order_id" in line


async def test_definitions_of_an_older_version_are_given_their_time(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship))
        row = {"service": "worker", "kind": "task", "event": None, "generation_ms": 1}
        await fleet.command("HSET", fleet.keys.tasks, "of_old", json.dumps(row))
        await fleet.scheduler("d1", task(ship))
        await turns(fleet)
        assert await names(fleet, fleet.keys.tasks) == {"of_old", "ship"}
        assert "of_old" in await names(fleet, fleet.keys.seen)


async def test_nothing_is_removed_right_after_the_server_s_clock_was_set(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "ANNOUNCER_LEASE_MS", 60_000)  # how long it is not trusted, too
    monkeypatch.setitem(ownership.LAPSE_MS, TaskKind.CRON, -2_000)
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(cron("tidy"), daemon="d1")
        await fleet.scheduler("d1", cron("tidy"))
        await turns(fleet, 1)
        monkeypatch.setattr(announcements, "CLOCK_STEP_MS", -1)  # the next look finds that it was
        await turns(fleet, 1)
        monkeypatch.setattr(announcements, "CLOCK_STEP_MS", 5_000)
        row = {"owner": "away", "kind": "cron", "daemon": "d9", "last_seen_ms": 1, "schedule": "* * * * *"}
        await fleet.command("HSET", fleet.keys.crons, "away", json.dumps(row))
        await turns(fleet)
        assert await names(fleet, fleet.keys.crons) == {"away", "tidy"}


async def test_limits_of_operators_are_put_in_force_again(redis_url: str, namespace: str) -> None:
    """A version that doesn't know of them writes the declared ones at each start of a worker."""

    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        limited, lifted = task(ship, max_concurrency=5), task(ship, name="lifted", max_concurrency=5)
        await fleet.worker(limited, lifted)
        await fleet.broker.run(ownership_module.set_limits(fleet.keys, "ship", {"concurrency": 1}))
        await fleet.broker.run(ownership_module.set_limits(fleet.keys, "lifted", None))
        for name in ("ship", "lifted"):
            await fleet.command("HSET", fleet.keys.limits, name, '{"concurrency":5}')
        await fleet.scheduler("d1", limited, lifted)

        async def enforced() -> bool:
            flat = await fleet.command("HGETALL", fleet.keys.limits)
            return flat == [b"ship", b'{"concurrency":1}']

        await fleet.until(enforced)


async def test_a_paused_cron_makes_no_ticks_that_pile_up(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cron_rules, "MISSED_AFTER_S", 1.5)
    async with Fleet(redis_url, namespace) as fleet:
        tidy, other = cron("tidy", EVERY_SECOND), cron("other", EVERY_SECOND)
        await fleet.worker(tidy, other)
        await fleet.scheduler("d1", tidy, other)

        async def ran(name: str) -> int:
            return (await fleet.stats()).get(f"{name}:done", 0)

        async def ticked(name: str, before: int, count: int) -> None:
            async def more() -> bool:
                return await ran(name) >= before + count

            await fleet.until(more)

        await ticked("tidy", 0, 1)
        await fleet.broker.run(admin.pause_task(fleet.keys, "tidy"))
        await ticked("other", await ran("other"), 1)  # a tick of the moment of the pause is in its lane by now
        before, piled = await ran("tidy"), await fleet.lengths("tidy")
        await ticked("other", await ran("other"), 3)
        assert await fleet.lengths("tidy") == piled
        await fleet.broker.run(admin.resume_task(fleet.keys, "tidy"))
        begun = await ran("other")
        await ticked("tidy", before, 2)
        waiting = sum(int(part[1:]) for part in piled.split())
        most = before + waiting + 2 + await ran("other") - begun
        assert await ran("tidy") <= most, "what waited, the newest that was missed, and those since"
