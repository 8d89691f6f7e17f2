"""What a daemon states about its service in Redis, and the removal of what no service declares (`upnext.core.ownership` decides)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from upnext.core import ownership
from upnext.core.keys import Keys
from upnext.core.ownership import ANNOUNCER_LEASE_MS, CURSOR_LIFE_MS, Definition, Fate, Skew, Source
from upnext.core.spec import ServiceSpec, TaskKind
from upnext.engine.calls import inspect, lease
from upnext.engine.calls import ownership as ownership_module
from upnext.engine.calls.ownership import Registry
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import run_calls

log = logging.getLogger("upnext.scheduler")

BATCH = 100
"""Most removals of one turn; the rest is found again by the next."""
MOST_LIMITS = 20_000
"""Twice the most limits of operators that are looked after."""
JOBS_AGAIN_MS = 600_000
"""How long a task that may go, but has jobs, is left alone: counting delayed jobs costs a scan."""
CLOCK_STEP_MS = 5_000
"""The server's clock is compared with ours from turn to turn; more than this is no drift."""
SCAN = 1_000
"""Jobs per step of that scan."""


class Announcements:
    """Announces `service` (None: nothing) from `source`, and tidies the registry; `epoch()` is the data set's.

    `token` tells this scheduler from its successor.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        epoch: Callable[[], str],
        source: Source,
        service: ServiceSpec | None,
        generation_ms: int,
        token: str,
    ) -> None:
        self._link, self._keys, self._epoch = link, keys, epoch
        self._source, self._service, self._generation_ms = source, service, generation_ms
        self._statement = None if service is None else _statement(source, service, generation_ms, token)
        self._defined = False
        self._tidied = False
        self._read_at: tuple[int, float] | None = None
        """The server's clock (ms) and ours (monotonic) when the registry was read last."""
        self._trusted_from_s = 0.0
        self._busy_until_ms: dict[str, int] = {}
        self._known_skews: frozenset[str] = frozenset()
        self._known_unreadable: frozenset[str] = frozenset()

    def reset(self) -> None:
        """The data set is another one: all is to be stated anew."""
        self._defined = self._tidied = False

    async def turn(self, *, leads: bool, settled: bool) -> None:
        """State the service. The leader tidies; anyone does once, after new code was stated. `settled`: the others had time to announce."""
        await self._define()
        await self._announce()
        await self._define()  # what was missing
        if settled and (leads or not self._tidied):
            await self.tidy(leads=leads)
            self._tidied = True

    async def withdraw(self) -> None:
        """At a clean stop: nothing is announced any more. What passing code registered goes with it."""
        if self._statement is None:
            return
        mine = self._statement
        await self._link.run(ownership_module.withdraw(self._keys, self._epoch(), [mine.announcer], token=mine.token))
        if self._source.passing:
            await self.tidy(leads=False)

    async def _define(self) -> None:
        """Its workers may have registered while this code was on trial, or a row was removed meanwhile."""
        if self._defined or self._service is None:
            return
        parts = lease.define(
            self._keys,
            self._epoch(),
            service=self._service.name,
            generation_ms=self._generation_ms,
            tasks=self._service.served_tasks,
            source=self._source,
        )
        try:
            await run_calls(parts, self._link.run)
        except ReplyError as refused:
            if refused.code not in ("CONFLICT", "SCHEMA"):
                raise
            log.error("can't define the tasks of %s: %s", self._service.name, refused)
        self._defined = True

    async def _announce(self) -> None:
        if self._statement is None:
            return
        served = set(self._statement.serves)
        for call in ownership_module.announce(self._keys, self._epoch(), self._statement, ANNOUNCER_LEASE_MS):
            if served.intersection(await self._link.run(call)):
                self._defined = False

    # -- tidying

    async def tidy(self, *, leads: bool) -> None:
        """Remove what is withdrawn or has lapsed, and the announcers that are gone."""
        registry = await run_calls(ownership_module.registry(self._keys), self._link.run)
        if self._clock_was_set(registry.now_ms):
            return
        living = ownership.living(registry.announcers, registry.now_ms)
        going: list[tuple[Definition, Fate]] = []
        for definition in registry.definitions:
            if not definition.seen_ms:  # of a version that didn't note it: its time begins now
                await self._link.command("HSETNX", self._keys.seen, definition.name, registry.now_ms)
                continue
            fate = ownership.fate(definition, living, registry.served, registry.now_ms)
            if fate is not Fate.KEPT:
                going.append((definition, fate))
        await self._remove(registry, going[:BATCH])
        if leads:
            await self._remove_ended(registry)
            await self._enforce_limits()
            self._log_skews(ownership.skews(living, registry.now_ms))
            self._log_unreadable(registry.unreadable)

    def _clock_was_set(self, now_ms: int) -> bool:
        """Whether the server's clock was set within the last lease: all look absent then, until they have announced themselves anew."""
        now_s = time.monotonic()
        if self._read_at is not None:
            before_ms, before_s = self._read_at
            if abs(now_ms - before_ms - (now_s - before_s) * 1000) > CLOCK_STEP_MS:
                self._trusted_from_s = now_s + ANNOUNCER_LEASE_MS / 1000
        self._read_at = (now_ms, now_s)
        return now_s < self._trusted_from_s

    async def _remove(self, registry: Registry, going: list[tuple[Definition, Fate]]) -> None:
        idle = await self._without_jobs([definition.name for definition, _ in going], registry.now_ms)
        for definition, fate in going:
            if not definition.active and definition.name not in idle:
                continue
            answer = await self._link.run(
                ownership_module.remove(
                    self._keys,
                    self._epoch(),
                    definition.name,
                    registry.raw[definition.name],
                    keep_cursor=fate is Fate.LAPSED,
                    whole=definition.name in idle,
                )
            )
            if answer == ownership_module.CHANGED:
                continue
            if answer == ownership_module.INACTIVE:
                self._busy_until_ms[definition.name] = registry.now_ms + JOBS_AGAIN_MS
            if definition.active or answer == ownership_module.GONE:
                self._log_removal(definition, fate, answer)

    async def _without_jobs(self, names: list[str], now_ms: int) -> set[str]:
        """Those that have no delayed job and no dead letter; the script looks into their lanes itself."""
        self._busy_until_ms = {name: until for name, until in self._busy_until_ms.items() if until > now_ms}
        left = {name for name in names if name not in self._busy_until_ms}
        for dead in (False, True):
            cursor = "0" if left else ""
            while cursor:
                call = inspect.count_by_task(self._keys, dead=dead, cursor=cursor, look=SCAN)
                cursor, counts = await self._link.run(call)
                busy = left & counts.keys()
                left -= busy
                self._busy_until_ms |= dict.fromkeys(busy, now_ms + JOBS_AGAIN_MS)
                if cursor == "0" or not left:
                    break
        return left

    async def _remove_ended(self, registry: Registry) -> None:
        ended = [one.id for one in registry.announcers if one.until_ms + ANNOUNCER_LEASE_MS < registry.now_ms]
        if ended:
            await self._link.run(ownership_module.withdraw(self._keys, self._epoch(), ended[:BATCH], ended=True))
        known = {definition.name for definition in registry.definitions}
        for name, at_ms in registry.lapsed.items():
            if at_ms + CURSOR_LIFE_MS < registry.now_ms and name not in known:
                for key in (self._keys.lapsed, self._keys.cursors, self._keys.fired):
                    await self._link.command("HDEL", key, name)

    async def _enforce_limits(self) -> None:
        """What operators set is in force, also after a version that doesn't know of it has put the declared limits back."""
        flat = await self._link.command("HGETALL", self._keys.limits_set)
        names, wanted = flat[:MOST_LIMITS:2], flat[1:MOST_LIMITS:2]
        if not names:
            return
        in_force = await self._link.command("HMGET", self._keys.limits, *names)
        for name, want, now in zip(names, wanted, in_force, strict=True):
            if now != (None if want == b"null" else want):
                await self._link.run(ownership_module.set_limits(self._keys, name.decode(errors="replace"), want))

    # -- words

    def _log_removal(self, definition: Definition, fate: Fate, answer: int) -> None:
        kind = {TaskKind.CRON: "cron", TaskKind.EVENT: "handler", TaskKind.TASK: "task"}[definition.kind]
        why = "its newest code doesn't declare it" if fate is Fate.WITHDRAWN else "no daemon announces it any longer"
        rest = "" if answer == ownership_module.GONE else "; its jobs stay"
        log.info("%s %s of service %s is removed: %s%s", kind, definition.name, definition.service or "?", why, rest)

    def _log_skews(self, skews: dict[str, Skew]) -> None:
        for name in sorted(skews.keys() - self._known_skews):
            skew = skews[name]
            log.warning(
                "task %s runs in different code for over 10 minutes on %s: files %s; signatures %s",
                name,
                ", ".join(skew.hosts),
                ", ".join(skew.files),
                ", ".join(skew.signatures),
            )
        self._known_skews = frozenset(skews)

    def _log_unreadable(self, unreadable: list[str]) -> None:
        for row in sorted(set(unreadable) - self._known_unreadable):
            log.warning("a row of the registry can't be read, and is left alone: %s", row)
        self._known_unreadable = frozenset(unreadable)


def _statement(source: Source, service: ServiceSpec, generation_ms: int, token: str) -> ownership_module.Statement:
    declared = service.declared_tasks
    return ownership_module.Statement(
        announcer=source.daemon,
        service=service.name,
        generation_ms=generation_ms,
        host=source.host,
        file=source.file,
        declares={task.name: task.arguments.describe() for task in declared},
        serves=[task.name for task in service.served_tasks],
        crons=[task.name for task in declared if task.kind is TaskKind.CRON],
        handlers={task.name: task.event for task in declared if task.event is not None},
        token=token,
    )
