"""Tasks over time: what stands still is carried on, what is not known stays unknown."""

from __future__ import annotations

import pytest

from upnext.core import series
from upnext.core.series import Sample, Times


def sample(done: int, failed: int = 0) -> Sample:
    return Sample(done, failed, 0, 0, 0, queued=0, running=0, oldest_s=0.0)


def ended(sampled: dict[int, bool], rows: dict[int, Sample], last: Sample | None = None) -> list[int | None]:
    moments = list(range(10, 16))
    return [one.ended for one in series.points(moments, series.filled(moments, sampled, rows, last), {})]


ALL = dict.fromkeys(range(10, 16), True)


def test_the_reader_subtracts() -> None:
    assert ended(ALL, {at: sample(at * at) for at in range(10, 16)}) == [21, 23, 25, 27, 29]


def test_a_task_that_stands_still_ends_nothing() -> None:
    assert ended(ALL, {12: sample(7), 13: sample(9)}) == [0, 0, 2, 0, 0]
    assert ended(ALL, {}, last=sample(7)) == [0] * 5


def test_a_minute_that_was_not_sampled_is_unknown_and_hides_nothing() -> None:
    found = ended({**ALL, 13: False}, {10: sample(1), 14: sample(5)})
    assert found == [0, 0, None, None, 0]


def test_an_unknown_task_has_no_points() -> None:
    assert ended(ALL, {}) == [None] * 5


def test_counters_that_begin_anew_are_no_negative_rate() -> None:
    assert ended(ALL, {10: sample(100), 11: sample(3)})[0] == 0


@pytest.mark.parametrize("row", [b"", b"1 2 3", b"1 2 3 4 5 6 7 x", b"1 2 3 4 5 6 7 -8", b"9" * 200])
def test_a_row_that_is_none(row: bytes) -> None:
    assert series.decode(row) is None


def test_a_row() -> None:
    assert series.decode(b"1 2 3 4 5 6 7 8500") == Sample(1, 2, 3, 4, 5, 6, 7, 8.5)


@pytest.mark.parametrize("seconds", [0.0, 0.0002, 0.004, 0.1, 1.0, 33.0, 3600.0, 10.0**9])
def test_a_time_lies_within_its_bucket(seconds: float) -> None:
    low, high = series.bounds_s(series.bucket(seconds))
    assert low <= seconds + 1e-4
    assert seconds <= high * 1.01 or series.bucket(seconds) == series.MOST_BUCKET


def test_quantiles_are_near() -> None:
    times = Times()
    for number in range(1, 1001):
        times.note(number / 1000, number / 10)
    assert times.encode() == Times.decode(times.encode().encode()).encode()
    assert 0.35 < (series.quantile_s(times.waits, 0.5) or 0) < 0.7
    assert 70 < (series.quantile_s(times.runs, 0.95) or 0) < 135
    assert series.quantile_s({}, 0.5) is None


def test_times_add_up_and_what_is_none_is_left_out() -> None:
    times = Times.decode(b"s3=2 junk r4=1 s99999=1 s3=x")
    times.add(Times({3: 1}, {9: 4}))
    assert (times.waits, times.runs) == ({3: 3}, {4: 1, 9: 4})
