"""Which workers of this user's daemons are paused or draining: only their daemons know."""

from __future__ import annotations

import socket

from upnext.cli import local_daemons

_IDLE_MODES = ("paused", "draining", "drained", "stopping")
_IDLE_STATES = ("PAUSED", "DRAINING", "STOPPING", "KILLING", "KILLED")


def idle_workers() -> frozenset[tuple[str, int]]:
    """(host name, pid) of each. Daemons that don't answer count as working."""
    host = socket.gethostname()
    idle: set[tuple[str, int]] = set()
    for _, status in local_daemons.statuses():
        for child in status.get("children", ()):
            if child.get("pid") and (status.get("mode") in _IDLE_MODES or child.get("state") in _IDLE_STATES):
                idle.add((host, child["pid"]))
    return frozenset(idle)
