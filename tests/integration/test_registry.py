"""registry: all that is registered, with who announces and who serves it; a bad row harms itself alone."""

from __future__ import annotations

import json

from tests.integration.lua_harness import Workbench, task
from tests.integration.owning import announce, register, registry, statement
from upnext.core.spec import CronSpec, TaskKind

SHIP = task("ship")
TIDY = task("tidy", cron=CronSpec("* * * * *"))
MAIL = task("paid.mail", event="paid")


def test_definitions_announcers_and_what_is_served(work: Workbench) -> None:
    work.register(SHIP, service="shop")
    register(work, TIDY, MAIL, returns=False, passing=True, generation_ms=3)
    announce(work, statement(SHIP, TIDY, MAIL, serves=["tidy"], generation_ms=3))
    found = registry(work)
    by_name = {one.name: one for one in found.definitions}
    assert {name: one.kind for name, one in by_name.items()} == {
        "ship": TaskKind.TASK, "tidy": TaskKind.CRON, "paid.mail": TaskKind.EVENT,
    }  # fmt: skip
    tidy = by_name["tidy"]
    assert (tidy.service, tidy.generation_ms, tidy.daemon, tidy.passing, tidy.active) == ("shop", 3, None, True, True)
    assert abs(tidy.seen_ms - found.now_ms) < 60_000
    [stated] = found.announcers
    assert (stated.id, stated.service, stated.host, stated.serves) == ("d1", "shop", "host-d1", {"tidy"})
    assert stated.until_ms > found.now_ms
    assert found.served == {"ship"}, "by a consumer whose lease is in force"
    assert found.unreadable == []


def test_consumers_whose_lease_has_ended_serve_nothing(work: Workbench) -> None:
    work.register(SHIP, lease_ms=-1)
    assert registry(work).served == set()


def test_rows_of_an_older_version(work: Workbench) -> None:
    register(work, SHIP)
    row = {
        "service": "worker",
        "kind": "event",
        "event": "paid",
        "signature": "mail()",
        "shared": False,
        "generation_ms": 8,
    }
    work.broker.command("HSET", work.keys.tasks, "paid.old", json.dumps(row))
    work.broker.command("HSET", work.keys.event("paid"), "paid.old", 77)
    [old] = [one for one in registry(work).definitions if one.name == "paid.old"]
    assert (old.service, old.daemon, old.seen_ms, old.active) == ("worker", "", 77, True)


def test_rows_that_cannot_be_read_are_named_and_left_out(work: Workbench) -> None:
    register(work, SHIP, TIDY)
    command = work.broker.command
    for raw in ("no JSON", "[]", '{"kind": 7, "event": {}, "generation_ms": "x"}', b"\xff"):
        command("HSET", work.keys.tasks, f"bad-{len(raw)}", raw)
    command("HSET", work.keys.tasks, b"\xff\xfe", "{}")
    command("HSET", work.keys.crons, "bad", "no JSON")
    command("HSET", work.keys.announcers, "bad", "no JSON")
    command("HSET", work.keys.announcers, "odd", '{"declares": [], "serves": {}, "generation_ms": null, "file": 3}')
    command("HSET", work.keys.seen, "ship", "no number")
    command("HSET", work.keys.consumers, "bad", "no JSON")
    command("ZADD", work.keys.leases, work.now_ms() + 60_000, "bad")
    command("SET", work.keys.event("paid"), "of another type")
    command("HSET", work.keys.tasks, "paid.mail", '{"kind": "event", "event": "paid"}')
    found = registry(work)
    assert {"ship", "tidy"} <= {one.name for one in found.definitions}
    assert len(found.unreadable) == 6
    assert any("bad" in row and row.startswith(work.keys.crons) for row in found.unreadable)
    [odd] = found.announcers
    assert (odd.id, odd.generation_ms, odd.file, odd.until_ms) == ("odd", 0, None, 0)


def test_nothing_at_all(work: Workbench) -> None:
    found = registry(work)
    assert (found.definitions, found.announcers, found.served, found.lapsed) == ([], [], set(), {})
