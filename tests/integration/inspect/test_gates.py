"""gates: why a job waits."""

from __future__ import annotations

import re
import time

from tests.integration.inspect.bench import Bench, task
from upnext.core.spec import RateLimit
from upnext.engine.views import tasks
from upnext.engine.views.explain import Explanation, Gate, explain


def why(bench: Bench, job_id: str, idle: frozenset[tuple[str, int]] = frozenset()) -> Explanation:
    return explain(bench.broker, bench.keys, job_id, idle)


def test_its_turn(bench: Bench) -> None:
    bench.register(task("ship"))
    submitted = [bench.submit("ship") for _ in range(5)]
    bench.take()
    found = why(bench, submitted[3])
    assert (found.gate, found.position) == (Gate.TURN, 3)
    assert "number 3 in lane normal" in found.detail
    assert why(bench, bench.submit("ship", priority="high")).position == 1


def test_paused(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    tasks.pause(bench.broker, bench.keys, "ship")
    assert (why(bench, job_id).gate, why(bench, job_id).position) == (Gate.PAUSED, 1)
    tasks.resume(bench.broker, bench.keys, "ship")
    assert why(bench, job_id).gate is Gate.TURN


def test_no_worker(bench: Bench) -> None:
    assert why(bench, bench.submit("ship")).gate is Gate.NO_WORKER
    bench.register(task("pack"))
    job_id = bench.submit("ship")
    assert why(bench, job_id).gate is Gate.NO_WORKER
    bench.register(task("ship"), lease_ms=-1)
    assert why(bench, job_id).gate is Gate.NO_WORKER


def test_draining(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    assert why(bench, job_id, frozenset({("here", 4711)})).gate is Gate.DRAINING
    assert why(bench, job_id, frozenset({("elsewhere", 4711)})).gate is Gate.TURN


def test_concurrency(bench: Bench) -> None:
    bench.register(task("ship", max_concurrency=2))
    for _ in range(2):
        bench.submit("ship", limited=True)
    waiting = bench.submit("ship", limited=True)
    assert why(bench, waiting).gate is Gate.TURN
    first, _ = bench.fetch()
    found = why(bench, waiting)
    assert (found.gate, found.detail) == (Gate.CONCURRENCY, "2 jobs of task ship run, max_concurrency is 2")
    bench.finish(first)
    assert why(bench, waiting).gate is Gate.TURN


def test_rate(bench: Bench) -> None:
    bench.register(task("ship", rate_limit=RateLimit(1, 60.0)))
    bench.submit("ship", limited=True)
    waiting = bench.submit("ship", limited=True)
    assert len(bench.fetch()) == 1
    found = why(bench, waiting)
    assert found.gate is Gate.RATE
    assert "rate_limit 1 per 60 s" in found.detail


def test_suspect(bench: Bench) -> None:
    bench.register(task("ship"))
    first = bench.submit("ship")
    bench.submit("ship")
    bench.crash(*bench.fetch())
    bench.register(task("ship"), consumer="consumer-2")
    assert why(bench, first).gate is Gate.SUSPECT


def test_elsewhere(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    taken = bench.take()
    assert (why(bench, job_id).gate, why(bench, job_id).position) == (Gate.RUNNING, None)
    now_ms = time.time_ns() // 1_000_000
    running = explain(bench.broker, bench.keys, job_id, now_ms=now_ms).detail
    assert re.fullmatch(r".+ \(pid \d+\) has it since \d+\.\d s", running), running
    bench.finish(taken)
    assert why(bench, job_id).gate is Gate.ENDED
    later = explain(bench.broker, bench.keys, bench.submit("ship", delay_s=60.0), now_ms=now_ms)
    assert later.gate is Gate.DELAYED
    due = re.fullmatch(r"it is due at \d{4}-\S+Z, in (\d+\.\d) s", later.detail)
    assert due is not None, later.detail
    assert 50 < float(due[1]) <= 70
