"""Rows of hashes, sets and sorted sets as they stand, in bounded parts."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench
from upnext.core.checkup import MOST_BYTES
from upnext.engine.calls import checkup


def read(work: Workbench, key: str, partner: str, kind: str) -> tuple[str, list[checkup.RawRow]]:
    found, cursor = list[checkup.RawRow](), "0"
    while True:
        part = work.broker.run(checkup.read_rows(key, partner, kind, cursor, 10))
        found += part.rows
        cursor = part.cursor
        if cursor == "0":
            return part.found, found


def test_rows_come_with_their_bytes_and_long_ones_are_cut(work: Workbench) -> None:
    work.broker.command("HSET", work.keys.notes, b"\xff", "1", "b", b"x" * (MOST_BYTES + 5))
    found, rows = read(work, work.keys.notes, work.keys.notes, "hash")
    assert found == "hash"
    assert {(one.field, len(one.value), one.value_bytes) for one in rows} == {
        (b"\xff", 1, 1),
        (b"b", MOST_BYTES, MOST_BYTES + 5),
    }
    assert not any(one.alone for one in rows)


def test_a_row_that_the_other_key_lacks_is_alone(work: Workbench) -> None:
    keys = work.keys
    work.broker.command("ZADD", keys.dead, 1, "a", 2, "b")
    work.broker.command("HSET", keys.dead_jobs, "a", "x", "c", "y")
    assert {one.field for one in read(work, keys.dead, keys.dead_jobs, "zset")[1] if one.alone} == {b"b"}
    assert {one.field for one in read(work, keys.dead_jobs, keys.dead, "hash")[1] if one.alone} == {b"c"}


def test_every_row_of_a_large_set_comes(work: Workbench) -> None:
    work.broker.command("SADD", work.keys.paused, *(f"task{at}" for at in range(1000)))
    assert len({one.field for one in read(work, work.keys.paused, work.keys.paused, "set")[1]}) == 1000


def test_of_another_type_only_that_is_told(work: Workbench) -> None:
    work.broker.command("SET", work.keys.dead, "x")
    assert read(work, work.keys.dead, work.keys.dead_jobs, "zset") == ("string", [])
    assert read(work, work.keys.cancel, work.keys.cancel, "hash") == ("none", [])


def test_the_next_part_is_as_large_as_a_part_should_be() -> None:
    assert checkup.next_count(20, checkup.RowsPart("hash", bytes_read=20 << 20)) == 1
    assert checkup.next_count(20, checkup.RowsPart("hash", bytes_read=20)) == 80
