"""A worker as small machines over the project's own calls: one that fetches, one that runs and ends jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from tests.support.queue_model.kernel import Ask, Host, Line, Sleep, Steps, Turn
from tests.support.queue_model.truth import BrokenError, Place
from tests.support.queue_model.world import LEASE_MS, World
from upnext.core.entry import Meta, decode_meta
from upnext.core.fetchplan import ORDERS
from upnext.core.keys import GROUP
from upnext.core.outcome import FailureReason, JobStatus, Outcome, encode
from upnext.engine.calls import lease, worker
from upnext.engine.redis.replies import LostReplyError, ReapedError, ReplyError
from upnext.errors import QueueError

TTL_MS = 600_000
SLOTS = 2
WAIT_S = 0.5
CHECK_S = 5.0


class Keeper(Protocol):
    """The daemon of a worker: keeps its lease, and learns of its death."""

    name: str
    consumers: list[str]

    def forget(self, consumer: str) -> None: ...

    def died(self, consumer: str, cause: str, started: list[tuple[str, str, str]]) -> None: ...


@dataclass(eq=False)
class Held:
    task: str
    lane: str
    entry_id: bytes
    job_id: str
    meta: Meta
    started: bool = False
    fate: str = ""

    @property
    def key(self) -> tuple[str, str, bytes]:
        return (self.task, self.lane, self.entry_id)


class Fairness:
    """How many jobs one worker took while a lane waited that it might have taken from."""

    MOST: ClassVar = {"b": 3 * 8, "n": (len(ORDERS) + 2) * 4, "h": (len(ORDERS) + 2) * 4}

    def __init__(self) -> None:
        self._passed: dict[tuple[str, str], int] = {}

    def took(self, taken: set[tuple[str, str]], waiting: set[tuple[str, str]]) -> None:
        self._passed = {lane: self._passed.get(lane, 0) + 1 for lane in sorted(waiting) if lane not in taken}
        for lane, passed in self._passed.items():
            if passed > self.MOST[lane[1]]:
                raise BrokenError(f"lane {lane} waited while {passed} fetches took others")


class Worker:
    """One process with one consumer: a fetching and a finishing machine, as in `upnext.engine.worker`."""

    def __init__(self, world: World, daemon: Keeper, name: str) -> None:
        self.world, self.daemon, self.name = world, daemon, name
        self.host = Host(name)
        self.consumer = ""
        self.held: list[Held] = []
        self.known_gone: list[str] = []
        self._main = world.kernel.line(name)
        self._reads = world.kernel.line(name)
        self._recorded: tuple[str, int] | None = None
        self._must_check = False
        self._checked_us = 0
        self._plan = world.rules.plan(world.names)
        self._fairness = Fairness()
        self.reads = False
        """A read without the script is on its way."""
        self._alive = False
        self._actors = [
            world.kernel.start(name, self.host, self._fetching()),
            world.kernel.start(name, self.host, self._finishing()),
        ]

    @property
    def _rng(self) -> random.Random:
        return self.world.rng

    def _line(self) -> Line:
        if self._main.broken:
            self._main = self.world.kernel.line(self.name)
            self._must_check = True
        return self._main

    def _read_line(self) -> Line:
        if self._reads.broken:
            self._reads = self.world.kernel.line(self.name)
        return self._reads

    def _register(self) -> Turn:
        world = self.world
        self.daemon.forget(self.consumer)
        for one in self.held:
            one.fate = "gone"
        self.held.clear()
        self.consumer = world.new_consumer()
        record = {"daemon": self.daemon.name, "service": "model", "tasks": world.names, "client_id": 0}
        registration = lease.Registration(self.consumer, record, "model", 1, LEASE_MS, world.specs)
        while True:
            try:
                yield Ask(
                    self._line(), lease.register(world.keys, registration, world.epoch), f"register {self.consumer}"
                )
                break
            except LostReplyError:
                yield Sleep(0.1)
        self._recorded = None
        self.daemon.consumers.append(self.consumer)
        self._alive = True

    def _fetching(self) -> Turn:
        yield from self._register()
        while True:
            try:
                yield from self._turn()
            except ReapedError:
                self._alive = False
                yield from self._register()
            except QueueError:
                self._must_check = True
                yield Sleep(0.2)

    def _turn(self) -> Turn:
        world = self.world
        if self._line() and (self._must_check or world.kernel.now_us - self._checked_us > CHECK_S * 1e6):
            yield from self._check_pending()
        free = SLOTS - sum(one.started for one in self.held)
        budget = free + self._rng.choice((0, 0, 1)) - sum(not one.started for one in self.held)
        if budget <= 0:
            yield Sleep(0.05)
            return
        kind = self._rng.random()
        if kind < 0.3:
            yield from self._read_directly(budget)
            return
        if kind < 0.4 and not self.held:
            yield from self._fetch(1, suspect=True)
            return
        found = yield from self._fetch(budget if kind < 0.7 else 1)
        if not found:
            yield Sleep(WAIT_S)

    def _fetch(self, budget: int, *, suspect: bool = False) -> Steps[int]:
        world = self.world
        tasks, lanes = self._plan.turn(everywhere=suspect, always=world.limited)
        if world.rules.limited_first:
            tasks, lanes = _limited_first(tasks, lanes, world.limited)
        waiting = sum(one.task in world.limited and not one.started for one in self.held)
        free = SLOTS - sum(one.started for one in self.held)
        call = worker.fetch(
            world.keys, world.epoch, self.consumer, tasks, budget=budget, suspect=suspect, lanes=lanes,
            most_limited=max(0 if waiting else 1, free - waiting),
        )  # fmt: skip
        line = self._line()
        got: worker.Fetched = yield Ask(line, call, f"fetch {budget}{' suspect' if suspect else ''} as {self.consumer}")
        if got.problem:
            raise BrokenError(f"fetch: {got.problem}")
        for task, lane, entries in got.entries:
            self._take(task, lane, entries)
        if got.entries:
            self._plan.gave(dict.fromkeys(task for task, _, _ in got.entries))
        if not suspect and got.entries:
            self._judge({(task, lane) for task, lane, _ in got.entries})
        return len(got.entries)

    def _judge(self, taken: set[tuple[str, str]]) -> None:
        """Whether other lanes wait for too long: those of limited tasks wait for permits besides."""
        waiting: set[tuple[str, str]] = set()
        for places in self.world.truth.last.live.values():
            for place in places:
                if place is None or place.consumer is not None or place.lane == "x":
                    continue
                if place.task not in self.world.limited and place.task not in self.world.paused:
                    waiting.add((place.task, place.lane))
        self._fairness.took(taken, waiting)

    def _read_directly(self, budget: int) -> Turn:
        world = self.world
        open_tasks = [task for task in world.names if task not in world.limited and task not in world.paused]
        if not open_tasks:
            return
        task, lane = self._rng.choice(open_tasks), self._rng.choice("nh")
        if world.rules.backlog_over_cut_line:
            line = self._read_line()
            known = (self.consumer, line.id)
            if self._recorded != known:
                yield Ask(
                    self._line(),
                    lease.attach(world.keys, world.epoch, *known),
                    f"attach {self.consumer} to line {line.id}",
                )
                self._recorded = known
        else:
            line = self._line()
        stream = world.keys.stream(task, lane)
        what = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", budget, "STREAMS", stream, ">")
        self.reads = True
        try:
            reply: Any = yield Ask(line, what, f"read {budget} of {task} {lane} as {self.consumer}")
        finally:
            self.reads = False
        for entries in (reply or {}).values():
            self._take(task, lane, entries)

    def _take(self, task: str, lane: str, entries: Sequence[Any]) -> None:
        for entry_id, fields in entries:
            meta = decode_meta(fields[3] if len(fields) > 2 else None)
            job_id = meta.job_id or f"{task}:{lane}{entry_id.decode()}"
            one = Held(task, lane, entry_id, job_id, meta)
            if all(other.key != one.key for other in self.held):
                self.held.append(one)

    def _check_pending(self) -> Turn:
        world = self.world
        call = worker.own_pending(world.keys, world.epoch, self.consumer, world.names)
        believed: list[tuple[str, str, bytes]] = yield Ask(self._line(), call, f"own pending of {self.consumer}")
        known = {one.key for one in self.held}
        if lost := [key for key in believed if key not in known]:
            yield Ask(
                self._line(), worker.hand_back(world.keys, world.epoch, lost), f"hand back {len(lost)} that were lost"
            )
        self._must_check = False
        self._checked_us = world.kernel.now_us

    # what it does with jobs

    def _finishing(self) -> Turn:
        while True:
            yield Sleep(self._rng.choice((0.01, 0.05, 0.3)))
            waiting = [one for one in self.held if not one.started]
            running = [one for one in self.held if one.started]
            if waiting and len(running) < SLOTS:
                self._begin(waiting[0])
            elif waiting and self._rng.random() < 0.2:
                yield from self._hand_back(waiting[-1])
            if running and self._rng.random() < 0.7:
                yield from self._end(self._rng.choice(running))

    def _begin(self, one: Held) -> None:
        one.started = True
        world = self.world
        expires = one.meta.expires_ms
        if expires is not None and expires < world.kernel.server_us / 1000:
            one.fate = "expired"
            return
        place = Place(one.task, one.lane, one.entry_id.decode(), self.consumer)
        if place in world.truth.last.live.get(one.job_id, []):
            world.truth.started.add(one.job_id)
        one.fate = "ok" if world.kernel.calm else self._rng.choice(("ok", "ok", "ok", "retry", "retry", "bury"))

    def _hand_back(self, one: Held) -> Turn:
        self.held.remove(one)
        call = worker.hand_back(self.world.keys, self.world.epoch, [one.key])
        try:
            yield Ask(self._line(), call, f"hand back {one.job_id}")
        except QueueError:
            self._must_check = True

    def _end(self, one: Held) -> Turn:
        """Repeats until there is a reply, as the finisher does."""
        while one in self.held:
            try:
                if one.fate == "retry" and (yield from self._retry(one)):
                    break
                yield Ask(self._line(), self._finish(one), f"finish {one.job_id} ({one.fate}) by {self.consumer}")
                break
            except LostReplyError:
                yield Sleep(0.1)
            except ReplyError:
                yield Sleep(0.3)
        if one in self.held:
            self.held.remove(one)

    def _retry(self, one: Held) -> Steps[bool]:
        meta = replace(one.meta, job_id=one.job_id, lane=None, **self.world.rules.cleared)
        meta.attempt += 1
        back = worker.PutBack(
            one.task,
            one.lane,
            one.entry_id,
            one.job_id,
            one.meta.lane or (one.lane if one.lane in "nh" else "n"),
            meta,
            self._rng.choice((0, 100, 3000)),
        )
        call = worker.retry(self.world.keys, self.world.epoch, [back])
        [answer] = yield Ask(self._line(), call, f"retry {one.job_id} by {self.consumer}")
        if answer == worker.CANCELLED:
            one.fate = "cancelled"
        return answer != worker.CANCELLED

    def _finish(self, one: Held) -> Any:
        meta = one.meta
        status, reason, cause = {
            "ok": (JobStatus.DONE, None, None),
            "bury": (JobStatus.FAILED, FailureReason.ERROR, None),
            "cancelled": (JobStatus.CANCELLED, FailureReason.CANCELLED, None),
            "expired": (JobStatus.FAILED, FailureReason.EXPIRED, "expired"),
            "gone": (JobStatus.DONE, None, None),
        }[one.fate]
        outcome = Outcome(status, attempt=meta.attempt, worker=self.consumer, reason=reason, cause=cause)
        bury = one.fate == "bury"
        ending = worker.Finish(
            one.task, one.lane, one.entry_id, status, encode(outcome), meta if meta != Meta() or bury else None, bury=bury
        )  # fmt: skip
        now_ms = self.world.kernel.server_us // 1000
        return worker.finish(self.world.keys, self.world.epoch, [ending], {one.task: TTL_MS}, now_ms)

    def crash(self, cause: str) -> None:
        """Its supervisor sees what had started."""
        self.world.kernel.say(f"{self.name} ({self.consumer}) dies")
        started = [(one.task, one.lane, one.entry_id.decode()) for one in self.held if one.started]
        self.world.kernel.kill(self.host)
        self.daemon.died(self.consumer, cause, started)


def _limited_first(tasks: list[str], lanes: list[str], limited: set[str]) -> tuple[list[str], list[str]]:
    pairs = sorted(zip(tasks, lanes, strict=True), key=lambda pair: pair[0] not in limited)
    return [task for task, _ in pairs], [order for _, order in pairs]
