"""When a cron is due. `crontab` reads the expression, croniter finds its times; what a wall clock does twice a year is settled here.

Expressions are matched against the wall clock of the cron's zone; ticks are compared in UTC.

- An hour field of `*` means "by elapsed time": every pass of the wall clock counts, so the hour that the clock repeats has its
  ticks twice, and those in a skipped hour don't exist.
- Any other hour field means "at this hour": a tick fires once on the night the clock goes back (at the first pass), and when the
  clock jumps over it, at the first instant after the jump; several ticks in one jump make one.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from croniter import croniter
from croniter.croniter import CroniterBadDateError

from upnext.core import crontab
from upnext.core.spec import STEPPED_BACK_MS, CronSpec, MissedRunPolicy
from upnext.errors import UsageError

MISSED_AFTER_S = 60.0
"""A tick this much older than now counts as missed; a younger one is only late, and runs under every policy."""

MAX_TICKS_PER_CALL = 100
"""`due` names at most so many; the rest is due in the next call."""

_SECOND = timedelta(seconds=1)
_LONGEST_SHIFT = timedelta(hours=26)  # zones have skipped and repeated a whole day
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A parsed cron. Made by `parse`."""

    expression: str
    """5 fields, or 6 with seconds first."""
    zone: zoneinfo.ZoneInfo
    every_hour: bool
    """The hour field is `*`."""
    both_days: bool = True
    """A day has to match month day and weekday, not one of them."""
    _memo: dict[int, int | None] = field(default_factory=dict[int, "int | None"], repr=False, compare=False)

    def next_after(self, ms: int) -> int | None:
        """The first tick later than `ms`; both are Unix ms. None: there is none within 50 years."""
        if ms in self._memo:
            return self._memo[ms]
        found = self._next(ms)
        self._memo.clear()  # the leader asks again and again about one cursor
        self._memo[ms] = found
        return found

    def newest_until(self, after_ms: int, until_ms: int) -> int | None:
        """The last tick in (after_ms, until_ms]; its cost doesn't grow with the number of ticks between."""
        first = self._next(after_ms)
        if first is None or first > until_ms:
            return None
        # `low` is the newest tick known; there is none after `high`. Ticks are whole seconds.
        low, high = first, until_ms
        while high - low >= 1000:
            middle = (low + high) // 2
            tick = self._next(middle)
            if tick is not None and tick <= until_ms:
                low = tick
            else:
                high = middle
        return low

    def _next(self, ms: int) -> int | None:
        instant = _EPOCH + timedelta(milliseconds=ms)
        instant = instant.replace(microsecond=0)  # ticks are whole seconds, so the first one after ms is after this
        try:
            tick = self._next_by_elapsed_time(instant) if self.every_hour else self._next_at_hours(instant)
        except (CroniterBadDateError, OverflowError):
            return None
        return (tick - _EPOCH) // timedelta(milliseconds=1)

    def _next_at_hours(self, instant: datetime) -> datetime:
        """`_first_pass` never falls as the wall clock's reading rises, so the readings that are past `instant` have a first one."""
        wall = self._wall(instant)
        start = wall + _SECOND
        if self._first_pass(start) <= instant:  # within the second pass of a repeated hour
            start = _first_second(wall, wall + _LONGEST_SHIFT, lambda reading: self._first_pass(reading) > instant)
        return self._first_pass(self._match(start))

    def _next_by_elapsed_time(self, instant: datetime) -> datetime:
        wall = self._wall(instant) + _SECOND
        while True:
            offset = self._offset(instant)
            tick = self._match(wall).replace(tzinfo=UTC) - offset
            change = self._next_change(instant, tick)
            if change is None:
                return tick
            # The clock was moved before the tick came: read it anew from there.
            instant, wall = change, self._wall(change)

    def _match(self, wall: datetime) -> datetime:
        """The first reading of the wall clock, `wall` or later, that the expression matches."""
        start = (wall - _SECOND).replace(tzinfo=UTC)
        found = croniter(self.expression, start, second_at_beginning=True, day_or=not self.both_days)
        return found.get_next(datetime).replace(tzinfo=None)

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _offset(self, instant: datetime) -> timedelta:
        return self._wall(instant) - instant.replace(tzinfo=None)

    def _first_pass(self, wall: datetime) -> datetime:
        """The first instant at which the wall clock shows `wall` or, where it jumps over that, something later."""
        instant = wall.replace(tzinfo=self.zone).astimezone(UTC)
        if self._wall(instant) == wall:
            return instant
        before = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        return _first_second(before, instant, lambda moment: self._wall(moment) > wall)

    def _next_change(self, after: datetime, until: datetime) -> datetime | None:
        """The first instant in (after, until] at which the zone's offset changes.

        Looks a week at a time: two changes within one would be taken for none if they cancel out, which no zone has done.
        """
        start, step = after, timedelta(days=7)
        offset = self._offset(after)
        while start < until:
            end = min(start + step, until)
            if self._offset(end) != offset:
                return _first_second(start, end, lambda moment: self._offset(moment) != offset)
            start = end
        return None


@dataclass(frozen=True, slots=True)
class Every:
    """Ticks at equal distances from `anchor_ms`, a tick that was."""

    every_ms: int
    anchor_ms: int

    def next_after(self, ms: int) -> int:
        """The first tick later than `ms`; both are Unix ms."""
        return self.anchor_ms + ((ms - self.anchor_ms) // self.every_ms + 1) * self.every_ms

    def newest_until(self, after_ms: int, until_ms: int) -> int | None:
        """The last tick in (after_ms, until_ms]."""
        newest = self.next_after(until_ms) - self.every_ms
        return newest if newest > after_ms else None


Timing = Schedule | Every


def timing(spec: CronSpec, cursor_ms: int) -> Timing:
    """The ticks of a cron whose newest was at `cursor_ms`. Raises UsageError as `parse` does."""
    return parse(spec) if spec.every_ms is None else Every(spec.every_ms, cursor_ms)


def _first_second(low: datetime, high: datetime, holds: Callable[[datetime], bool]) -> datetime:
    """The first whole second in (low, high] for which `holds`, which is false at low, true at high, and changes once."""
    while high - low > _SECOND:
        middle = low + (high - low) // 2
        middle = middle.replace(microsecond=0)
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def parse(spec: CronSpec) -> Schedule:
    """Raises UsageError with one clear line for a bad expression or zone."""
    shown = spec.schedule
    fields = crontab.read(shown)
    try:
        croniter(fields.text, _EPOCH, second_at_beginning=True)
        hours = croniter.expand(fields.text, second_at_beginning=True)[0][1]
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise UsageError(f"cron {shown!r}: {_plain(error, fields.text)}") from None
    try:
        zone = zoneinfo.ZoneInfo(spec.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise UsageError(
            f"cron {shown!r}: no time zone {spec.timezone!r}; use an IANA name like Europe/Paris"
        ) from None
    return Schedule(fields.text, zone, every_hour=hours == ["*"], both_days=fields.both_days)


def _plain(error: Exception, expression: str) -> str:
    text = " ".join(str(error).split())
    return text.removeprefix(f"[{expression}] ") or "can't be read"


@dataclass(frozen=True, slots=True)
class DueTicks:
    """What a cron is to do now. Times are Unix ms."""

    fire: list[int]
    """Ticks to run, oldest first."""
    cursor: int
    """The newest tick that is settled: run, or passed over by the policy. Earlier than it was: the clock was set back."""
    next_ms: int | None
    """When to ask again."""


def due(
    schedule: Timing, spec: CronSpec, cursor_ms: int, now_ms: int, missed_after_s: float = MISSED_AFTER_S
) -> DueTicks:
    """The ticks in (cursor_ms, now_ms] that the missed-run policy lets run.

    CATCH_UP: all of them. LATEST_ONLY: all, unless some are missed; then the newest alone. SKIP: those that aren't missed.
    Ticks older than `max_catch_up_s` run under no policy.

    A tick this much older than now is missed; 0 where it is known that none could run until now.

    Nothing is due before the cursor, whatever the clock says, so that a step back repeats no tick; but where that would silence
    the cron for long, it goes on from now.
    """
    if cursor_ms > now_ms + STEPPED_BACK_MS and _silences(schedule, cursor_ms, now_ms):
        return DueTicks([], now_ms, schedule.next_after(now_ms))
    first = schedule.next_after(cursor_ms)
    if first is None or first > now_ms:
        return DueTicks([], cursor_ms, first)
    missed_before = now_ms - round(missed_after_s * 1000)
    oldest = cursor_ms
    if spec.missed is MissedRunPolicy.SKIP:
        oldest = max(oldest, missed_before - 1)
    if spec.max_catch_up_s is not None:
        oldest = max(oldest, now_ms - round(spec.max_catch_up_s * 1000) - 1)
    if spec.missed is MissedRunPolicy.LATEST_ONLY and first < missed_before:
        newest = schedule.newest_until(oldest, now_ms)
        fire = [] if newest is None else [newest]
    else:
        fire = _ticks(schedule, oldest, now_ms)
        if len(fire) == MAX_TICKS_PER_CALL:
            return DueTicks(fire, fire[-1], schedule.next_after(fire[-1]))
    if not fire:
        passed_over = schedule.newest_until(cursor_ms, now_ms)
        return DueTicks([], cursor_ms if passed_over is None else passed_over, schedule.next_after(now_ms))
    return DueTicks(fire, fire[-1], schedule.next_after(now_ms))


def _silences(schedule: Timing, cursor_ms: int, now_ms: int) -> bool:
    """Whether more than one tick lies between now and the cursor."""
    first = schedule.next_after(now_ms)
    second = None if first is None else schedule.next_after(first)
    return second is not None and second <= cursor_ms


def _ticks(schedule: Timing, after_ms: int, until_ms: int) -> list[int]:
    found: list[int] = []
    tick = schedule.next_after(after_ms)
    while tick is not None and tick <= until_ms and len(found) < MAX_TICKS_PER_CALL:
        found.append(tick)
        tick = schedule.next_after(tick)
    return found
