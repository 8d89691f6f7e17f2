"""What the pages are made of: one look at the queue a second for all viewers, and what a single page asks beside it.

Blocking: handlers call it in a thread. While no page is open, nothing is asked.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from upnext import config
from upnext.cli import local_daemons
from upnext.control.client import ControlClient
from upnext.core import reports
from upnext.core.end_groups import About, Group
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.core.series import Point, quantile_s
from upnext.dashboard import history
from upnext.dashboard.history import Line
from upnext.dashboard.over_time import Hour, OverTime
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import DeadCount
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.redis.replies import ReplyError
from upnext.engine.views import crons, daemons, ends, jobs, series, tasks
from upnext.engine.views.crons import Cron
from upnext.engine.views.ends import DeadGroup
from upnext.engine.views.jobs import Job
from upnext.engine.views.tasks import Task
from upnext.engine.views.workers import Consumer
from upnext.errors import BrokerRefusedError, ControlError, DaemonNotRunningError, JobNotFoundError

T = TypeVar("T")

SNAPSHOT_S = 1.0
"""A snapshot is shared by all viewers for so long."""
COUNTED_A_TURN = 2_000
"""Delayed jobs and dead letters are counted in slices of so many: a look costs the same however many there are."""
DEAD_COUNTED_A_TURN = 250
COUNTED_S = 0.1
"""So long a snapshot counts dead letters the first time and after an action; else one slice, where these have changed."""
HOUR_MS = 3_600_000
OVER_TIME_S = 30.0
"""One task's hours are read again after so long and when a minute begins, its days after 15 times as long."""
KNOWN_S = 5.0
"""So long the definitions of tasks are taken to be the same."""
DAEMONS_S = 2.0
"""Reports of daemons are read so often: they come with each beat of a scheduler, every 2.5 s, and at a death."""
OLDEST_S = 5.0
"""So long the oldest queued jobs are taken to be the same."""
MEMORY_S = 10.0
"""The broker is asked so often how much memory it uses."""
MOST_KEPT = 200
USUAL_S = 60.0
"""What is usual is read again after so long."""
MOST_GROUPS = 100
"""Groups of dead letters that a page shows."""
AUDIT_KEPT = 10_000
PAGE = 100
_FRESH_S = 0.5
"""How long daemons get to report when they are looked at for the first time in a while."""
_CONTROL_S = 10.0
"""How long a method of a daemon may take."""


@dataclass(frozen=True, slots=True)
class Daemon(daemons.Daemon):
    """One daemon. `socket`: its control socket, where that is on this machine and ours; `report` is its own word of this moment then."""

    socket: str | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the broker. `most_bytes`: its limit; 0 where it has none."""

    used_bytes: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole at one moment. `counted`: delayed and dead of each task are exact; False while the first count is under way."""

    at_ms: int
    tasks: tuple[Task, ...]
    consumers: tuple[Consumer, ...]
    daemons: tuple[Daemon, ...]
    crons: tuple[Cron, ...]
    dead: int
    delayed: int
    counted: bool
    dead_counts: tuple[DeadCount, ...] = ()
    """Dead letters by task and group."""
    dead_lately: int = 0
    """Dead letters of the last hour."""
    hour: Hour = field(default_factory=Hour)
    """The last hour by the minute."""
    memory: Memory | None = None
    """Of the node that was asked, on a Cluster; None where this user may not ask."""

    def task(self, name: str) -> Task | None:
        return next((one for one in self.tasks if one.name == name), None)

    def daemon(self, daemon: str) -> Daemon | None:
        return next((one for one in self.daemons if one.daemon == daemon), None)


@dataclass(slots=True)
class SliceCounter:
    """Counts delayed jobs by task a slice at a time; `counts` are those of the last whole round."""

    cursor: str = "0"
    partial: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    whole: bool = False

    def step(self, client: SyncQueueClient, keys: Keys) -> None:
        """Count one slice."""
        call = inspect.count_by_task(keys, dead=False, cursor=self.cursor, look=COUNTED_A_TURN)
        self.cursor, counts = client.run(call)
        for task, count in counts.items():
            self.partial[task] = self.partial.get(task, 0) + count
        if self.cursor == "0":
            self.counts, self.partial, self.whole = self.partial, {}, True


class Source:
    """One queue, looked at for all viewers."""

    def __init__(self, client: SyncQueueClient) -> None:
        self.client = client
        self.keys = client.keys
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._taken_s = 0.0
        self._delayed, self._dead = SliceCounter(), ends.DeadCounter()
        self._acted = False
        self._over_time = OverTime()
        self._reported: list[daemons.Daemon] = []
        self._reported_s = 0.0
        self._used: Memory | None = None
        self._memory_s = -MEMORY_S
        self._kept: dict[tuple[Any, ...], tuple[float, Any]] = {}
        """What pages asked beside the snapshot -> until when it is shown to others, too, and the answer."""

    def _shared(self, kept_s: float, question: tuple[Any, ...], ask: Callable[[], T]) -> T:
        """One answer for all viewers for so long. Each caller asks for itself while there is none: no page waits for another's."""
        now = time.monotonic()
        with self._lock:
            found = self._kept.get(question)
            if found is not None and found[0] > now:
                return found[1]
        value = ask()
        with self._lock:
            # what is over goes with each new answer: a graph takes 100 KiB, and another question is asked each minute
            self._kept = {key: one for key, one in self._kept.items() if one[0] > now}
            if len(self._kept) < MOST_KEPT:
                self._kept[question] = (time.monotonic() + kept_s, value)
        return value

    def snapshot(self) -> Snapshot:
        """At most SNAPSHOT_S old."""
        with self._lock:
            now = time.monotonic()
            if self._snapshot is None or now - self._taken_s >= SNAPSHOT_S:
                self._snapshot = self._take()
                self._taken_s = time.monotonic()
            return self._snapshot

    def _take(self) -> Snapshot:
        self._delayed.step(self.client, self.keys)
        dead = int(self.client.command("ZCARD", self.keys.dead))
        state = (dead, self.client.command("GET", self.keys.dead_bytes))
        most_s = COUNTED_S if self._acted or not self._dead.whole else 0.0
        self._acted = False
        self._dead.step(self.client, self.keys, state, DEAD_COUNTED_A_TURN, most_s)
        at_ms = time.time_ns() // 1_000_000
        found = tasks.tasks_with(self.client, self.keys, at_ms, self._delayed.counts, self._dead.by_task())
        known = self._daemons()
        return Snapshot(
            at_ms=at_ms,
            tasks=tuple(found),
            consumers=tuple(consumer for one in known for consumer in one.consumers),
            daemons=tuple(_with_local(known, daemons_of(self.keys.namespace), at_ms)),
            crons=tuple(crons.crons(self.client, self.keys)),
            dead=dead,
            delayed=int(self.client.command("ZCARD", self.keys.delayed)),
            counted=self._delayed.whole and self._dead.whole,
            dead_counts=tuple(self._dead.counts.values()),
            dead_lately=int(self.client.command("ZCOUNT", self.keys.dead, at_ms - HOUR_MS, "+inf")),
            hour=self._over_time.hour(self.client, self.keys, at_ms),
            memory=self._memory(),
        )

    def _memory(self) -> Memory | None:
        """Called by who holds the lock."""
        now = time.monotonic()
        if now - self._memory_s >= MEMORY_S:
            self._memory_s, self._used = now, memory_of(self.client)
        return self._used

    def _daemons(self) -> list[daemons.Daemon]:
        """What is reported of all daemons. Called by who holds the lock."""
        now = time.monotonic()
        if not self._reported or now - self._reported_s >= DAEMONS_S:
            self._snapshot, self._reported = None, []  # reports of many daemons take MiB: not both at once
            self._reported = daemons.daemons(self.client, self.keys, fresh_s=_FRESH_S)
            self._reported_s = now
        return self._reported

    def jobs(self, status: JobStatus | None, task: str | None, limit: int) -> list[Job]:
        return jobs.jobs(self.client, self.keys, status, task, limit)

    def job(self, job_id: str) -> Job:
        """With its arguments, if they are still kept. Raises JobNotFoundError."""
        one = jobs.job(self.client, self.keys, job_id)
        if one.payload is None and one.status in (JobStatus.FAILED, JobStatus.DEAD):
            with suppress(JobNotFoundError):
                return jobs.dead_letter(self.client, self.keys, job_id)
        return one

    def dead_letters(self, task: str | None, limit: int, group: str | None = None) -> list[Job]:
        question = ("dead letters", task, limit, group)

        def ask() -> list[Job]:
            known = self._shared(KNOWN_S, ("known",), partial(tasks.known, self.client, self.keys))
            return jobs.dead_letters(self.client, self.keys, task, limit, group, known)

        return self._shared(SNAPSHOT_S, question, ask)

    def end_groups(self, task: str) -> list[Group]:
        """What has failed, was cancelled or expired of a task: the newest first."""
        return self._shared(SNAPSHOT_S, ("groups", task), partial(ends.groups, self.client, self.keys, task))

    def over_time(self, task: str, step: int) -> list[Point]:
        """One task in steps of so many minutes, as far back as it is kept."""
        now_ms = time.time_ns() // 1_000_000
        ask = partial(series.of_task, self.client, self.keys, task, now_ms, step)
        return self._shared(OVER_TIME_S * step, ("over time", task, step, now_ms // 60_000 // step), ask)

    def usual_run_s(self, names: Collection[str]) -> dict[str, float | None]:
        """How long 95 of 100 attempts of these tasks ran within the last day; None where nothing is known."""
        now_ms = time.time_ns() // 1_000_000

        def read(name: str) -> float | None:
            return quantile_s(series.usual(self.client, self.keys, name, now_ms).runs, 0.95)

        return {name: self._shared(USUAL_S, ("usual", name), partial(read, name)) for name in names}

    def dead_groups(self, task: str | None) -> list[DeadGroup]:
        """Dead letters by task and group, the most frequent first, at most MOST_GROUPS.

        What is common to a group that nothing else is known of is read from its newest letter.
        """
        counts = [one for one in self.snapshot().dead_counts if task in (None, one.task)]
        counts = sorted(counts, key=lambda one: -one.count)[:MOST_GROUPS]
        known = {
            (group.task, group.name): group for name in {one.task for one in counts} for group in self.end_groups(name)
        }
        found = ends.dead_groups(counts, known)
        return [one if one.about is not None else replace(one, about=self._about(one.job_id)) for one in found]

    def _about(self, job_id: str) -> About | None:
        with suppress(JobNotFoundError):
            return ends.about(jobs.dead_letter(self.client, self.keys, job_id))
        return None

    def oldest_queued_ms(self, names: Iterable[str]) -> dict[str, int]:
        """When the oldest queued job of each of these tasks was submitted (server ms); without those that have none."""
        wanted = tuple(names)
        ask = partial(tasks.oldest_queued_ms, self.client, self.keys, wanted)
        return self._shared(OLDEST_S, ("oldest", *wanted), ask)

    def printed(self, path: str, slot: str) -> list[dict[str, Any]] | None:
        """What a slot printed last, by its daemon's control socket: `at`, `pid`, `text`, oldest first; None where the daemon can't say."""

        def ask() -> list[dict[str, Any]] | None:
            with suppress(ControlError, DaemonNotRunningError, TimeoutError):  # an older version, or it has just ended
                return call_daemon(path, "dump", slot=slot, output=True)["lines"]
            return None

        return self._shared(SNAPSHOT_S, ("printed", path, slot), ask)

    # -- what people did --

    def record(self, who: str, what: str, target: str, daemon: str | None) -> None:
        """One line of the audit; the newest AUDIT_KEPT are kept. daemon: whose this is, by its id."""
        of = {"daemon": daemon} if daemon is not None else {}
        line = orjson.dumps({"who": who, "what": what, "target": target[:500], **of})
        self.client.command("XADD", self.keys.audit, "MAXLEN", "~", AUDIT_KEPT, "*", "e", line)
        with self._lock:
            self._snapshot = None  # the page that follows shows what was done
            self._kept.clear()
            self._acted = True

    def activity(self, before: str | None, daemon: str | None) -> tuple[list[Line], str | None]:
        """What people did and what happened to daemons, newest first. -> at most PAGE lines, and the id to go on before.

        before: only what is older. daemon: of this one alone; SCANNED lines are looked through for it, so that a part may be empty.
        """
        ask = partial(history.lines, self.client, self.keys, before, daemon, PAGE)
        return self._shared(SNAPSHOT_S, ("activity", before, daemon), ask)


def memory_of(client: SyncQueueClient) -> Memory | None:
    """What the broker says of its memory."""
    try:
        text = bytes(client.command("INFO", "memory")).decode("utf-8", "replace")
    except (ReplyError, BrokerRefusedError):
        return None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields[name] = value
    used, most = fields.get("used_memory", ""), fields.get("maxmemory", "")
    return Memory(int(used), int(most)) if used.isdecimal() and most.isdecimal() else None


def daemons_of(namespace: str) -> list[tuple[str, dict[str, Any]]]:
    """(control socket, status) of each daemon of this user on this machine that serves the namespace and answers."""
    found = local_daemons.of_this_user()
    return [(str(path), status) for path, status in found if status.get("namespace", namespace) == namespace]


def call_daemon(path: str, method: str, **params: Any) -> dict[str, Any]:
    """One method of a daemon's control socket. Raises ControlError, DaemonNotRunningError, TimeoutError."""
    with ControlClient(path, timeout_s=_CONTROL_S, servers=config.unit_users(Path(path))) as client:
        return client.call(method, **params)


def _with_local(
    known: Sequence[daemons.Daemon], local: Sequence[tuple[str, dict[str, Any]]], at_ms: int
) -> list[Daemon]:
    """With what those on this machine say right now in place of what they reported."""
    here = socket.gethostname()
    found = [Daemon(*(getattr(one, field.name) for field in fields(one))) for one in known]
    for path, status in local:
        at = next((at for at, one in enumerate(found) if one.host == here and _is(one, status)), None)
        if at is None:
            # It has not reported: its broker is away, or no worker of it has registered yet.
            daemon, name = f"pid-{status.get('pid')}", str(status.get("name"))
            report = reports.of_status(daemon, status, here, at_ms)
            found.append(Daemon(daemon, here, name, alive=True, report=report, consumers=(), socket=path))
        else:
            report = reports.of_status(found[at].daemon, status, here, at_ms)
            found[at] = replace(found[at], name=report.name, alive=True, report=report, socket=path)
    return sorted(found, key=lambda one: (one.host, one.name, one.daemon))


def _is(one: daemons.Daemon, status: Mapping[str, Any]) -> bool:
    if one.report is not None:
        return one.report.about.get("pid") == status.get("pid")
    pids = {child.get("pid") for child in status.get("children", ())}
    return any(consumer.pid in pids for consumer in one.consumers)
