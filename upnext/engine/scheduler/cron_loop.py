"""Fires crons while this scheduler leads. Crons are data in Redis: a leader runs those of services that it has never seen."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from upnext.core import ownership
from upnext.core.entry import Meta
from upnext.core.keys import Keys
from upnext.core.spec import CronSpec, MissedRunPolicy, TaskKind
from upnext.engine.calls import lease
from upnext.engine.calls.rows import bad_row, name, pairs, readable
from upnext.engine.redis import aside
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.errors import BrokerUnavailableError, UsageError

if TYPE_CHECKING:
    from upnext.core.cron import Schedule

log = logging.getLogger("upnext.scheduler")

REREAD_S = 20.0
LAPSE_MS = ownership.LAPSE_MS[TaskKind.CRON] + ownership.ANNOUNCER_LEASE_MS
"""A cron that was not announced for so long doesn't fire, also before it is removed."""


class CronWork:
    """`run()` works while `term()` is not None (this scheduler leads); `wake()` after a change of crons or leadership.

    `settle()` is called when the broker says that this is not so.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        epoch: Callable[[], str],
        term: Callable[[], int | None],
        server_ms: Callable[[], int],
        settle: Callable[[], None],
    ) -> None:
        self._link, self._keys = link, keys
        self._epoch, self._term, self._server_ms, self._settle = epoch, term, server_ms, settle
        self._kick = asyncio.Event()
        self._parsed: dict[bytes, tuple[CronSpec, Schedule] | None] = {}
        self._paused: set[str] = set()
        """Crons that were paused when they were last looked at: what fell due since is one gap."""

    def wake(self) -> None:
        self._kick.set()

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            wait_s = REREAD_S
            self._kick.clear()
            if self._term() is not None:
                try:
                    wait_s = await self._turn_or_mend()
                    backoff.reset()
                except BrokerUnavailableError as error:
                    log.debug("crons: %s", error)
                    wait_s = backoff.next_s()
                except ReplyError as error:  # TERM, EPOCH: a beat settles who leads
                    log.debug("crons: %s", error)
                    self._settle()
                    wait_s = backoff.next_s()
            try:
                async with asyncio.timeout(wait_s):
                    await self._kick.wait()
            except TimeoutError:
                pass

    async def _turn_or_mend(self) -> float:
        try:
            return await self._turn()
        except ReplyError as error:
            if aside.met(error):
                await self._link.set_aside([self._keys.crons, self._keys.cursors, self._keys.paused])
            raise

    async def _turn(self) -> float:
        """Fire what is due; -> seconds until the next."""
        wire = await self._link.wire()
        definitions, cursors = wire.send("HGETALL", self._keys.crons), wire.send("HGETALL", self._keys.cursors)
        paused = wire.send("SMEMBERS", self._keys.paused)
        known = dict(pairs(await definitions))
        at = dict(pairs(await cursors))
        paused_now = set(await paused)
        if len(self._parsed) > 2 * len(known) + 100:
            self._parsed.clear()  # mostly of crons that have changed or gone
        wait_s = REREAD_S
        for field, raw in known.items():
            cron = name(field, self._keys.crons)
            if cron is None:
                continue
            if field in paused_now:  # its cursor stays: what it missed is one gap for its policy when it is resumed
                self._paused.add(cron)
                continue
            definition = readable(raw)
            if definition is None or not _is_definition(definition):
                bad_row(self._keys.crons, field, "has no cron's definition (or one of another version)", "HDEL")
                continue
            now_ms = self._server_ms()
            if definition.get("last_seen_ms", 0) < now_ms - LAPSE_MS:
                continue
            parsed = self._parse(cron, definition)
            if parsed is None:
                continue
            wait_ms = await self._fire(cron, *parsed, self._cursor(field, at.get(field)), now_ms)
            if wait_ms is not None:
                wait_s = min(wait_s, wait_ms / 1000)
        return max(0.001, wait_s)

    def _cursor(self, name: bytes, raw: bytes | None) -> int:
        """When the cron last ticked, Unix ms; 0 for one that never did, or whose row can't be read."""
        if raw and not raw.isdigit():
            bad_row(self._keys.cursors, name, "is no time", "HDEL")
        return int(raw) if raw and raw.isdigit() else 0

    def _parse(self, name: str, definition: dict[str, Any]) -> tuple[CronSpec, Schedule] | None:
        from upnext.core import cron as crons  # noqa: PLC0415 - croniter is slow to import, and most schedulers have no cron

        overlap = definition.get("overlap") is not False
        key = orjson.dumps(
            [
                name,
                definition["schedule"],
                definition["timezone"],
                definition["missed"],
                definition.get("max_catch_up_s"),
                overlap,
            ]
        )
        if key not in self._parsed:
            try:
                spec = CronSpec(
                    definition["schedule"],
                    definition["timezone"],
                    MissedRunPolicy(definition["missed"]),
                    definition.get("max_catch_up_s"),
                    overlap,
                )
                self._parsed[key] = (spec, crons.parse(spec))
            except (UsageError, ValueError, KeyError) as error:
                log.error("cron %s can't be run: %s", name, error)
                self._parsed[key] = None
        return self._parsed[key]

    async def _fire(self, name: str, spec: CronSpec, schedule: Schedule, cursor_ms: int, now_ms: int) -> int | None:
        """-> ms until its next tick, None when it has none."""
        from upnext.core import cron as crons  # noqa: PLC0415 - as above

        missed_after_s = 0.0 if name in self._paused else crons.MISSED_AFTER_S
        due = crons.due(schedule, spec, cursor_ms, now_ms, missed_after_s)
        for tick_ms in due.fire:
            if await self._tick(name, tick_ms, fire=True, overlap=spec.overlap) == lease.PAUSED:
                self._paused.add(name)
                return None
        if not due.fire and due.cursor != cursor_ms:
            await self._tick(name, due.cursor, fire=False)
        self._paused.discard(name)
        if due.next_ms is None:
            return None
        return max(0, due.next_ms - self._server_ms())

    async def _tick(self, name: str, tick_ms: int, *, fire: bool, overlap: bool = True) -> int | None:
        """-> the kind of the answer; None: another scheduler leads."""
        term = self._term()
        if term is None:
            return None
        while True:
            call = lease.tick(
                self._keys,
                self._epoch(),
                term=term,
                cron=name,
                tick_ms=tick_ms,
                payload=b"{}",
                meta=Meta(tick_ms=tick_ms),
                fire=fire,
                overlap=overlap,
            )
            kind, value = await self._link.run(call)
            if kind != lease.EARLY:
                break
            await asyncio.sleep(int(value) / 1000)
        if kind == lease.HELD:
            log.info(
                "cron %s: a tick is skipped, for job %s of an earlier one has not ended (overlap=False)", name, value
            )
        if kind == lease.FIRED and fire:
            due = time.strftime("%FT%TZ", time.gmtime(tick_ms / 1000))
            log.debug("cron %s fired for %s (%+d ms)", name, due, self._server_ms() - tick_ms)
        return kind


def _is_definition(row: dict[str, Any]) -> bool:
    """Whether it has what a cron needs, each of its kind; what a newer version has besides is passed over."""
    texts = all(isinstance(row.get(field), str) for field in ("schedule", "timezone", "missed"))
    numbers = all(isinstance(row.get(field, 0), int | float | None) for field in ("last_seen_ms", "max_catch_up_s"))
    return texts and numbers and row.get("last_seen_ms", 0) is not None
