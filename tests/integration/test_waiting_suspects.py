"""waiting_suspects: how many suspects wait to be run alone."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from upnext.engine.calls import lease


def waiting(work: Workbench) -> int:
    return work.broker.run(lease.waiting_suspects(work.keys, work.names))


def add(work: Workbench, name: str, count: int) -> None:
    for number in range(count):
        work.add(name, "x", "p1", b"{}", "m", b'{"i":"%s:n%d-0","l":"n"}' % (name.encode(), number))


def test_what_is_fetched_waits_no_more(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    assert waiting(work) == 0
    add(work, "a", 2)
    add(work, "b", 1)
    assert waiting(work) == 3
    one = work.take(suspect=True)
    assert waiting(work) == 2
    work.finish(one)
    assert waiting(work) == 2


def test_those_of_a_paused_task_do_not_count(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    add(work, "a", 1)
    work.broker.command("SADD", work.keys.paused, "a")
    assert waiting(work) == 0
    work.broker.command("SREM", work.keys.paused, "a")
    assert waiting(work) == 1


def test_without_a_group_and_without_tasks(work: Workbench) -> None:
    work.register(task("a"))
    add(work, "a", 1)
    work.broker.command("XGROUP", "DESTROY", work.keys.stream("a", "x"), "w")
    assert waiting(work) == 1
    work.broker.command("SET", work.keys.stream("b", "x"), "no stream")
    work.register(task("a"))
    assert work.broker.run(lease.waiting_suspects(work.keys, ["a", "b"])) == 1
    assert work.broker.run(lease.waiting_suspects(work.keys, [])) == 0
