"""When a child has used up what it may."""

from __future__ import annotations

from upnextd.supervisor.recycling import RecycleLimits, allowance


def test_without_limits_everybody_stays() -> None:
    assert allowance(None, None, 1).used_up(1 << 40, 1 << 50) is None


def test_limits_are_jittered_to_the_safe_side() -> None:
    jobs = {allowance(1000, None, token).jobs for token in range(200)}
    sizes = {allowance(None, 1000, token).rss_bytes for token in range(200)}
    assert all(job is not None and 1000 <= job <= 1100 for job in jobs)
    assert all(size is not None and 900 <= size <= 1000 for size in sizes)
    assert len(jobs) > 50
    assert len(sizes) > 50
    assert allowance(1000, 1000, 7) == allowance(1000, 1000, 7)


def test_one_job_is_one_job() -> None:
    assert {allowance(1, None, token).jobs for token in range(50)} == {1}


def test_used_up() -> None:
    limits = RecycleLimits(jobs=10, rss_bytes=100 << 20)
    assert limits.used_up(9, 100 << 20) is None
    assert limits.used_up(10, 0) == "10 jobs"
    assert limits.used_up(0, 101 << 20) == "101 MiB"
