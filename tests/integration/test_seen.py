"""seen: a service's crons and handlers are renewed; what newer code no longer has is removed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.integration.workbench import Workbench, task
from upnext.core.spec import CronSpec
from upnext.engine.calls import keeping

CRON = CronSpec("* * * * *")


def seen(
    work: Workbench,
    crons: Sequence[str] = (),
    handlers: Sequence[tuple[str, str]] = (),
    *,
    service: str = "orders",
    generation_ms: int = 1,
) -> int:
    return work.broker.run(
        keeping.seen(
            work.keys, work.epoch, service=service, generation_ms=generation_ms, crons=crons, handlers=handlers
        )
    )


def last_seen(work: Workbench, cron: str) -> int:
    return json.loads(work.hash(work.keys.crons)[cron])["last_seen_ms"]


def make_old(work: Workbench, cron: str) -> None:
    known = json.loads(work.hash(work.keys.crons)[cron])
    work.broker.command("HSET", work.keys.crons, cron, json.dumps({**known, "last_seen_ms": 5}))


def test_a_cron_is_renewed_and_its_cursor_left(work: Workbench) -> None:
    work.register(task("tidy", cron=CRON))
    make_old(work, "tidy")
    cursors = work.hash(work.keys.cursors)
    assert seen(work, ["tidy"]) == 0
    assert last_seen(work, "tidy") > 5
    assert work.hash(work.keys.cursors) == cursors


def test_a_cron_that_newer_code_dropped_is_removed(work: Workbench) -> None:
    work.register(task("tidy", cron=CRON), task("sweep", cron=CRON))
    work.broker.command("HSET", work.keys.fired, "tidy", 1, "sweep", 1)
    assert seen(work, ["tidy"], generation_ms=2) == 1
    for key in (work.keys.crons, work.keys.cursors, work.keys.fired):
        assert list(work.hash(key)) == ["tidy"]
    assert seen(work, ["tidy"], generation_ms=2) == 0


def test_old_code_removes_nothing(work: Workbench) -> None:
    work.register(task("tidy", cron=CRON), task("sweep", cron=CRON))
    assert seen(work, ["tidy"], generation_ms=1) == 0
    assert sorted(work.hash(work.keys.crons)) == ["sweep", "tidy"]


def test_other_services_keep_theirs(work: Workbench) -> None:
    work.register(task("tidy", cron=CRON))
    make_old(work, "tidy")
    assert seen(work, service="shop", generation_ms=9) == 0
    assert last_seen(work, "tidy") == 5


def test_handlers_are_renewed_and_made_known_again(work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"))
    work.broker.command("HSET", work.keys.event("paid"), "paid.mail", 5)
    seen(work, handlers=[("paid", "paid.mail"), ("sent", "sent.log")])
    assert int(work.hash(work.keys.event("paid"))["paid.mail"]) > 5
    assert list(work.hash(work.keys.event("sent"))) == ["sent.log"]


def test_a_cron_that_nobody_registered_is_not_made(work: Workbench) -> None:
    work.register(task("ship"))
    before = work.everything()
    assert seen(work, ["unheard-of"]) == 0
    assert work.everything() == before


def test_another_epoch(work: Workbench) -> None:
    work.register(task("tidy", cron=CRON))
    work.refuses_another_epoch(
        lambda epoch: keeping.seen(
            work.keys, epoch, service="orders", generation_ms=9, crons=[], handlers=[("a", "a.b")]
        )
    )
