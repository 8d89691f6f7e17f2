"""Ticks of crons, over the nights on which clocks change, and what becomes of missed ones."""

from __future__ import annotations

import random
import zoneinfo
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import cronsim
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upnext.core.cron import MAX_TICKS_PER_CALL, DueTicks, due, parse, timing
from upnext.core.spec import CronSpec, MissedRunPolicy
from upnext.errors import UsageError

ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})


def ms(text: str) -> int:
    """Of a UTC time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def ticks(schedule: str, zone: str, start: str, count: int) -> list[str]:
    parsed = parse(CronSpec(schedule, zone))
    found, at = list[str](), ms(start)
    for _ in range(count):
        tick = parsed.next_after(at)
        assert tick is not None
        found.append(datetime.fromtimestamp(tick / 1000, UTC).strftime("%d %H:%M:%S"))
        at = tick
    return found


@pytest.mark.parametrize(
    ("schedule", "zone", "start", "expected"),
    [
        ("0 9 * * *", "UTC", "2026-01-01 09:00", ["02 09:00:00", "03 09:00:00"]),
        ("0 9 * * mon-fri", "Asia/Tokyo", "2026-01-02 00:00", ["05 00:00:00", "06 00:00:00"]),
        ("*/20 * * * * *", "UTC", "2026-01-01 00:00:01", ["01 00:00:20", "01 00:00:40", "01 00:01:00"]),
        ("@daily", "America/New_York", "2026-01-01 00:00", ["01 05:00:00", "02 05:00:00"]),
        # Berlin, 29 March 2026: 02:00 -> 03:00 (01:00 UTC); 25 October: 03:00 -> 02:00 (01:00 UTC)
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", ["28 01:30:00", "29 01:00:00", "30 00:30:00"]),
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-29 00:00", ["29 01:00:00", "30 00:00:00"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29 00:00", ["29 01:00:00", "30 00:00:00", "30 01:00:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29 00:00", ["29 00:30:00", "29 01:30:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["25 00:30:00", "26 01:30:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["25 00:00:00", "25 00:30:00", "26 01:00:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25 00:10", ["25 00:30:00", "25 01:00:00", "25 01:30:00", "25 02:00:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:15", ["26 01:30:00"]),  # from within the second pass
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", ["03 15:30:00", "04 15:15:00"]),  # jumps by half an hour
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", ["29 22:00:00", "30 10:00:00", "30 22:00:00"]),  # had no 30 December
    ],
)  # fmt: skip
def test_ticks(schedule: str, zone: str, start: str, expected: list[str]) -> None:
    assert ticks(schedule, zone, start, len(expected)) == expected


@pytest.mark.parametrize(
    ("schedule", "start", "expected"),
    [
        ("0 9 1-7 * */7", "2026-01-01", ["04", "01", "01", "05"]),  # the first Sunday of a month
        ("0 9 */2 * 1", "2026-01-01", ["05", "19", "09", "23"]),  # odd Mondays
        ("0 9 1-31 * 1", "2026-01-01", ["01", "02", "03", "04"]),  # no star: either, and each day is a month's
        ("0 9 13 * 5", "2026-02-01", ["06", "13", "20", "27"]),
        ("0 9 * * fri-sun", "2026-01-01", ["02", "03", "04", "09"]),
    ],
)
def test_the_day_fields_of_crontab(schedule: str, start: str, expected: list[str]) -> None:
    assert [tick[:2] for tick in ticks(schedule, "UTC", f"{start} 00:00", len(expected))] == expected


def test_a_cron_is_due_when_cronsim_says() -> None:
    """5,000 expressions, with stars, steps, ranges and lists in every field."""
    rng = random.Random(5)

    def field(low: int, high: int) -> str:
        def number() -> int:
            return rng.randint(low, high)

        def span() -> str:
            begin = rng.randint(low, high - 1)  # cronsim reads 3-3/7 as 3/7
            return f"{begin}-{rng.randint(begin + 1, high)}"

        shapes: list[Callable[[], str]] = [
            lambda: "*",
            lambda: f"*/{rng.randint(1, high)}",
            lambda: str(number()),
            span,
            lambda: f"{span()}/{rng.randint(1, high)}",
            lambda: f"{number()},{span()}",
        ]
        return rng.choice(shapes)()

    start = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(5000):
        days = field(1, 28)
        text = f"{field(0, 59)} {field(0, 23)} {days} {field(1, 12)} {field(0, 7)}"
        schedule, theirs, at = parse(CronSpec(text)), cronsim.CronSim(text, start), ms("2026-01-01")
        for _ in range(3):
            tick = schedule.next_after(at)
            assert tick is not None, text
            assert datetime.fromtimestamp(tick / 1000, UTC) == next(theirs), text
            at = tick


def test_never() -> None:
    assert parse(CronSpec("0 0 31 2 *")).next_after(0) is None


def changes(zone: zoneinfo.ZoneInfo, year: int) -> list[datetime]:
    """Instants, to the hour, of the year's changes of offset."""
    start = datetime(year, 1, 1, tzinfo=UTC)
    days = [start + timedelta(days=n) for n in range(366)]
    found: list[datetime] = []
    for day, after in pairwise(days):
        if day.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            found.append(day)
    return found


NIGHTS = [(name, night) for name in ZONES for night in changes(zoneinfo.ZoneInfo(name), 2026)[:2]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NIGHTS), st.integers(0, 23), st.integers(0, 59))
@example(("America/Nuuk", datetime(2026, 3, 29, tzinfo=UTC)), 23, 30)
def test_a_fixed_hour_fires_once_a_day_over_every_change_of_clock(
    night: tuple[str, datetime], hour: int, minute: int
) -> None:
    name, change = night
    zone = zoneinfo.ZoneInfo(name)
    parsed = parse(CronSpec(f"{minute} {hour} * * *", name))
    at = round((change - timedelta(days=2)).timestamp() * 1000)
    seen: list[datetime] = []
    for _ in range(5):
        tick = parsed.next_after(at)
        assert tick is not None
        assert tick > at
        at = tick
        seen.append(datetime.fromtimestamp(tick / 1000, UTC).astimezone(zone))

    days: list[date] = []
    for moment in seen:
        assert moment.fold == 0
        shown = moment.replace(tzinfo=None)
        if (moment.hour, moment.minute) == (hour, minute):
            assert moment.second == 0
            days.append(shown.date())
            continue
        # right after the gap that swallowed it: one second earlier the clock stood before it, maybe on the day before
        before = (moment.astimezone(UTC) - timedelta(seconds=1)).astimezone(zone).replace(tzinfo=None)
        asked = [datetime.combine(day, time(hour, minute)) for day in {before.date(), shown.date()}]
        [swallowed] = [reading for reading in asked if before < reading < shown]
        days.append(swallowed.date())
    assert days == [days[0] + timedelta(days=n) for n in range(5)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NIGHTS))
def test_every_quarter_of_an_hour_is_just_that_over_every_change_of_clock(night: tuple[str, datetime]) -> None:
    name, change = night
    parsed = parse(CronSpec("*/15 * * * *", name))
    start = round((change - timedelta(hours=1)).timestamp() * 1000)
    at, count = start, 0
    while at < start + 27 * 3_600_000:
        tick = parsed.next_after(at)
        assert tick is not None
        assert tick - at == 900_000
        at, count = tick, count + 1
    assert count == 108


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.integers(0, 4_000_000_000),
    st.sampled_from(["0 9 * * *", "30 2 * * sun", "7 * * * *", "0 0 1 * *"]),
)
def test_ticks_rise_and_next_after_skips_none(zone: str, start_s: int, schedule: str) -> None:
    parsed = parse(CronSpec(schedule, zone))
    tick = parsed.next_after(start_s * 1000)
    assert tick is not None
    assert tick > start_s * 1000
    middle = (start_s * 1000 + tick) // 2
    assert parsed.next_after(middle) == tick
    assert parsed.next_after(tick - 1) == tick
    following = parsed.next_after(tick)
    assert following is not None
    assert following > tick


@pytest.mark.parametrize(
    ("schedule", "zone", "message"),
    [
        (
            "0 9 * *",
            "UTC",
            "cron '0 9 * *': it has 4 fields; write 5 (minute hour day month weekday), or 6 with seconds first",
        ),
        ("", "UTC", "cron '': it has 0 fields; write 5 (minute hour day month weekday), or 6 with seconds first"),
        (
            "0 0 9 * * * 2026",
            "UTC",
            "cron '0 0 9 * * * 2026': it has 7 fields; write 5 (minute hour day month weekday), or 6 with seconds first",
        ),
        ("H 9 * * *", "UTC", "cron 'H 9 * * *': minute h: hashed and random fields (H, R) are not supported"),
        (
            "R(1-5) 9 * jan thu",
            "UTC",
            "cron 'R(1-5) 9 * jan thu': minute r(1-5): hashed and random fields (H, R) are not supported",
        ),
        ("61 * * * *", "UTC", "cron '61 * * * *': minute 61: 0–59"),
        ("1 january * * *", "UTC", "cron '1 january * * *': hour january: 0–23"),
        ("1 1 1 january *", "UTC", "cron '1 1 1 january *': month january: 1–12, or jan to dec"),
        ("1 1 * * 8", "UTC", "cron '1 1 * * 8': weekday 8: 0–7, or sun to sat"),
        ("5-1 * * * *", "UTC", "cron '5-1 * * * *': minute 5-1: the range ends before it begins"),
        ("*/61 * * * *", "UTC", "cron '*/61 * * * *': minute */61: a step is 1–59"),
        ("*/0 * * * *", "UTC", "cron '*/0 * * * *': minute */0: a step is 1–59"),
        ("1,,2 * * * *", "UTC", "cron '1,,2 * * * *': minute is empty: 0–59"),
        ("a b c d e", "UTC", "cron 'a b c d e': minute a: 0–59"),
        (
            "@every 5m",
            "UTC",
            (
                "cron '@every 5m': there is no @every, but @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually; "
                "for a period write a step, as in '*/5 * * * *'"
            ),
        ),
        (
            "0 9 * * *",
            "Europe/Pariss",
            "cron '0 9 * * *': no time zone 'Europe/Pariss'; use an IANA name like Europe/Paris",
        ),
        (
            "0 9 * * *",
            "../etc/passwd",
            "cron '0 9 * * *': no time zone '../etc/passwd'; use an IANA name like Europe/Paris",
        ),
        ("0 9 * * *", "", "cron '0 9 * * *': no time zone ''; use an IANA name like Europe/Paris"),
    ],
)
def test_refusals(schedule: str, zone: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(CronSpec(schedule, zone))
    assert str(caught.value) == message


@settings(deadline=None)
@given(st.text("0123456789*/,-#lLwWhHrR?@ abc", max_size=20))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        answer = repr(parse(CronSpec(text)))
    except UsageError as error:
        answer = str(error)
    assert "\n" not in answer


def run(schedule: str, policy: MissedRunPolicy, cursor: str, now: str, max_catch_up_s: float | None = None) -> DueTicks:
    spec = CronSpec(schedule, missed=policy, max_catch_up_s=max_catch_up_s)
    return due(parse(spec), spec, ms(cursor), ms(now))


CATCH_UP, LATEST, SKIP = MissedRunPolicy.CATCH_UP, MissedRunPolicy.LATEST_ONLY, MissedRunPolicy.SKIP


@pytest.mark.parametrize("policy", list(MissedRunPolicy))
def test_nothing_due_leaves_the_cursor(policy: MissedRunPolicy) -> None:
    got = run("0 9 * * *", policy, "2026-01-01 09:00", "2026-01-02 08:59:59")
    assert got == DueTicks([], ms("2026-01-01 09:00"), ms("2026-01-02 09:00"))


@pytest.mark.parametrize("policy", list(MissedRunPolicy))
def test_late_ticks_run_under_every_policy(policy: MissedRunPolicy) -> None:
    got = run("*/20 * * * * *", policy, "2026-01-01 09:00:00", "2026-01-01 09:00:45")
    assert got == DueTicks(
        [ms("2026-01-01 09:00:20"), ms("2026-01-01 09:00:40")], ms("2026-01-01 09:00:40"), ms("2026-01-01 09:01")
    )


@pytest.mark.parametrize(
    ("policy", "limit_s", "fire"),
    [
        (CATCH_UP, None, ["10:00", "11:00", "12:00"]),
        (CATCH_UP, 7200, ["11:00", "12:00"]),
        (CATCH_UP, 60, []),
        (LATEST, None, ["12:00"]),
        (LATEST, 60, []),
        (SKIP, None, []),
    ],
)
def test_missed_ticks(policy: MissedRunPolicy, limit_s: float | None, fire: list[str]) -> None:
    got = run("0 * * * *", policy, "2026-01-01 09:00", "2026-01-01 12:30", limit_s)
    assert got == DueTicks([ms(f"2026-01-01 {at}") for at in fire], ms("2026-01-01 12:00"), ms("2026-01-01 13:00"))


@pytest.mark.parametrize(("policy", "fire"), [(CATCH_UP, ["11:00", "12:00"]), (LATEST, ["12:00"]), (SKIP, ["12:00"])])
def test_missed_and_late_ticks_together(policy: MissedRunPolicy, fire: list[str]) -> None:
    got = run("0 * * * *", policy, "2026-01-01 10:00", "2026-01-01 12:00:30")
    assert got.fire == [ms(f"2026-01-01 {at}") for at in fire]


def test_a_long_absence_of_a_cron_of_seconds_is_caught_up_in_parts() -> None:
    got = run("* * * * * *", CATCH_UP, "2026-01-01 00:00", "2026-02-01 00:00")
    assert got.fire == [ms("2026-01-01 00:00") + 1000 * n for n in range(1, MAX_TICKS_PER_CALL + 1)]
    assert got.cursor == got.fire[-1]
    assert got.next_ms == got.cursor + 1000
    assert run("* * * * * *", LATEST, "2026-01-01 00:00", "2026-02-01 00:00").fire == [ms("2026-02-01 00:00")]


def test_a_cron_that_never_comes_is_never_due() -> None:
    assert run("0 0 31 2 *", CATCH_UP, "2026-01-01 00:00", "2026-02-01 00:00") == DueTicks(
        [], ms("2026-01-01 00:00"), None
    )


@pytest.mark.parametrize("policy", MissedRunPolicy)
@pytest.mark.parametrize(
    ("schedule", "cursor", "now", "goes_on"),
    [
        ("* * * * *", "2026-03-01 12:00:00", "2026-03-01 11:55:00", False),  # within the tolerance: nothing twice
        ("* * * * *", "2026-03-01 12:00:00", "2026-03-01 11:54:59", True),
        ("* * * * * *", "2026-03-01 12:00:00", "2026-03-01 11:55:01", False),
        ("0 9 * * *", "2026-03-01 09:00:00", "2026-03-01 07:00:00", False),  # the next would be tomorrow's anyway
        ("0 9 * * *", "2026-03-02 09:00:00", "2026-03-01 10:00:00", False),
        ("0 9 * * *", "2026-03-02 09:00:00", "2026-03-01 08:59:59", True),
        ("0 9 * * *", "2027-03-01 09:00:00", "2026-03-01 10:00:00", True),
        ("0 0 1 1 *", "2027-01-01 00:00:00", "2026-03-01 10:00:00", False),
    ],
)
def test_a_clock_that_was_set_back_silences_a_cron_for_no_more_than_a_tick_or_minutes(
    policy: MissedRunPolicy, schedule: str, cursor: str, now: str, goes_on: bool
) -> None:
    found = run(schedule, policy, cursor, now)
    assert found.fire == []
    assert found.cursor == ms(now if goes_on else cursor)
    after = parse(CronSpec(schedule)).next_after(ms(now if goes_on else cursor))
    assert found.next_ms == after


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "0 9 * * *", "0 9 * * 1"]), st.integers(0, 40 * 86_400)
)
def test_after_a_step_back_no_tick_is_far_and_none_comes_twice_within_the_tolerance(schedule: str, back_s: int) -> None:
    parsed, spec = parse(CronSpec(schedule)), CronSpec(schedule)
    now = ms("2026-03-10 12:34:56")
    cursor = now + back_s * 1000
    found = due(parsed, spec, cursor, now)
    first = parsed.next_after(now)
    assert first is not None
    second = parsed.next_after(first)
    assert second is not None
    assert found.next_ms is not None
    if back_s <= 300:
        assert found.next_ms > cursor
    else:
        assert found.next_ms <= second


def test_equal_distances_go_on_from_the_newest_tick() -> None:
    spec = CronSpec("", every_ms=90_000, missed=MissedRunPolicy.CATCH_UP)
    begun = ms("2026-01-01 09:00:07")
    every = timing(spec, begun)
    assert every.next_after(begun) == begun + 90_000
    assert every.next_after(begun + 89_999) == begun + 90_000
    assert every.newest_until(begun, begun + 89_999) is None
    assert every.newest_until(begun, begun + 200_000) == begun + 180_000
    assert due(every, spec, begun, begun + 190_000) == DueTicks(
        [begun + 90_000, begun + 180_000], begun + 180_000, begun + 270_000
    )
    latest = CronSpec("", every_ms=90_000)
    assert due(every, latest, begun, begun + 1_000_000).fire == [begun + 990_000]
    skip = CronSpec("", every_ms=90_000, missed=MissedRunPolicy.SKIP)
    found = due(every, skip, begun, begun + 980_000)
    assert (found.fire, found.cursor) == ([], begun + 900_000), "all were missed; the next is on the same grid"


def test_a_distance_goes_on_from_now_where_the_clock_was_set_back() -> None:
    spec = CronSpec("", every_ms=60_000)
    now = ms("2026-01-01 09:00")
    ahead = now + 3_600_000
    assert due(timing(spec, ahead), spec, ahead, now) == DueTicks([], now, now + 60_000)
