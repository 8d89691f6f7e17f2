"""announce: a daemon's statement is kept, and what it names is renewed."""

from __future__ import annotations

import json

from tests.integration.lua_harness import Workbench, task
from tests.integration.owning import LEASE_MS, announce, register, rows, statement
from upnext.core.spec import CronSpec
from upnext.engine.calls import ownership

SHIP = task("ship")
TIDY = task("tidy", cron=CronSpec("* * * * *"))
MAIL = task("paid.mail", event="paid")


def make_old(work: Workbench) -> None:
    work.broker.command(
        "HSET", work.keys.crons, "tidy", json.dumps({**rows(work, work.keys.crons)["tidy"], "last_seen_ms": 5})
    )
    work.broker.command("HSET", work.keys.event("paid"), "paid.mail", 5)
    for name in ("ship", "tidy", "paid.mail"):
        work.broker.command("HSET", work.keys.seen, name, 5)


def test_all_that_is_named_is_renewed_and_the_cursor_left(work: Workbench) -> None:
    register(work, SHIP, TIDY, MAIL)
    cursors = work.hash(work.keys.cursors)
    make_old(work)
    before_ms = work.now_ms()
    assert announce(work, statement(SHIP, TIDY, MAIL)) == []
    assert rows(work, work.keys.crons)["tidy"]["last_seen_ms"] >= before_ms
    assert int(work.hash(work.keys.event("paid"))["paid.mail"]) >= before_ms
    assert all(int(at) >= before_ms for at in work.hash(work.keys.seen).values())
    assert work.hash(work.keys.cursors) == cursors


def test_the_record_says_what_is_declared_and_what_served_and_has_a_lease(work: Workbench) -> None:
    register(work, SHIP)
    before_ms = work.now_ms()
    announce(work, statement(SHIP, TIDY, serves=["ship"], generation_ms=7))
    record = rows(work, work.keys.announcers)["d1"]
    assert record == {
        "service": "shop", "generation_ms": 7, "host": "host-d1", "file": "/srv/shop.py",
        "declares": {"ship": SHIP.arguments.describe(), "tidy": TIDY.arguments.describe()}, "serves": ["ship"], "token": "",
    }  # fmt: skip
    until_ms = float(work.broker.command("ZSCORE", work.keys.announced, "d1"))
    assert before_ms + LEASE_MS <= until_ms <= work.now_ms() + LEASE_MS


def test_what_is_not_registered_is_told_and_not_made(work: Workbench) -> None:
    register(work, SHIP)
    assert sorted(announce(work, statement(SHIP, TIDY, MAIL, serves=[]))) == ["paid.mail", "tidy", "tidy"]
    assert work.hash(work.keys.crons) == {}
    assert work.hash(work.keys.event("paid")) == {}
    assert list(work.hash(work.keys.seen)) == ["ship"]


def test_a_handler_that_is_served_is_subscribed_again(work: Workbench) -> None:
    register(work, MAIL)
    work.broker.command("DEL", work.keys.event("paid"))
    announce(work, statement(MAIL))
    assert list(work.hash(work.keys.event("paid"))) == ["paid.mail"]


def test_a_cron_that_cannot_be_read_is_told(work: Workbench) -> None:
    register(work, TIDY)
    work.broker.command("HSET", work.keys.crons, "tidy", "no JSON")
    assert announce(work, statement(TIDY)) == ["tidy"]
    assert work.hash(work.keys.crons) == {"tidy": "no JSON"}


def test_more_than_one_batch(work: Workbench) -> None:
    many = [task(f"t{number}") for number in range(ownership.BATCH + 20)]
    register(work, *many)
    work.broker.command("DEL", work.keys.seen)
    assert announce(work, statement(*many)) == []
    assert len(work.hash(work.keys.seen)) == len(many)
    assert len(rows(work, work.keys.announcers)["d1"]["declares"]) == len(many)


def test_another_epoch(work: Workbench) -> None:
    register(work, SHIP)
    work.refuses_another_epoch(lambda epoch: ownership.announce(work.keys, epoch, statement(SHIP), LEASE_MS)[0])
