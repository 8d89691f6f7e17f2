"""A schedule that is due, and the leader's tick of it."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from upnext.core.entry import Meta
from upnext.core.schedules import ScheduleSpec, encode
from upnext.core.spec import CronSpec
from upnext.engine.calls import lease
from upnext.engine.calls import schedules as calls
from upnext.engine.redis.scripts import Call

MINUTE_MS = 60_000


def spec(name: str = "nightly", of: str = "ship", **options: object) -> ScheduleSpec:
    when = CronSpec("* * * * *", **options)  # type: ignore[arg-type]
    return ScheduleSpec(name, of, when)


def lead(work: Workbench, daemon: str = "d1") -> None:
    """The leadership that there is counts as ended."""
    ended = ""
    for _ in range(2):
        call = lease.beat(
            work.keys,
            work.epoch,
            daemon=daemon,
            token="t",
            lease_ms=1,
            leadership_ms=-1,
            consumers=[],
            ended_leadership=ended,
        )
        ended = work.broker.run(call).leadership


def ready(work: Workbench, made: ScheduleSpec | None = None, arguments: bytes = b'{"order_id":"A1"}') -> int:
    """A schedule whose cursor is long ago. -> a tick that is due."""
    made = made or spec()
    work.register(task("ship"))
    lead(work)
    assert work.broker.run(calls.set_schedule(work.keys, made, arguments)) == calls.NEW
    work.broker.command("HSET", work.keys.schedules_state, made.name, 0)
    return work.now_ms() // MINUTE_MS * MINUTE_MS


def tick(
    work: Workbench, made: ScheduleSpec, tick_ms: int, *, term: int = 1, fire: bool = True
) -> tuple[int, int | str]:
    call: Call[tuple[int, int | str]] = lease.tick(
        work.keys,
        work.epoch,
        term=term,
        cron=made.name,
        tick_ms=tick_ms,
        payload=b"{}",
        meta=Meta(tick_ms=tick_ms),
        fire=fire,
        overlap=made.when.overlap,
        schedule=(made, encode(made)),
    )
    return work.broker.run(call)
