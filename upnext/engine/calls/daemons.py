"""Calls about daemons as a whole: report, withdraw_report, list_daemons, watch_daemons, note_activity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upnext.core import activity, reports
from upnext.core.batches import CALL_BYTES
from upnext.core.keys import Keys
from upnext.core.reports import Report
from upnext.engine.calls.rows import pairs
from upnext.engine.redis.scripts import Arg, Call, ident, script, text

MOST_DAEMONS = 100
"""Reports that one call reads."""


def report(keys: Keys, daemon: str, rows: Sequence[tuple[str, bytes]], kept_s: int) -> Call[int]:
    """Put these rows in place of the daemon's report, to be kept for so long. -> server ms."""
    flat = [part for row in rows for part in row]
    return Call(script("report"), [keys.daemons, keys.daemon(daemon)], [daemon, kept_s, *flat], ident)


def note_activity(keys: Keys, daemon: str, events: Sequence[tuple[str, bytes]]) -> Call[int]:
    """Append (LIFE-NUMBER, JSON) of each event, at most MOST_EVENTS, save those that are among the newest. -> how many were appended."""
    flat = [part for event in events for part in event]
    return Call(script("note_activity"), [keys.activity], [daemon, activity.KEPT, *flat], int)


def withdraw_report(keys: Keys, daemon: str, token: str) -> Call[bool]:
    """Remove the daemon's report, if the scheduler with this token made it."""
    return Call(script("withdraw_report"), [keys.daemons, keys.daemon(daemon)], [daemon, token], bool)


def list_daemons(keys: Keys, after: str) -> Call[tuple[str, int, list[Report]]]:
    """-> (daemon to go on after, "" at the end; server ms; a part of the reports). What can't be read is left out."""

    def parse(reply: list[Any]) -> tuple[str, int, list[Report]]:
        found: list[Report] = []
        for at in range(2, len(reply), 2):
            fields = {name.decode("utf-8", "replace"): value for name, value in pairs(reply[at + 1])}
            one = reports.parse(reply[at].decode("utf-8", "replace"), fields)
            if one is not None:
                found.append(one)
        return text(reply[0]), reply[1], found

    words: list[Arg] = [keys.daemon_prefix, after, MOST_DAEMONS, CALL_BYTES]
    return Call(script("list_daemons"), [keys.daemons], words, parse)


def watch_daemons(keys: Keys) -> Call[bool]:
    """Make daemons report with each beat for WATCHED_S. -> whether they did not so far."""
    return Call(script("watch_daemons"), [keys.watched], [keys.bell, reports.WATCHED_S], bool)
