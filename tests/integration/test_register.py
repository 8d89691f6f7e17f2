"""register: a consumer is known, with its streams, before it fetches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.integration.workbench import CONSUMER, OTHER, Workbench, task
from upnext.core.keys import SCHEMA
from upnext.core.spec import CronSpec, MissedRunPolicy, RateLimit, TaskSpec
from upnext.engine.calls import keeping
from upnext.engine.replies import ReplyError


def register(
    work: Workbench,
    tasks: Sequence[TaskSpec],
    *,
    consumer: str = CONSUMER,
    service: str = "orders",
    generation_ms: int = 1,
    lease_ms: int = 60_000,
) -> tuple[str, int]:
    work.names = [one.name for one in tasks]
    record = {"daemon": "d1", "service": service, "tasks": work.names, "since_ms": 1}
    registration = keeping.Registration(consumer, record, service, generation_ms, lease_ms, tasks)
    work.epoch, server_ms = work.broker.run(keeping.register(work.keys, registration, f"epoch-of-{consumer}"))
    return work.epoch, server_ms


def told(work: Workbench, key: str, name: str) -> Any:
    return json.loads(work.hash(key)[name])


def test_the_first_makes_the_epoch_and_the_second_gets_it(work: Workbench) -> None:
    first, server_ms = register(work, [task("ship")])
    assert first == f"epoch-of-{CONSUMER}"
    assert abs(server_ms - work.now_ms()) < 5_000
    assert register(work, [task("ship")], consumer=OTHER)[0] == first
    assert int(work.broker.command("GET", work.keys.schema)) == SCHEMA


def test_streams_groups_lease_and_record(work: Workbench) -> None:
    _, server_ms = register(work, [task("a"), task("b")], lease_ms=7_000)
    for name in "ab":
        for stream in work.keys.streams(name):
            [group] = work.broker.command("XINFO", "GROUPS", stream)
            assert group[group.index(b"name") + 1] == b"w"
    assert float(work.broker.command("ZSCORE", work.keys.leases, CONSUMER)) == server_ms + 7_000
    assert told(work, work.keys.consumers, CONSUMER)["tasks"] == ["a", "b"]
    assert told(work, work.keys.tasks, "a")["service"] == "orders"


def test_again_it_disturbs_nothing(work: Workbench) -> None:
    register(work, [task("ship")])
    job_id = work.submit("ship")
    one = work.take()
    register(work, [task("ship")])
    work.submit("ship")
    assert work.pending("ship") == 1
    work.finish(one)
    assert work.take().job_id != job_id


def test_jobs_sent_before_anybody_registered_are_there(work: Workbench) -> None:
    job_id = work.submit("ship")
    register(work, [task("ship")])
    assert work.take().job_id == job_id


def test_another_living_service_with_a_task_of_that_name(work: Workbench) -> None:
    register(work, [task("ship")])
    before = work.everything()
    with pytest.raises(ReplyError, match="CONFLICT ship orders"):
        register(work, [task("pack"), task("ship")], consumer=OTHER, service="shop")
    assert work.everything() == before


def test_a_service_that_is_gone_yields_its_names(work: Workbench) -> None:
    register(work, [task("ship")], lease_ms=-1)
    register(work, [task("ship")], consumer=OTHER, service="shop")
    assert told(work, work.keys.tasks, "ship")["service"] == "shop"


def test_a_shared_task_may_be_in_two_services(work: Workbench) -> None:
    register(work, [task("ship", shared=True)])
    register(work, [task("ship", shared=True)], consumer=OTHER, service="shop")


def test_data_of_a_newer_schema(work: Workbench) -> None:
    work.broker.command("SET", work.keys.schema, SCHEMA + 1)
    register(work, [task("ship")])
    assert int(work.broker.command("GET", work.keys.schema)) == SCHEMA + 1
    work.broker.command("SET", work.keys.schema, SCHEMA + 2)
    before = work.everything()
    with pytest.raises(ReplyError, match="SCHEMA"):
        register(work, [task("ship")], consumer=OTHER)
    assert work.everything() == before


def test_the_newest_code_says_what_a_task_is(work: Workbench) -> None:
    register(work, [task("ship", retries=2, rate_limit=RateLimit(5, 1.0))], generation_ms=20)
    register(work, [task("ship", retries=1)], consumer=OTHER, generation_ms=10)
    assert told(work, work.keys.tasks, "ship")["options"]["retries"] == 2
    assert told(work, work.keys.limits, "ship") == {"rate": 5, "period_s": 1.0}
    register(work, [task("ship", retries=3)], consumer=OTHER, generation_ms=30)
    assert told(work, work.keys.tasks, "ship")["options"]["retries"] == 3
    assert work.hash(work.keys.limits) == {}


def test_the_bell_rings_when_limits_change(work: Workbench) -> None:
    with work.bell() as words:
        register(work, [task("ship")])
        assert words == []
        register(work, [task("ship", max_concurrency=1)])
        register(work, [task("ship", max_concurrency=1)])
    assert words == ["p"]


def test_a_new_cron_starts_now_and_keeps_its_cursor(work: Workbench) -> None:
    _, server_ms = register(work, [task("tidy", cron=CronSpec("* * * * *"))])
    assert int(work.hash(work.keys.cursors)["tidy"]) == server_ms
    cron = told(work, work.keys.crons, "tidy")
    assert (cron["schedule"], cron["timezone"], cron["last_seen_ms"]) == ("* * * * *", "UTC", server_ms)
    register(work, [task("tidy", cron=CronSpec("* * * * *", missed=MissedRunPolicy.SKIP))], generation_ms=2)
    assert int(work.hash(work.keys.cursors)["tidy"]) == server_ms
    assert told(work, work.keys.crons, "tidy")["missed"] == "skip"


def test_a_changed_schedule_starts_now_and_old_code_changes_nothing(work: Workbench) -> None:
    register(work, [task("tidy", cron=CronSpec("* * * * *"))], generation_ms=5)
    work.broker.command("HSET", work.keys.cursors, "tidy", 1)
    register(work, [task("tidy", cron=CronSpec("0 * * * *"))], generation_ms=4)
    assert work.hash(work.keys.cursors)["tidy"] == "1"
    assert told(work, work.keys.crons, "tidy")["schedule"] == "* * * * *"
    _, server_ms = register(work, [task("tidy", cron=CronSpec("* * * * *", "Europe/Rome"))], generation_ms=6)
    assert int(work.hash(work.keys.cursors)["tidy"]) == server_ms


def test_handlers_are_known_to_their_event(work: Workbench) -> None:
    _, server_ms = register(work, [task("paid.mail", event="paid"), task("paid.ship", event="paid"), task("ship")])
    assert work.hash(work.keys.event("paid")) == {"paid.mail": str(server_ms), "paid.ship": str(server_ms)}


def test_no_tasks_at_all(work: Workbench) -> None:
    register(work, [])
    assert list(work.hash(work.keys.consumers)) == [CONSUMER]


def test_hundreds_of_tasks(work: Workbench) -> None:
    register(work, [task(f"t{number}") for number in range(300)])
    assert len(work.hash(work.keys.tasks)) == 300
    assert work.leaks() == []
