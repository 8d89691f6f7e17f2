"""set_limits: operators' limits go before the declared ones, until they are taken back."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from tests.integration.owning import register, rows
from upnext.core.spec import RateLimit
from upnext.engine.calls import ownership

SHIP = task("ship", rate_limit=RateLimit(5, 0.5), max_concurrency=3)


def test_set_lifted_and_as_declared_again(work: Workbench) -> None:
    register(work, SHIP)
    declared = rows(work, work.keys.limits)["ship"]
    with work.bell() as words:
        assert work.broker.run(ownership.set_limits(work.keys, "ship", {"concurrency": 1}))
        assert rows(work, work.keys.limits) == {"ship": {"concurrency": 1}}
        assert work.broker.run(ownership.set_limits(work.keys, "ship", None))
        assert rows(work, work.keys.limits) == {}
        assert rows(work, work.keys.limits_set) == {"ship": None}
        assert work.broker.run(ownership.set_limits(work.keys, "ship", None, declared=True))
    assert rows(work, work.keys.limits) == {"ship": declared}
    assert rows(work, work.keys.limits_set) == {}
    assert words == ["p", "p", "p"]


def test_a_task_that_declares_none(work: Workbench) -> None:
    register(work, task("pack"))
    work.broker.run(ownership.set_limits(work.keys, "pack", {"concurrency": 1}))
    work.broker.run(ownership.set_limits(work.keys, "pack", None, declared=True))
    assert rows(work, work.keys.limits) == {}


def test_a_task_that_nobody_registered(work: Workbench) -> None:
    register(work, SHIP)
    before = work.everything()
    assert not work.broker.run(ownership.set_limits(work.keys, "pack", {"concurrency": 1}))
    assert work.everything() == before
