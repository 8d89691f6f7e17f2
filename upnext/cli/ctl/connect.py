"""Which daemon a command is for, and a connection to it."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from upnext.cli.options import flags
from upnext.control.client import ControlClient
from upnext.control.protocol import ErrorCode
from upnext.errors import ControlError, DaemonNotRunningError, UsageError


def connect() -> ControlClient:
    """By --socket, --name, their variables, or the only daemon that runs. Raises DaemonNotRunningError, UsageError, ControlError."""
    from upnext import config, project

    asked = flags()
    environment = project.environment(os.environ)
    name = asked.name or environment.get("UPNEXTD_NAME")
    if asked.socket or name or environment.get("UPNEXTD_SOCKET"):
        # A --name given by hand means that daemon, also where UPNEXTD_SOCKET points at another.
        socket = asked.socket or (None if asked.name else environment.get("UPNEXTD_SOCKET"))
        if socket:
            return ControlClient(socket, servers=None)
        found = _by_name(name or "", environment)
        return ControlClient(str(found), servers=config.unit_users(found))
    running = config.find_control_sockets(environment)
    if not running:
        closed = config.closed_units()
        raise DaemonNotRunningError(
            "no upnextd is running"
            + (f" as this user; not readable are the units {', '.join(closed)} (use sudo)" if closed else "")
            + " (start one: `upnextd start SERVICE`; elsewhere: --socket PATH)"
        )
    if len(running) > 1:
        names = ", ".join(name for name, _ in running)
        raise UsageError(f"several daemons are running: {names}; say which with --name NAME")
    found = running[0][1]
    return ControlClient(str(found), servers=config.unit_users(found))


def _by_name(name: str, environment: Mapping[str, str]) -> Path:
    """The socket that answers in any of the known places; else the one where it should be, which the error then names."""
    from upnext import config

    places = {key: value for key, value in environment.items() if key != "UPNEXTD_SOCKET"}
    found = config.find_control_sockets({**places, "UPNEXTD_NAME": name})
    if not found and config.closed_units(name):
        raise ControlError(
            f"{name} runs as a systemd unit, and its control socket is not readable as this user: sudo upnext ctl --name {name}",
            ErrorCode.FORBIDDEN,
        )
    return found[0][1] if found else config.control_socket(name, None, places)
