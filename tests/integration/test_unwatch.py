"""unwatch: a waiter's registration taken back."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from upnext.engine.calls import client


def test_only_ones_own(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    for channel in ("a", "b", "ab"):
        work.broker.run(client.watch(work.keys, job_id, channel))
    assert work.broker.run(client.unwatch(work.keys, job_id, "a", 0)) is True
    assert work.hash(work.keys.waiters) == {job_id: "b#0 ab#0"}
    assert work.broker.run(client.unwatch(work.keys, job_id, "a", 0)) is False
    work.broker.run(client.unwatch(work.keys, job_id, "ab", 0))
    work.broker.run(client.unwatch(work.keys, job_id, "b", 0))
    assert work.hash(work.keys.waiters) == {}


def test_nobody_waits(work: Workbench) -> None:
    assert work.broker.run(client.unwatch(work.keys, "ship:n1-0", "a", 0)) is False
    assert work.everything() == {}


def test_a_late_call_leaves_the_newer_registration(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    for number in (1, 3, 2):  # the last is a late one itself
        work.broker.run(client.watch(work.keys, job_id, "a", number))
    assert work.hash(work.keys.waiters) == {job_id: "a#3"}
    assert work.broker.run(client.unwatch(work.keys, job_id, "a", 2)) is False
    assert work.hash(work.keys.waiters) == {job_id: "a#3"}
    assert work.broker.run(client.unwatch(work.keys, job_id, "a", 3)) is True
    assert work.hash(work.keys.waiters) == {}
