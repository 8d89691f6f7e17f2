"""hand_back: fetched, unstarted jobs go to lane `back`, each with its id and its own lane."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import CONSUMER, Workbench, task
from upnext.engine.calls import worker


def test_it_waits_in_the_back_lane_under_its_id(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", priority="high", parent_id="p:n1-0", root_id="r:n1-0")
    with work.bell() as words:
        assert work.hand_back(work.take()) == 1
    assert words == ["b"]
    assert work.lengths("ship") == "b1"
    [meta] = work.metas("ship", "b")
    assert (meta.job_id, meta.lane, meta.handed_back) == (job_id, "h", True)
    assert (meta.parent_id, meta.root_id, meta.attempt, meta.crashes) == ("p:n1-0", "r:n1-0", 1, 0)
    assert work.hash(work.keys.where)[job_id].startswith("b ")
    again = work.take()
    assert again.job_id == job_id
    work.finish(again)
    assert work.leaks() == []


def test_twice_it_still_knows_where_it_belongs(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", priority="high")
    work.hand_back(work.take())
    work.hand_back(work.take())
    [meta] = work.metas("ship", "b")
    assert (meta.job_id, meta.lane) == (job_id, "h")


def test_a_suspect_stays_apart(work: Workbench) -> None:
    work.register(task("ship"))
    work.add("ship", "x", "p1", b"{}", "m", b'{"i":"ship:n1-0","l":"n","s":1,"d":"c7"}')
    assert work.hand_back(work.take(suspect=True)) == 1
    assert work.lengths("ship") == "x1"
    [meta] = work.metas("ship", "x")
    assert (meta.job_id, meta.lane, meta.suspect_of, meta.handed_back) == ("ship:n1-0", "n", "c7", True)
    assert work.hash(work.keys.where)["ship:n1-0"].startswith("x ")


def test_many_of_many_tasks(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    for name in "ab":
        for _ in range(100):
            work.submit(name)
    assert work.hand_back(*work.fetch(1000)) == 200
    assert (work.lengths("a"), work.lengths("b")) == ("b100", "b100")


def test_stale_and_replayed(work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(2):
        work.submit("ship")
    one, two = work.fetch()
    work.finish(one)
    assert work.hand_back(one, two) == 1
    before = work.everything()
    assert work.hand_back(one, two) == 0
    assert work.everything() == before


def test_nothing_rings_when_nothing_was_ours(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.finish(one)
    with work.bell() as words:
        work.hand_back(one)
    assert words == []


@pytest.mark.parametrize(
    "fields",
    [
        ("p2", b"\x01newer", "m", b"\x02binary"),
        ("what", b"ever"),
        ("p1", b"{}", "m", b"{broken"),
        ("p1", b"{}", "m", b"[1]"),
        ("p1", b"{}", "extra", b"field"),
    ],
)
def test_an_entry_that_we_cannot_read_is_moved_as_it_is(work: Workbench, fields: tuple[str | bytes, ...]) -> None:
    work.register(task("ship"))
    entry_id = work.add("ship", "n", *fields)
    broker = work.broker
    broker.command("XREADGROUP", "GROUP", "w", CONSUMER, "STREAMS", work.keys.stream("ship", "n"), ">")
    assert broker.run(worker.hand_back(work.keys, work.epoch, [("ship", "n", entry_id)])) == (1, 1)
    assert work.lengths("ship") == "b1"
    [(_, moved)] = work.lane("ship", "b")
    raw = [word.encode() if isinstance(word, str) else word for word in fields]
    assert moved == dict(zip(raw[::2], raw[1::2], strict=True))
    assert work.hash(work.keys.where) == {}


def test_an_entry_of_a_newer_schema_stays_one(work: Workbench) -> None:
    work.register(task("ship"))
    entry_id = work.add("ship", "n", "p2", b"\x01newer", "m", b'{"new":"thing","r":"r:n1-0"}')
    work.broker.command("XREADGROUP", "GROUP", "w", CONSUMER, "STREAMS", work.keys.stream("ship", "n"), ">")
    work.broker.run(worker.hand_back(work.keys, work.epoch, [("ship", "n", entry_id)]))
    [(_, fields)] = work.lane("ship", "b")
    assert fields[b"p2"] == b"\x01newer"
    assert b'"new":"thing"' in fields[b"m"]
    assert work.metas("ship", "b")[0].job_id == f"ship:n{entry_id.decode()}"


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.refuses_another_epoch(lambda epoch: worker.hand_back(work.keys, epoch, [("ship", "n", one.entry_id)]))
