"""Fires crons, and schedules that were made at run time, while this scheduler leads.

Both are data in Redis: a leader runs those of services that it has never seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upnext.core import own_options, ownership
from upnext.core.checkup import is_cron
from upnext.core.entry import Meta
from upnext.core.keys import Keys
from upnext.core.schedules import ScheduleSpec
from upnext.core.spec import CronSpec, MissedRunPolicy, TaskKind
from upnext.engine.calls import lease
from upnext.engine.calls.rows import bad_row, name, pairs, readable
from upnext.engine.calls.schedules import number, read_row
from upnext.engine.redis import aside
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.errors import BrokerUnavailableError, UsageError

if TYPE_CHECKING:
    from upnext.core.cron import Schedule, Timing

log = logging.getLogger("upnext.scheduler")

REREAD_S = 20.0
LAPSE_MS = ownership.LAPSE_MS[TaskKind.CRON] + ownership.ANNOUNCER_LEASE_MS
"""A cron that was not announced for so long doesn't fire, also before it is removed."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """What is fired: a declared cron, or a schedule that was made at run time (with its row). `paused`: as it was read."""

    name: str
    spec: CronSpec
    cursor_ms: int
    paused: bool
    made: tuple[ScheduleSpec, bytes] | None = None

    @property
    def shown(self) -> str:
        return f"cron {self.name}" if self.made is None else f"schedule {self.name}"


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
        self._parsed: dict[CronSpec, Schedule | None] = {}
        self._held_up: set[str] = set()
        """What was paused, or whose task was not registered, when it was last looked at: what fell due since is one gap."""

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
                keys = self._keys
                await self._link.set_aside(
                    [keys.crons, keys.cursors, keys.paused, keys.schedules, keys.schedules_state]
                )
            raise

    async def _turn(self) -> float:
        """Fire what is due; -> seconds until the next."""
        wire, keys = await self._link.wire(), self._keys
        replies = [
            wire.send("HGETALL", key) for key in (keys.crons, keys.cursors, keys.schedules, keys.schedules_state)
        ]
        paused = wire.send("SMEMBERS", keys.paused)
        crons, cursors, schedules, state = [dict(pairs(await reply)) for reply in replies]
        paused_now = set(await paused)
        found = [*self._crons(crons, cursors, paused_now), *self._schedules(schedules, state, paused_now)]
        if len(self._parsed) > 2 * len(found) + 100:
            self._parsed.clear()  # mostly of crons that have changed or gone
        wait_s = REREAD_S
        for one in found:
            if one.paused:  # its cursor stays: what it missed is one gap for its policy when it is resumed
                self._held_up.add(one.shown)
                continue
            timing = self._timing(one)
            wait_ms = None if timing is None else await self._fire(one, timing, self._server_ms())
            if wait_ms is not None:
                wait_s = min(wait_s, wait_ms / 1000)
        return max(0.001, wait_s)

    def _crons(self, rows: dict[bytes, bytes], cursors: dict[bytes, bytes], paused: set[bytes]) -> Iterator[_Timed]:
        """Those that have not lapsed."""
        for field, raw in rows.items():
            cron = name(field, self._keys.crons)
            if cron is None:
                continue
            row = readable(raw)
            spec = None if row is None else _spec(row)
            if row is None or spec is None:
                bad_row(self._keys.crons, field, "has no cron's definition (or one of another version)", "HDEL")
                continue
            if field in paused or row.get("last_seen_ms", 0) >= self._server_ms() - LAPSE_MS:
                yield _Timed(cron, spec, self._cursor(field, cursors.get(field)), field in paused)

    def _schedules(self, rows: dict[bytes, bytes], state: dict[bytes, bytes], paused: set[bytes]) -> Iterator[_Timed]:
        for field, raw in rows.items():
            spec = read_row(self._keys, field, raw)
            if spec is not None:
                held = field + b" paused" in state or spec.task.encode() in paused
                yield _Timed(spec.name, spec.when, number(state.get(field)), held, (spec, raw))

    def _cursor(self, name: bytes, raw: bytes | None) -> int:
        """When the cron last ticked, Unix ms; 0 for one that never did, or whose row can't be read."""
        if raw and not raw.isdigit():
            bad_row(self._keys.cursors, name, "is not a time", "HDEL")
        return int(raw) if raw and raw.isdigit() else 0

    def _timing(self, one: _Timed) -> Timing | None:
        from upnext.core import cron as crons  # noqa: PLC0415 - croniter is slow to import, and most schedulers have no cron

        spec = one.spec
        if spec.every_ms is not None:
            return crons.timing(spec, one.cursor_ms)
        if spec not in self._parsed:
            try:
                self._parsed[spec] = crons.parse(spec)
            except (UsageError, ValueError, KeyError) as error:
                log.error("%s can't be run: %s", one.shown, error)
                self._parsed[spec] = None
        return self._parsed[spec]

    async def _fire(self, one: _Timed, timing: Timing, now_ms: int) -> int | None:
        """-> ms until its next tick, None when it has none."""
        from upnext.core import cron as crons  # noqa: PLC0415 - as above

        missed_after_s = 0.0 if one.shown in self._held_up else crons.MISSED_AFTER_S
        due = crons.due(timing, one.spec, one.cursor_ms, now_ms, missed_after_s)
        for tick_ms in due.fire:
            kind = await self._tick(one, tick_ms, fire=True)
            if kind in {lease.PAUSED, lease.UNKNOWN}:
                self._held_up.add(one.shown)
                return None
            if kind == lease.GONE and one.made is not None:  # it was changed, and is read anew
                return 0
        if not due.fire and due.cursor != one.cursor_ms:
            await self._tick(one, due.cursor, fire=False)
        self._held_up.discard(one.shown)
        if due.next_ms is None:
            return None
        return max(0, due.next_ms - self._server_ms())

    async def _tick(self, one: _Timed, tick_ms: int, *, fire: bool) -> int | None:
        """-> the kind of the answer; None: another scheduler leads."""
        term = self._term()
        if term is None:
            return None
        while True:
            call = lease.tick(
                self._keys,
                self._epoch(),
                term=term,
                cron=one.name,
                tick_ms=tick_ms,
                payload=one.spec.payload,
                meta=self._meta(one, tick_ms),
                fire=fire,
                overlap=one.spec.overlap,
                schedule=one.made,
            )
            kind, value = await self._link.run(call)
            if kind != lease.EARLY:
                break
            await asyncio.sleep(int(value) / 1000)
        if kind == lease.HELD:
            log.info(
                "%s: a tick is skipped, for job %s of an earlier one has not ended (overlap=False)", one.shown, value
            )
        if kind == lease.UNKNOWN and one.shown not in self._held_up and one.made is not None:
            log.warning("%s waits: its task %s is not registered", one.shown, one.made[0].task)
        if kind == lease.FIRED and fire:
            due = time.strftime("%FT%TZ", time.gmtime(tick_ms / 1000))
            log.debug("%s fired for %s (%+d ms)", one.shown, due, self._server_ms() - tick_ms)
        return kind

    def _meta(self, one: _Timed, tick_ms: int) -> Meta:
        if one.made is None:
            return Meta(tick_ms=tick_ms, own=own_options.with_via(None, one.shown))
        spec, _ = one.made
        ttl_s = spec.queue_ttl_s
        expires_ms = None if ttl_s is None else self._server_ms() + round(ttl_s * 1000)
        return Meta(tick_ms=tick_ms, expires_ms=expires_ms, own=own_options.with_via(spec.own, one.shown))


def _spec(row: dict[str, Any]) -> CronSpec | None:
    """None for a row without what a cron needs, each of its kind; what a newer version has besides is passed over."""
    payload = row.get("payload", "{}")
    if not is_cron(row) or not isinstance(payload, str):
        return None
    try:
        missed = MissedRunPolicy(row["missed"])
    except ValueError:
        return None
    return CronSpec(
        row["schedule"],
        row["timezone"],
        missed,
        row.get("max_catch_up_s"),
        row.get("overlap") is not False,
        payload=payload.encode(),
    )
