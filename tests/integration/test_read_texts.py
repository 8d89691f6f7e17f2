"""Strings as they stand, as many as fit into one part."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench
from upnext.core.checkup import MOST_BYTES
from upnext.engine.calls import checkup


def test_types_and_texts_and_the_length_of_a_long_one(work: Workbench) -> None:
    keys = work.keys
    work.broker.command("SET", keys.seq, "7")
    work.broker.command("SET", keys.epoch, "x" * (MOST_BYTES + 1))
    work.broker.command("RPUSH", keys.schema, "x")
    assert work.broker.run(checkup.read_texts([keys.seq, keys.epoch, keys.schema, keys.watched])) == [
        ("string", b"7"),
        ("string", MOST_BYTES + 1),
        ("list", b""),
        ("none", b""),
    ]


def test_a_part_ends_when_it_is_large(work: Workbench) -> None:
    names = [work.keys.result(f"ship:n{at}-0") for at in range(20)]
    for name in names:
        work.broker.command("SET", name, "x" * MOST_BYTES)
    assert len(work.broker.run(checkup.read_texts(names))) == checkup.PART_BYTES // MOST_BYTES
