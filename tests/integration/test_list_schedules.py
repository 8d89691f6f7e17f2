"""list_schedules: how schedules stand, and why one waits."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench
from tests.integration.made_schedules import ready, spec
from upnext.core.schedules import encode
from upnext.engine.calls import schedules as calls
from upnext.engine.redis.scripts import run_calls_blocking
from upnext.engine.views import crons


def test_rows_that_can_not_be_read_are_passed_over(work: Workbench) -> None:
    ready(work)
    for field, row in (("odd", "no JSON"), (b"\xff", encode(spec())), ("old", '{"task": 7}')):
        work.broker.command("HSET", work.keys.schedules, field, row)
    assert [one.name for one in crons.schedules(work.broker, work.keys)] == ["nightly"]


def test_arguments_of_the_one_that_is_asked_for_alone(work: Workbench) -> None:
    ready(work)
    [one] = run_calls_blocking(calls.list_schedules(work.keys, "nightly"), work.broker.run)[1]
    assert (one.arguments, one.service, one.spec) == (b'{"order_id":"A1"}', "orders", spec())
    [same] = run_calls_blocking(calls.list_schedules(work.keys), work.broker.run)[1]
    assert same.arguments is None
    assert run_calls_blocking(calls.list_schedules(work.keys, "other"), work.broker.run)[1] == []


def test_why_one_waits(work: Workbench) -> None:
    ready(work)

    def waits() -> str | None:
        return crons.schedule(work.broker, work.keys, "nightly").waits

    assert waits() is None
    work.broker.command("SADD", work.keys.paused, "ship")
    assert waits() == "its task ship is paused"
    work.broker.command("HDEL", work.keys.tasks, "ship")
    assert waits() == "its task ship is not registered"
