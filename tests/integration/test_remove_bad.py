"""What a person was shown is removed only while it is still that."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import Workbench
from upnext.engine.calls import checkup


def remove(work: Workbench, key: str, kind: str, field: bytes | None, value: bytes, partner: str = "") -> bool:
    return work.broker.run(checkup.remove_bad(work.keys, key, partner or key, kind, field, value))


def test_a_row_with_its_partner(work: Workbench) -> None:
    keys = work.keys
    work.broker.command("ZADD", keys.dead, 5, "a")
    work.broker.command("HSET", keys.dead_jobs, "a", "x", "b", "y")
    assert not remove(work, keys.dead_jobs, "hash", b"a", b"other", keys.dead)
    assert remove(work, keys.dead_jobs, "hash", b"a", b"x", keys.dead)
    assert work.broker.command("ZCARD", keys.dead) == 0
    assert work.broker.command("HKEYS", keys.dead_jobs) == [b"b"]


@pytest.mark.parametrize("score", ["5", "inf", "1e300"])
def test_a_member_by_its_score(work: Workbench, score: str) -> None:
    work.broker.command("ZADD", work.keys.leases, score, "a")
    assert not remove(work, work.keys.leases, "zset", b"a", b"6")
    assert remove(work, work.keys.leases, "zset", b"a", score.encode())


def test_a_whole_key_and_its_note(work: Workbench) -> None:
    keys = work.keys
    name = f"{keys.aside_prefix}dead"
    work.broker.command("SET", name, "x")
    work.broker.command("HSET", keys.aside, name, "{}")
    assert not remove(work, name, "hash", None, b"")
    assert remove(work, name, "string", None, b"")
    assert not work.broker.command("EXISTS", name, keys.aside)


def test_an_entry_and_a_member_of_a_set(work: Workbench) -> None:
    entry = work.broker.command("XADD", work.keys.ends, "*", "what", "ever")
    assert remove(work, work.keys.ends, "stream", entry, b"")
    assert not remove(work, work.keys.ends, "stream", entry, b"")
    work.broker.command("SADD", work.keys.paused, b"\xff")
    assert remove(work, work.keys.paused, "set", b"\xff", b"")
