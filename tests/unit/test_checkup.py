"""What counts as wrong in each key of the map, without a server."""

from __future__ import annotations

import pytest

from upnext.core import checkup
from upnext.core.checkup import why_bad_entry, why_bad_member, why_bad_note, why_bad_row, why_bad_text
from upnext.core.entry import Meta, encode_meta, pack
from upnext.core.keys import ROWS, SCHEMA

GARBAGE = [b"{broken", b"\xff\xfe", b"[" * 3000 + b"]" * 3000, b"x" * 70_000]
NEWER = b'{"schema":99,"kind":7,"schedule":{},"options":[]}'
FINE = {
    "where": (b"ship:n1-0", b"b 2-0"),
    "delayed_jobs": (b"ship:d1-0", pack("n", encode_meta(Meta(attempt=2)), b"{}")),
    "dead_jobs": (b"ship:n1-0", pack("n", b'{"z":{"s":"dead"}}', b"{}")),
    "waiters": (b"ship:n1-0", b"ab12#1 cd34"),
    "notes": (b"ship:n1-0", b'{"progress":1}'),
    "cancel": (b"ship:n1-0", b"1700000000000"),
    "tasks": (b"ship", b'{"kind":"task","options":{},"event":null}'),
    "announcers": (b"d1", b'{"service":"shop","declares":{}}'),
    "limits": (b"ship", b'{"rate":1,"period_s":0.5}'),
    "limits_set": (b"ship", b"null"),
    "consumers": (b"c1", b'{"daemon":"d1","tasks":["ship"],"since_ms":1}'),
    "daemon_prefix": (b"daemon", b"{}"),
    "leader": (b"daemon", b"d1"),
    "crons": (b"tidy", b'{"schedule":"* * * * *","timezone":"UTC","missed":"skip","last_seen_ms":1}'),
    "lapsed": (b"tidy", b"{}"),
    "schedules": (b"tidy", b"{}"),
    "schedules_arguments": (b"tidy", b"{}"),
    "schedules_state": (b"tidy fired", b"1"),
    "aside": (b"upnext:{a}:aside:dead", b'{"key":"upnext:{a}:dead","why":"held a string","at_ms":1}'),
}
NUMBERS = ["seen", "gcra", "lingering", "large", "cursors", "fired", "event_prefix", "stats", "rate_prefix"]
FINE |= dict.fromkeys(NUMBERS, (b"ship", b"1700000000000"))
ANY_TEXT = {"waiters", "leader"}
OF_OBJECTS = {"tasks", "announcers", "crons", "limits", "consumers", "lapsed", "notes", "daemon_prefix", "aside"}


def test_every_hash_with_a_check_is_here() -> None:
    assert set(FINE) == {attribute for attribute in checkup.CHECKED if ROWS[attribute].type == "hash"}


@pytest.mark.parametrize("attribute", sorted(FINE))
def test_a_row_of_this_version_is_fine_and_garbage_is_named(attribute: str) -> None:
    field, value = FINE[attribute]
    assert why_bad_row(attribute, field, value) is None
    for garbage in GARBAGE:
        if attribute not in ANY_TEXT or garbage == b"\xff\xfe":
            assert why_bad_row(attribute, field, garbage), garbage[:20]
    assert why_bad_row(attribute, b"\xff\xfe", value)


@pytest.mark.parametrize("attribute", sorted(OF_OBJECTS))
def test_a_row_of_a_newer_schema_is_left_alone(attribute: str) -> None:
    field, _ = FINE[attribute]
    assert why_bad_row(attribute, field, NEWER) is None


@pytest.mark.parametrize("attribute", sorted(OF_OBJECTS))
def test_a_long_row_is_judged_by_its_beginning(attribute: str) -> None:
    field, _ = FINE[attribute]
    assert why_bad_row(attribute, field, b"{" + b'"a":1,' * 20_000) is None


@pytest.mark.parametrize("why", ["missing", "type"])
def test_a_cron_needs_its_fields(why: str) -> None:
    row = b'{"schedule":"* * * * *"}' if why == "missing" else b'{"schedule":5,"timezone":"UTC","missed":"skip"}'
    assert why_bad_row("crons", b"tidy", row)


def test_a_limit_needs_a_period_with_its_rate() -> None:
    assert why_bad_row("limits", b"ship", b'{"rate":1}')
    assert why_bad_row("limits", b"ship", b'{"concurrency":"x"}')


@pytest.mark.parametrize("score", [b"inf", b"-inf", b"nan", b"-1", b"1e300"])
def test_a_score_is_a_time(score: bytes) -> None:
    assert why_bad_member("dead", b"ship:n1-0", score) == "its score is not a time"
    assert why_bad_member("dead", b"ship:n1-0", b"1700000000000") is None
    assert why_bad_member("delayed", b"ship:n1-0", b"1700000000000000") is None


def test_members_are_names() -> None:
    assert why_bad_member("paused", b"ship", None) is None
    assert why_bad_member("paused", b"\xff", None)
    assert why_bad_member("dead", b"no id", b"1")


def test_entries_of_lanes() -> None:
    assert why_bad_entry(b"p1", None) is None
    assert why_bad_entry(b"p1", encode_meta(Meta(attempt=2))) is None
    assert why_bad_entry(b"p%d" % (SCHEMA + 1), b"\xff") is None
    assert why_bad_entry(b"what", None)
    assert why_bad_entry(b"p1", b'{"i":7}')
    assert why_bad_note("ends", b"j", b"dship:n1-0") is None
    assert why_bad_note("ends", b"what", b"ever")
    assert why_bad_note("audit", b"e", b"{}") is None
    assert why_bad_note("activity", b"e", b"{}") is None
    assert why_bad_note("audit", b"e", b"{broken")


def test_texts() -> None:
    fine = {
        "epoch": b"0123abcd",
        "schema": b"1",
        "seq": b"7",
        "result_prefix": b'{"s":"done","v":1}',
        "cache_prefix": b'{"s":"done"}',
        "dead_bytes": b"3 4096",
        "idem_prefix": b"ship:n1-0 ab12",
        "sent_prefix": b"ship:n1-0 ab12",
        "watched": b"1",
    }
    assert set(fine) == {attribute for attribute in checkup.CHECKED if ROWS[attribute].type == "string"}
    for attribute, raw in fine.items():
        assert why_bad_text(attribute, raw) is None, attribute
        if attribute != "watched":
            assert why_bad_text(attribute, b"\xff garbage"), attribute


def test_a_dead_letter_with_an_outcome_of_another_kind_is_named() -> None:
    assert why_bad_row("dead_jobs", b"ship:n1-0", pack("n", b'{"z":{"s":"who knows"}}', b"{}"))
    assert checkup.aside_row(b"{broken") == {}
