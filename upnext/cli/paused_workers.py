"""Which workers of this user's daemons are paused or draining: only their daemons know."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
import socket

from upnext.control.client import ControlClient
from upnext.errors import ControlError, DaemonNotRunningError

_IDLE_MODES = ("paused", "draining", "drained", "stopping")
_IDLE_STATES = ("PAUSED", "DRAINING", "STOPPING", "KILLING", "KILLED")


def idle_workers() -> frozenset[tuple[str, int]]:
    """(host name, pid) of each. Daemons that don't answer count as working."""
    from upnext import config

    host = socket.gethostname()
    idle: set[tuple[str, int]] = set()
    for _, path in config.find_control_sockets(os.environ):
        try:
            with ControlClient(str(path), timeout_s=2.0, servers=config.unit_users(path)) as client:
                report = client.call("status")
        except (ControlError, DaemonNotRunningError, TimeoutError):
            continue
        for child in report.get("children", ()):
            if child.get("pid") and (report.get("mode") in _IDLE_MODES or child.get("state") in _IDLE_STATES):
                idle.add((host, child["pid"]))
    return frozenset(idle)
