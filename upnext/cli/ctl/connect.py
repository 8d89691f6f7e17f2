"""Which daemon a command is for, and a connection to it."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
from collections.abc import Mapping

from upnext.cli.options import flags
from upnext.control.client import ControlClient
from upnext.errors import DaemonNotRunningError, UsageError


def connect() -> ControlClient:
    """By --socket, --name, their variables, or the only daemon that runs. Raises DaemonNotRunningError, UsageError, ControlError."""
    from upnext import config

    asked = flags()
    environment = os.environ
    name = asked.name or environment.get("UPNEXTD_NAME")
    if asked.socket or name or environment.get("UPNEXTD_SOCKET"):
        # A --name given by hand means that daemon, also where UPNEXTD_SOCKET points at another.
        socket = asked.socket or (None if asked.name else environment.get("UPNEXTD_SOCKET"))
        return ControlClient(socket or str(config.control_socket(name or "", None, _without_socket(environment))))
    running = config.find_control_sockets(environment)
    if not running:
        raise DaemonNotRunningError(
            "no upnextd is running (start one: `upnextd start SERVICE`; elsewhere: --socket PATH)"
        )
    if len(running) > 1:
        names = ", ".join(name for name, _ in running)
        raise UsageError(f"several daemons are running: {names}; say which with --name NAME")
    return ControlClient(str(running[0][1]))


def _without_socket(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "UPNEXTD_SOCKET"}
