"""The suite `mixed`: tasks that wait, block, fail, return much, are limited, or handle events."""

from __future__ import annotations

from rig import Rig, Values, steady_rate
from table import Row, Size

SERVICE = "mixed_service"
LIMITED = 1.0
HANDLERS = 5
WINDOW_S = 10.0
SETTLE_S = 1.0


def sleeping(size: Size) -> Values:
    """Each waits 10 ms, 100 at a time in one worker: 10,000/s is what there is."""
    rate = _drain_rate("sleeping", size(50_000), bare=True)
    return {"rate": rate, "share": rate / 10_000}


def threads(size: Size) -> Values:
    """Plain functions, in a pool of 100 threads and in one of 8."""
    return {
        "many": _drain_rate("in_thread", size(30_000)),
        "few": _drain_rate("in_thread", size(30_000), concurrency=8),
    }


def results(size: Size) -> Values:
    """Jobs that return 4 KiB, which are kept."""
    return {"rate": _drain_rate("big_result", size(100_000), bare=True)}


def retries(size: Size) -> Values:
    """One job in ten fails once and is tried again 0.2 s later."""
    jobs = size(50_000)
    attempts = jobs + jobs // 10
    with Rig(SERVICE) as rig:
        rig.produce("fill", names=["flaky"], count=jobs, numbered=True)
        rig.start()
        rig.wait_for(attempts)
        times = [at for _, at, _ in rig.records()]
    rate = steady_rate(times)
    return {"attempts": rate, "jobs": rate * jobs / attempts, "all_s": max(times) - min(times)}


def limits(size: Size) -> Values:
    """A task limited to 100/s, more than enough of it waiting, beside one without a limit; and that one alone."""
    seconds = size(WINDOW_S)
    with Rig(SERVICE) as rig:
        rig.produce("fill", names=["limited"], count=int(100 * 10 * (seconds + SETTLE_S)))
        rig.produce("fill", names=["free"], count=size(1_000_000))
        rig.start()
        rig.wait_for(1)
        begin = min(at for _, at, _ in rig.records()) + SETTLE_S
        rig.wait_for(size(500_000))
        records = rig.records()
    end = min(begin + seconds, max(at for _, at, mark in records if mark != LIMITED))
    inside = [(at, mark) for _, at, mark in records if begin <= at < end]
    starts = sorted(at for _, at, mark in records if mark == LIMITED)
    return {
        "limited": sum(mark == LIMITED for _, mark in inside) / (end - begin),
        "limited_most_in_1s": float(max(sum(first <= at < first + 1 for at in starts) for first in starts)),
        "free": sum(mark != LIMITED for _, mark in inside) / (end - begin),
        "free_alone": _drain_rate("free", size(200_000)),
    }


def events(size: Size) -> Values:
    """An event with five handlers: sent one by one and 100 at a time, then its jobs drained by one worker."""
    one_by_one, together = size(2_000), size(20_000)
    with Rig(SERVICE) as rig:
        rig.produce("send", count=100, in_flight=100)
        values = {
            "one_by_one": rig.produce("send", count=one_by_one, in_flight=1)["rate"],
            "together": rig.produce("send", count=together, in_flight=100)["rate"],
        }
        jobs = HANDLERS * (100 + one_by_one + together)
        rig.start()
        rig.wait_for(jobs)
        return {**values, "jobs": steady_rate([at for _, at, _ in rig.records()])}


def _drain_rate(task: str, count: int, *, bare: bool = False, concurrency: int = 100) -> float:
    with Rig(SERVICE, concurrency=concurrency) as rig:
        rig.produce("fill", names=[task], count=count, bare=bare)
        rig.start()
        rig.wait_for(count)
        return steady_rate([at for _, at, _ in rig.records()])


MEASURES = (sleeping, threads, results, retries, limits, events)

ROWS = (
    Row("sleep of 10 ms, concurrency 100, jobs/s", "sleeping.rate"),
    Row("… share of the ideal 10,000", "sleeping.share"),
    Row("plain functions, 100 threads, jobs/s", "threads.many"),
    Row("plain functions, 8 threads, jobs/s", "threads.few"),
    Row("results of 4 KiB, jobs/s", "results.rate"),
    Row("10 % fail once, jobs/s", "retries.jobs"),
    Row("10 % fail once, attempts/s", "retries.attempts"),
    Row("task limited to 100/s, starts/s", "limits.limited"),
    Row("… most starts within any second", "limits.limited_most_in_1s"),
    Row("free task beside it, jobs/s", "limits.free"),
    Row("free task alone, jobs/s", "limits.free_alone"),
    Row("event with 5 handlers, sent one by one, events/s", "events.one_by_one"),
    Row("event with 5 handlers, 100 in flight, events/s", "events.together"),
    Row("its handlers, jobs/s", "events.jobs"),
)
