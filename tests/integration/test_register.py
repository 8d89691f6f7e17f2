"""register: a consumer is known, with its streams, before it fetches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.lua_harness import CONSUMER, OTHER, Workbench, task
from upnext.core.binding import Signature
from upnext.core.keys import SCHEMA
from upnext.core.ownership import Source
from upnext.core.spec import CronSpec, MissedRunPolicy, RateLimit, TaskOptions, TaskSpec
from upnext.engine.calls import lease, ownership
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import Calls, run_calls_blocking

D1 = Source("d1")


def register(
    work: Workbench,
    tasks: Sequence[TaskSpec],
    *,
    consumer: str = CONSUMER,
    service: str = "orders",
    generation_ms: int = 1,
    lease_ms: int = 60_000,
    source: Source = D1,
) -> tuple[str, int]:
    work.names = [one.name for one in tasks]
    record = {"daemon": source.daemon, "service": service, "tasks": work.names, "since_ms": 1}
    registration = lease.Registration(consumer, record, service, generation_ms, lease_ms, tasks, source=source)
    parts = lease.register_by_parts(work.keys, registration, f"epoch-of-{consumer}")
    work.epoch, server_ms = run_calls_blocking(parts, work.broker.run)
    return work.epoch, server_ms


def row_of(work: Workbench, key: str, name: str) -> Any:
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
    assert row_of(work, work.keys.consumers, CONSUMER)["tasks"] == ["a", "b"]
    assert row_of(work, work.keys.tasks, "a")["owner"] == "orders"


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


SHOP = Source("d1", "host-1", "/srv/shop/worker.py")
MAIL = Source("d2", "host-2", "/srv/mail/worker.py")


def conflict(work: Workbench, *tasks: TaskSpec, source: Source = MAIL, service: str = "mail/worker") -> dict[str, str]:
    """What a refused registration says; it has written nothing."""
    before = work.everything()
    with pytest.raises(ReplyError, match="CONFLICT") as refused:
        register(work, tasks, consumer=OTHER, service=service, source=source)
    assert work.everything() == before
    return json.loads(str(refused.value).partition(" ")[2])


def other_signature(name: str) -> TaskSpec:
    return replace(task(name), arguments=Signature.of(lambda order_id: order_id))


def test_another_living_service_with_a_task_of_that_name_in_another_file(work: Workbench) -> None:
    register(work, [task("ship")], service="shop/worker", source=replace(SHOP, file="/srv/shop/orders.py"))
    assert conflict(work, task("pack"), task("ship")) == {
        "task": "ship", "service": "shop/worker", "file": "/srv/shop/orders.py", "host": "host-1",
    }  # fmt: skip


def test_or_with_another_signature(work: Workbench) -> None:
    register(work, [task("ship")], service="shop/worker", source=SHOP)
    assert conflict(work, other_signature("ship"))["service"] == "shop/worker"


def test_the_same_code_elsewhere_is_let_in(work: Workbench) -> None:
    register(work, [task("ship")], service="shop/worker", source=SHOP)
    register(work, [task("ship")], consumer=OTHER, service="mail/worker", source=MAIL)


def test_a_daemon_whose_workers_are_away_still_owns_its_tasks(work: Workbench) -> None:
    register(work, [task("ship")], service="shop/worker", source=SHOP, lease_ms=-1)
    statement = ownership.Statement("d1", "shop/worker", 1, "host-1", SHOP.file, {"ship": "ship()"}, ["ship"])
    for call in ownership.announce(work.keys, work.epoch, statement, 60_000):
        work.broker.run(call)
    assert conflict(work, other_signature("ship"))["host"] == "host-1"


def test_a_daemon_is_no_other_service_than_its_former_self(work: Workbench) -> None:
    register(work, [task("ship")], service="shop/worker", source=SHOP)
    register(work, [other_signature("ship")], consumer=OTHER, service="shop", source=SHOP)
    assert row_of(work, work.keys.tasks, "ship")["owner"] == "shop"


def test_a_service_that_is_gone_yields_its_names(work: Workbench) -> None:
    register(work, [task("ship")], lease_ms=-1)
    register(work, [other_signature("ship")], consumer=OTHER, service="mail", source=MAIL)
    assert row_of(work, work.keys.tasks, "ship")["owner"] == "mail"


def test_a_task_that_both_share_may_be_in_two_services(work: Workbench) -> None:
    register(work, [task("ship", shared=True)])
    register(work, [task("ship", shared=True)], consumer=OTHER, service="mail", source=MAIL)
    register(work, [replace(other_signature("ship"), options=TaskOptions(shared=True))], consumer=OTHER, service="web")


# --- records of a version that named services by the bare stem


def of_an_older_version(work: Workbench, name: str, service: str) -> None:
    """As that version wrote it."""
    register(work, [task(name)], service=service, source=Source("d0"))
    row = row_of(work, work.keys.tasks, name)
    for word in ("owner", "daemon", "host", "file"):
        del row[word]
    work.broker.command("HSET", work.keys.tasks, name, json.dumps({**row, "service": service}))
    work.broker.command("DEL", work.keys.seen)


def test_an_older_version_of_this_service_stands_in_nobodys_way(work: Workbench) -> None:
    of_an_older_version(work, "ship", "worker")
    register(work, [task("ship")], consumer=OTHER, service="mail/worker", source=MAIL)
    assert row_of(work, work.keys.tasks, "ship")["owner"] == "mail/worker"


def test_an_older_version_of_another_service_does(work: Workbench) -> None:
    of_an_older_version(work, "ship", "worker")
    assert conflict(work, other_signature("ship")) == {"task": "ship", "service": "worker", "file": "", "host": ""}


def test_older_versions_find_no_service_of_theirs_in_our_rows(work: Workbench) -> None:
    """They refuse a task of another living service, and remove crons and handlers of a service that has their name."""
    register(work, [task("ship"), task("tidy", cron=CronSpec("* * * * *"))], service="worker")
    for key, name in ((work.keys.tasks, "ship"), (work.keys.crons, "tidy")):
        assert "service" not in row_of(work, key, name)


# --- what operators set


def test_a_limit_that_was_set_outlives_every_registration(work: Workbench) -> None:
    register(work, [task("ship", max_concurrency=5), task("pack")])
    assert work.broker.run(ownership.set_limits(work.keys, "ship", {"concurrency": 1}))
    assert work.broker.run(ownership.set_limits(work.keys, "pack", {"concurrency": 2}))
    register(work, [task("ship", max_concurrency=7), task("pack")], consumer=OTHER, generation_ms=9)
    assert row_of(work, work.keys.limits, "ship") == {"concurrency": 1}
    assert row_of(work, work.keys.limits, "pack") == {"concurrency": 2}
    assert row_of(work, work.keys.tasks, "ship")["limits"] == {"concurrency": 7}


def test_so_does_the_lifting_of_a_limit(work: Workbench) -> None:
    register(work, [task("ship", max_concurrency=5)])
    assert work.broker.run(ownership.set_limits(work.keys, "ship", None))
    register(work, [task("ship", max_concurrency=5)], consumer=OTHER, generation_ms=9)
    assert work.hash(work.keys.limits) == {}


# --- code that is being developed, and crons that come back


def test_passing_code_makes_nothing_passing_that_lasts(work: Workbench) -> None:
    passing = Source("d2", returns=False, passing=True)
    register(work, [task("ship")])
    register(work, [task("ship"), task("new")], consumer=OTHER, generation_ms=9, source=passing)
    assert "passing" not in row_of(work, work.keys.tasks, "ship")
    assert row_of(work, work.keys.tasks, "new")["passing"] is True
    register(work, [task("new")], generation_ms=10)
    assert "passing" not in row_of(work, work.keys.tasks, "new")


def test_a_cron_that_lapsed_goes_on_from_its_cursor(work: Workbench) -> None:
    daily = CronSpec("0 0 * * *")
    for schedule, kept in ((daily, True), (CronSpec("1 0 * * *"), False)):
        work.broker.command("DEL", work.keys.crons)
        work.broker.command("HSET", work.keys.cursors, "tidy", 5)
        row = {"schedule": daily.schedule, "timezone": daily.timezone, "at_ms": 1}
        work.broker.command("HSET", work.keys.lapsed, "tidy", json.dumps(row))
        register(work, [task("tidy", cron=schedule)])
        assert (work.hash(work.keys.cursors)["tidy"] == "5") is kept
        assert work.hash(work.keys.lapsed) == {}


def test_rows_that_cannot_be_read_are_written_anew(work: Workbench) -> None:
    work.broker.command("HSET", work.keys.tasks, "ship", "no JSON")
    work.broker.command("HSET", work.keys.crons, "tidy", "[]")
    register(work, [task("ship"), task("tidy", cron=CronSpec("* * * * *"))])
    assert row_of(work, work.keys.tasks, "ship")["owner"] == "orders"
    assert row_of(work, work.keys.crons, "tidy")["schedule"] == "* * * * *"


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
    assert row_of(work, work.keys.tasks, "ship")["options"]["retries"] == 2
    assert row_of(work, work.keys.limits, "ship") == {"rate": 5, "period_s": 1.0}
    register(work, [task("ship", retries=3)], consumer=OTHER, generation_ms=30)
    assert row_of(work, work.keys.tasks, "ship")["options"]["retries"] == 3
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
    cron = row_of(work, work.keys.crons, "tidy")
    assert (cron["schedule"], cron["timezone"], cron["last_seen_ms"]) == ("* * * * *", "UTC", server_ms)
    register(work, [task("tidy", cron=CronSpec("* * * * *", missed=MissedRunPolicy.SKIP))], generation_ms=2)
    assert int(work.hash(work.keys.cursors)["tidy"]) == server_ms
    assert row_of(work, work.keys.crons, "tidy")["missed"] == "skip"


def test_a_changed_schedule_starts_now_and_old_code_changes_nothing(work: Workbench) -> None:
    register(work, [task("tidy", cron=CronSpec("* * * * *"))], generation_ms=5)
    work.broker.command("HSET", work.keys.cursors, "tidy", 1)
    register(work, [task("tidy", cron=CronSpec("0 * * * *"))], generation_ms=4)
    assert work.hash(work.keys.cursors)["tidy"] == "1"
    assert row_of(work, work.keys.crons, "tidy")["schedule"] == "* * * * *"
    _, server_ms = register(work, [task("tidy", cron=CronSpec("* * * * *", "Europe/Rome"))], generation_ms=6)
    assert int(work.hash(work.keys.cursors)["tidy"]) == server_ms


def test_handlers_are_known_to_their_event(work: Workbench) -> None:
    _, server_ms = register(work, [task("paid.mail", event="paid"), task("paid.ship", event="paid"), task("ship")])
    assert work.hash(work.keys.event("paid")) == {"paid.mail": str(server_ms), "paid.ship": str(server_ms)}


def test_no_tasks_at_all(work: Workbench) -> None:
    register(work, [])
    assert list(work.hash(work.keys.consumers)) == [CONSUMER]


MANY = [task(f"t{number}", cron=CronSpec("* * * * *") if number % 50 == 0 else None) for number in range(300)]


def test_hundreds_of_tasks(work: Workbench) -> None:
    register(work, MANY)
    assert len(work.hash(work.keys.tasks)) == 300
    assert len(work.hash(work.keys.crons)) == 6
    assert work.leaks() == []


def _parts(work: Workbench) -> Calls[tuple[str, int]]:
    record = {"daemon": "d1", "service": "orders", "tasks": [one.name for one in MANY]}
    registration = lease.Registration(CONSUMER, record, "orders", 1, 60_000, MANY, source=D1)
    return lease.register_by_parts(work.keys, registration, "epoch-1")


def _run_until_written(work: Workbench, parts: Calls[tuple[str, int]]) -> Any:
    """-> what the first part that wrote something gave."""
    given = None
    while not work.everything():
        given = work.broker.run(parts.send(given))
    return given


def _run_to_the_end(work: Workbench, parts: Calls[tuple[str, int]], given: Any) -> tuple[str, int]:
    try:
        while True:
            given = work.broker.run(parts.send(given))
    except StopIteration as end:
        return end.value


def test_hundreds_of_tasks_are_refused_before_the_first_is_registered(work: Workbench) -> None:
    register(work, [MANY[-1]], service="mail/worker", source=MAIL, consumer=OTHER)
    before = work.everything()
    with pytest.raises(ReplyError, match="CONFLICT"):
        register(work, [*MANY[:-1], other_signature(MANY[-1].name)])
    assert work.everything() == before


def test_what_is_registered_by_parts_is_kept_between_them(work: Workbench) -> None:
    """Its consumer serves all of them from the first part on, so that nothing of it is removed, and who clashes with it is refused."""
    parts = _parts(work)
    given = _run_until_written(work, parts)
    assert 0 < len(work.hash(work.keys.tasks)) < 300
    registry = run_calls_blocking(ownership.registry(work.keys), work.broker.run)
    assert registry.served == {one.name for one in MANY}
    with pytest.raises(ReplyError, match="CONFLICT"):
        register(work, [other_signature("t0")], service="mail/worker", source=MAIL, consumer=OTHER)
    _run_to_the_end(work, parts, given)
    assert len(work.hash(work.keys.tasks)) == 300


def test_data_that_is_replaced_between_the_parts_gets_them_all(work: Workbench) -> None:
    parts = _parts(work)
    given = _run_until_written(work, parts)
    for key in work.everything():
        work.broker.command("DEL", key)
    work.broker.command("SET", work.keys.epoch, "epoch-2")
    epoch, _ = _run_to_the_end(work, parts, given)
    assert epoch == "epoch-2"
    assert len(work.hash(work.keys.tasks)) == 300
    assert list(work.hash(work.keys.consumers)) == [CONSUMER]
