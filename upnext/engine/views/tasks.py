"""Registered tasks as a person sees and steers them: depths and rates, pause, resume, purge."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from upnext.core import ownership
from upnext.core.keys import LANE_LETTERS, Keys
from upnext.core.ownership import owner_of
from upnext.core.spec import RateLimit
from upnext.engine.calls import admin, inspect
from upnext.engine.calls import ownership as ownership_module
from upnext.engine.calls.inspect import TaskFacts
from upnext.engine.calls.worker import RATE_BUCKET_S
from upnext.engine.redis.scripts import Call, run_calls_blocking
from upnext.engine.views.jobs import Transport
from upnext.errors import UsageError

_LOOK = 2000


@dataclass(frozen=True, slots=True)
class Task:
    """One registered task. `done` and `failed` count all ends ever; failed takes those that crashed in. `dead` counts dead letters."""

    name: str
    kind: str
    service: str
    signature: str
    event: str | None
    queued: int
    running: int
    delayed: int
    dead: int
    done: int
    failed: int
    rate_per_s: float
    paused: bool
    limits: dict[str, Any] | None
    options: dict[str, Any]
    skew: ownership.Skew | None = None
    unreadable: str | None = None
    """Why its definition or its limits can't be read."""


def tasks(transport: Transport, keys: Keys, now_ms: int) -> list[Task]:
    """All registered tasks by name. `now_ms` is the caller's clock; `rate_per_s` is over the last minute."""
    delayed, dead = _counts(transport, keys, dead=False), _counts(transport, keys, dead=True)
    return tasks_with(transport, keys, now_ms, delayed, dead, skews(transport, keys))


def tasks_with(
    transport: Transport,
    keys: Keys,
    now_ms: int,
    delayed: Mapping[str, int],
    dead: Mapping[str, int],
    differ: Mapping[str, ownership.Skew] = MappingProxyType({}),
) -> list[Task]:
    """As `tasks`, in one call, with counts of delayed jobs and dead letters that the caller keeps."""
    window_s = inspect.RATE_BUCKETS * RATE_BUCKET_S + now_ms / 1000 % RATE_BUCKET_S
    return [
        _task(facts, delayed.get(facts.name, 0), dead.get(facts.name, 0), window_s, differ.get(facts.name))
        for facts in run_calls_blocking(inspect.list_tasks(keys, now_ms), transport.run)
    ]


def known(transport: Transport, keys: Keys) -> list[TaskFacts]:
    """The registered tasks without the counting of delayed jobs and dead letters."""
    return run_calls_blocking(inspect.list_tasks(keys, 0), transport.run)


def handlers_of(transport: Transport, keys: Keys, event: str) -> list[tuple[str, str]]:
    """The (task, signature) of each registered handler of an event. Raises UsageError for none, naming events that are alike."""
    definitions = {facts.name: facts.definition for facts in known(transport, keys)}
    found = [(name, one.get("signature") or "") for name, one in definitions.items() if one.get("event") == event]
    if not found:
        events = sorted({str(one["event"]) for one in definitions.values() if one.get("event")})
        near = difflib.get_close_matches(event, events, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`upnext list` shows those that are"
        raise UsageError(f"no handler of event {event!r} is registered here; {hint}")
    return found


def oldest_queued_ms(transport: Transport, keys: Keys, names: Iterable[str]) -> dict[str, int]:
    """When the oldest queued job of each of these tasks was queued (server ms); without those that have none. One call a lane."""
    found: dict[str, int] = {}
    for name in names:
        calls = [inspect.queued_jobs(keys, name, lane, "", 1) for lane in LANE_LETTERS]
        oldest = [place.entry_id for call in calls for _, place in transport.run(call).jobs]
        if oldest:
            found[name] = min(int(entry_id.partition("-")[0]) for entry_id in oldest)
    return found


def one(transport: Transport, keys: Keys, task: str) -> TaskFacts:
    """Raises UsageError for a task that is not registered, naming those that are alike."""
    facts = {facts.name: facts for facts in known(transport, keys)}
    if task not in facts:
        raise _unknown(task, list(facts))
    return facts[task]


def pause(transport: Transport, keys: Keys, task: str) -> bool:
    """No worker fetches it from now on; False when it was paused already. Raises UsageError for an unknown task."""
    return _switched(transport, keys, task, admin.pause_task(keys, task))


def resume(transport: Transport, keys: Keys, task: str) -> bool:
    """False when it was not paused. Raises UsageError for an unknown task."""
    return _switched(transport, keys, task, admin.resume_task(keys, task))


def set_limits(
    transport: Transport, keys: Keys, task: str, *, rate: RateLimit | None, concurrency: int | None, declared: bool
) -> None:
    """Set a task's limits over those of its code (None and None: no limit); `declared`: those of its code again.

    Raises UsageError for an unknown task.
    """
    wanted: dict[str, Any] = {}
    if rate is not None:
        wanted |= {"rate": rate.count, "period_s": rate.period_s}
    if concurrency is not None:
        wanted["concurrency"] = concurrency
    if not transport.run(ownership_module.set_limits(keys, task, wanted or None, declared=declared)):
        raise _unknown(task, [facts.name for facts in known(transport, keys)])


def forget(transport: Transport, keys: Keys, name: str) -> None:
    """Remove a task, cron or handler that no service declares any more, with what operators set for it.

    Raises UsageError for an unknown name, and for one that is declared, served or has jobs, which names them.
    """
    registry = run_calls_blocking(ownership_module.registry(keys), transport.run)
    if name not in registry.raw:
        raise _unknown(name, list(registry.raw))
    claims = ownership.claimants(name, ownership.living(registry.announcers, registry.now_ms))
    if claims:
        where = ", ".join(sorted({f"{one.service} on {one.host or one.id}" for one in claims}))
        raise UsageError(f"{name} is declared by {where}: remove it from the code, or stop that daemon first")
    if name in registry.served:
        raise UsageError(f"{name} is served by a running worker: stop that first")
    waiting = _counts(transport, keys, dead=False).get(name, 0)
    dead = _counts(transport, keys, dead=True).get(name, 0)
    if waiting or dead:
        raise UsageError(
            f"{name} has {waiting} delayed jobs and {dead} dead letters: `upnext purge {name}` and `upnext dead purge` remove them"
        )
    call = ownership_module.remove(
        keys, registry.epoch, name, registry.raw[name], keep_cursor=False, whole=True, overrides=True
    )
    answer = transport.run(call)
    if answer == ownership_module.CHANGED:
        raise UsageError(f"{name} was registered again meanwhile")
    if answer == ownership_module.INACTIVE:
        raise UsageError(f"{name} has queued jobs: `upnext purge {name}` removes them")


def skews(transport: Transport, keys: Keys) -> dict[str, ownership.Skew]:
    """By task: where living daemons of one service run different code of it for long."""
    registry = run_calls_blocking(ownership_module.registry(keys), transport.run)
    return ownership.skews(ownership.living(registry.announcers, registry.now_ms), registry.now_ms)


@dataclass(frozen=True, slots=True)
class Purged:
    """How many jobs were removed."""

    queued: int
    delayed: int


def purge(transport: Transport, keys: Keys, task: str) -> Purged:
    """Remove the jobs of a task that wait in its lanes or are not yet due. What runs goes on."""
    queued = 0
    for lane in LANE_LETTERS:
        while removed := transport.run(admin.purge_queued(keys, task, lane)):
            queued += removed
    delayed, cursor = 0, "0"
    while True:
        following, removed, more = transport.run(admin.purge_delayed(keys, task, cursor))
        delayed += removed
        if more:
            continue
        cursor = following
        if cursor == "0":
            return Purged(queued, delayed)


def _task(facts: TaskFacts, delayed: int, dead: int, window_s: float, skew: ownership.Skew | None) -> Task:
    definition = facts.definition
    return Task(
        name=facts.name,
        kind=definition.get("kind", "task"),
        service=owner_of(definition),
        signature=definition.get("signature", ""),
        event=definition.get("event"),
        queued=max(0, facts.stored - facts.held),
        running=facts.held,
        delayed=delayed,
        dead=dead,
        done=facts.stats.get("done", 0),
        failed=facts.stats.get("failed", 0) + facts.stats.get("dead", 0),
        rate_per_s=facts.recent_ends / window_s,
        paused=facts.paused,
        limits=facts.limits,
        options=definition.get("options") or {},
        skew=skew,
        unreadable=facts.unreadable,
    )


def _counts(transport: Transport, keys: Keys, *, dead: bool) -> dict[str, int]:
    totals: dict[str, int] = {}
    cursor = "0"
    while True:
        cursor, counts = transport.run(inspect.count_by_task(keys, dead=dead, cursor=cursor, look=_LOOK))
        for task, count in counts.items():
            totals[task] = totals.get(task, 0) + count
        if cursor == "0":
            return totals


def _switched(transport: Transport, keys: Keys, task: str, call: Call[int]) -> bool:
    answer = transport.run(call)
    if answer == admin.UNKNOWN_TASK:
        raise _unknown(task, [facts.name for facts in known(transport, keys)])
    return answer == admin.CHANGED


def _unknown(task: str, names: list[str]) -> UsageError:
    near = difflib.get_close_matches(task, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`upnext list` shows those that are"
    return UsageError(f"no task {task!r} is registered here; {hint}")
