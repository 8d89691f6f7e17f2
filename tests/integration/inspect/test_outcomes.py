"""outcomes: results of several jobs, as many as a reply may hold."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.batches import CALL_BYTES
from upnext.engine.calls import inspect
from upnext.engine.views import jobs


def test_those_that_are_kept(bench: Bench) -> None:
    bench.register(task("ship"))
    first, second = bench.submit("ship"), bench.submit("ship")
    for one in bench.fetch():
        bench.finish(one, b"7")
    bench.broker.command("SET", bench.keys.result("ship:n1-1"), "garbage")
    found = jobs.outcomes(bench.broker, bench.keys, [first, "ship:n9-9", "ship:n1-1", second])
    assert [one and one.value for one in found] == [b"7", None, None, b"7"]


def test_large_ones_come_in_parts(bench: Bench) -> None:
    ids = [f"ship:n{number}-1" for number in range(1, 7)]
    for job_id in ids:
        bench.broker.command("SET", bench.keys.result(job_id), b'{"s":"done","v":"%s"}' % (b"x" * (CALL_BYTES // 2)))
    assert len(bench.broker.run(inspect.outcomes(bench.keys, ids))) == 2
    assert all(jobs.outcomes(bench.broker, bench.keys, ids))
