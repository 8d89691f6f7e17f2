"""Entries of a stream without their payloads, in bounded parts."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from upnext.engine.calls import checkup


def test_what_an_entry_says_besides_its_payload(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", parent_id="p:n1-0")
    stream = work.keys.stream("ship", "n")
    work.broker.command("XADD", stream, "*", "what", "ever")
    found, after, entries = work.broker.run(checkup.read_entries(stream, ""))
    assert (found, after) == ("stream", "")
    assert [(one.first, one.value) for one in entries] == [(b"p1", b""), (b"what", b"ever")]
    assert b"p:n1-0" in (entries[0].meta or b"")
    assert entries[1].meta is None


def test_a_long_lane_comes_in_parts(work: Workbench) -> None:
    work.register(task("ship"))
    stream, count, after = work.keys.stream("ship", "n"), 0, ""
    for _ in range(2 * checkup.MOST_ENTRIES + 5):
        work.submit("ship")
    while True:
        _, after, entries = work.broker.run(checkup.read_entries(stream, after))
        assert len(entries) <= checkup.MOST_ENTRIES
        count += len(entries)
        if not after:
            break
    assert count == 2 * checkup.MOST_ENTRIES + 5


def test_of_another_type_only_that_is_told(work: Workbench) -> None:
    work.broker.command("SET", work.keys.ends, "x")
    assert work.broker.run(checkup.read_entries(work.keys.ends, "")) == ("string", "", [])
