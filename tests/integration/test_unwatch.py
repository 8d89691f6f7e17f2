"""unwatch: a waiter's registration taken back."""

from __future__ import annotations

from tests.integration.workbench import Workbench, task
from upnext.engine.calls import producing


def test_only_ones_own(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    for channel in ("a", "b", "ab"):
        work.broker.run(producing.watch(work.keys, job_id, channel))
    assert work.broker.run(producing.unwatch(work.keys, job_id, "a")) is True
    assert work.hash(work.keys.waiters) == {job_id: "b ab"}
    assert work.broker.run(producing.unwatch(work.keys, job_id, "a")) is False
    work.broker.run(producing.unwatch(work.keys, job_id, "ab"))
    work.broker.run(producing.unwatch(work.keys, job_id, "b"))
    assert work.hash(work.keys.waiters) == {}


def test_nobody_waits(work: Workbench) -> None:
    assert work.broker.run(producing.unwatch(work.keys, "ship:n1-0", "a")) is False
    assert work.everything() == {}
