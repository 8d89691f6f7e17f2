"""A host's scheduler as small machines: it beats for its workers' leases, promotes, sweeps, and reaps the dead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from tests.support.queue_model.kernel import Actor, Ask, Host, Line, Sleep, Turn
from tests.support.queue_model.workers import Worker
from tests.support.queue_model.world import LEASE_MS, World
from upnext.core.keys import LANE_LETTERS
from upnext.core.leases import Sightings
from upnext.engine.calls import lease
from upnext.engine.scheduler.consumer_sweep import MOST_CONSUMERS, STREAMS, SWEEP_S
from upnext.engine.scheduler.reaper import NO_LEASE, SWEEPS_S
from upnext.engine.scheduler.scheduler import BEAT_S, LEADERSHIP_MS
from upnext.errors import QueueError


class Daemon:
    """A host: its scheduler, its reapers, and its workers' leases."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.host = Host(name)
        self.consumers: list[str] = []
        self.workers: list[Worker] = []
        self._line_now = world.kernel.line(name)
        self._leads = False
        self._cases: dict[str, Actor] = {}
        gap_s = 2 * BEAT_S
        self._seen = Sightings(LEASE_MS / 1000, gap_s)
        self._leadership = Sightings(LEADERSHIP_MS / 1000, gap_s)
        for turn in (self._beating(), self._promoting(), self._sweeping()):
            world.kernel.start(name, self.host, turn)

    def _line(self) -> Line:
        if self._line_now.broken:
            self._line_now = self.world.kernel.line(self.name)
            self._seen, self._leadership = self._seen.forgotten(), self._leadership.forgotten()
        return self._line_now

    def new_worker(self) -> Worker:
        made = Worker(self.world, self, f"{self.name}w{len(self.workers) + 1}")
        self.workers.append(made)
        return made

    def forget(self, consumer: str) -> None:
        if consumer in self.consumers:
            self.consumers.remove(consumer)

    def _beating(self) -> Turn:
        world, kernel = self.world, self.world.kernel
        while True:
            try:
                line = self._line()
                asked_s = kernel.now_us / 1e6
                call = lease.beat(
                    world.keys, world.epoch, daemon=self.name, token="t", lease_ms=LEASE_MS, leadership_ms=LEADERSHIP_MS,
                    consumers=self.consumers, ended_leadership=self._leadership.ended().get("leadership", ""),
                )  # fmt: skip
                own = list(self.consumers)
                beat: lease.Beat = yield Ask(line, call, f"beat for {own}")
                answered_s = kernel.now_us / 1e6
                self._leads = beat.leads
                held = {} if beat.leads else {"leadership": beat.leadership}
                self._leadership = self._leadership.after(held, asked_s, answered_s)
                foreign = {name: end for name, end in beat.leases.items() if name not in self.consumers}
                self._seen = self._seen.after(foreign, asked_s, answered_s)
                for name, end in self._seen.ended().items():
                    self._reap(name, end, "host", "lost host")
                for name in beat.graves:
                    self._reap(name, NO_LEASE, "host", "lost host")
                for name in beat.missing:
                    self.forget(name)
            except QueueError:
                self._leads = False
            yield Sleep(BEAT_S)

    def _promoting(self) -> Turn:
        while True:
            with suppress(QueueError):
                yield Ask(self._line(), lease.promote(self.world.keys, self.world.epoch, 100), "promote")
            yield Sleep(self.world.rng.choice((0.1, 0.5, 1.0)))

    def _sweeping(self) -> Turn:
        world = self.world
        streams = [(world.keys.stream(task, lane), task) for task in world.names for lane in LANE_LETTERS]
        while world.rules.sweeps:
            yield Sleep(SWEEP_S)
            if not self._leads:
                continue
            try:
                names = [stream for stream, _ in streams[:STREAMS]]
                call = lease.unowned_consumers(world.keys, world.epoch, names, MOST_CONSUMERS)
                found: lease.Unowned = yield Ask(self._line(), call, "look for unowned consumers")
                unowned: dict[str, dict[str, None]] = defaultdict(dict)
                for index, consumer in found.consumers:
                    unowned[consumer][streams[index][1]] = None
                for consumer, tasks in unowned.items():
                    self._reap(consumer, NO_LEASE, "none", "neither lease nor record", tasks=list(tasks))
            except QueueError:
                pass

    def died(self, consumer: str, cause: str, started: list[tuple[str, str, str]]) -> None:
        self.forget(consumer)
        if consumer:
            self._reap(consumer, "", "crash", cause, started=started)

    def _reap(self, consumer: str, seen: str, charge: str, cause: str, **more: Any) -> None:
        case = self._cases.get(consumer)
        if case is None or case.over:
            turn = self._reaping(consumer, seen, charge, cause, **more)
            self._cases[consumer] = self.world.kernel.start(self.name, self.host, turn)

    def _reaping(
        self, consumer: str, seen: str, charge: str, cause: str, *,
        started: Sequence[tuple[str, str, str]] = (), tasks: Sequence[str] = (),
    ) -> Turn:  # fmt: skip
        """As `Reaper._work`: cut its line, take its entries, look again until nothing can arrive."""
        world = self.world
        begun_us, sweep, cut = world.kernel.now_us, 0, set[int]()
        while sweep < len(SWEEPS_S):
            yield Sleep(max(0.0, (begun_us - world.kernel.now_us) / 1e6 + SWEEPS_S[sweep]))
            try:
                raw = yield Ask(self._line(), ("HGET", world.keys.consumers, consumer), f"record of {consumer}")
                known = orjson.loads(raw)["tasks"] if raw else []
                line_id = orjson.loads(raw)["client_id"] if raw else 0
                if line_id and line_id not in cut:
                    cut.add(line_id)
                    yield Ask(self._line(), line_id, f"cut line {line_id}")
                final = not raw or sweep == len(SWEEPS_S) - 1
                pending = 1
                while pending:
                    call = lease.reap(
                        world.keys, world.epoch, consumer=consumer, tasks=list(dict.fromkeys((*known, *tasks))),
                        seen=seen, final=final, charge=charge, cause=cause, started=started,
                    )  # fmt: skip
                    done: lease.Reaped = yield Ask(self._line(), call, f"reap {consumer} ({charge}, sweep {sweep})")
                    pending = done.pending
                    if pending < 0:
                        return
                    for crash in done.shown:
                        yield from self._free(crash)
                    if pending:
                        yield Sleep(0.5)
                if not raw:
                    return
                sweep += 1
            except QueueError:
                yield Sleep(0.2)

    def _free(self, crash: str) -> Turn:
        for task in self.world.names:
            after: str | None = ""
            while after is not None:
                call = lease.free_suspects(self.world.keys, self.world.epoch, crash, task, after)
                _, after = yield Ask(self._line(), call, f"free suspects of {crash} in {task}")
