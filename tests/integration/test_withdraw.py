"""withdraw: an announcer ends; what it declared stays."""

from __future__ import annotations

from dataclasses import replace

from tests.integration.lua_harness import Workbench, task
from tests.integration.owning import announce, register, rows, statement
from upnext.core.spec import CronSpec
from upnext.engine.calls import ownership

TIDY = task("tidy", cron=CronSpec("* * * * *"))
MAIL = task("paid.mail", event="paid")


def test_one_that_stops_leaves_its_crons_and_handlers(work: Workbench) -> None:
    register(work, TIDY, MAIL)
    announce(work, statement(TIDY, MAIL))
    announce(work, statement(TIDY, daemon="d2"))
    assert work.broker.run(ownership.withdraw(work.keys, work.epoch, ["d1"])) == 1
    assert list(rows(work, work.keys.announcers)) == ["d2"]
    assert work.broker.command("ZRANGE", work.keys.announced, 0, -1) == [b"d2"]
    assert list(work.hash(work.keys.crons)) == ["tidy"]
    assert list(work.hash(work.keys.event("paid"))) == ["paid.mail"]


def test_ended_ones_go_and_one_that_came_back_stays(work: Workbench) -> None:
    register(work, TIDY)
    announce(work, statement(TIDY), lease_ms=-1)
    announce(work, statement(TIDY, daemon="d2"))
    assert work.broker.run(ownership.withdraw(work.keys, work.epoch, ["d1", "d2", "d3"], ended=True)) == 1
    assert list(rows(work, work.keys.announcers)) == ["d2"]


def test_a_successor_s_statement_stays(work: Workbench) -> None:
    register(work, TIDY)
    announce(work, replace(statement(TIDY), token="successor"))
    assert work.broker.run(ownership.withdraw(work.keys, work.epoch, ["d1"], token="predecessor")) == 0
    assert work.broker.run(ownership.withdraw(work.keys, work.epoch, ["d1"], token="successor")) == 1


def test_another_epoch(work: Workbench) -> None:
    register(work, TIDY)
    announce(work, statement(TIDY))
    work.refuses_another_epoch(lambda epoch: ownership.withdraw(work.keys, epoch, ["d1"]))
