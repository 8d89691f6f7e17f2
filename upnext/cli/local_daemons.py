"""The daemons of this user on this machine, and what each says of itself."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upnext.control.client import ControlClient
from upnext.errors import ControlError, DaemonNotRunningError

_ANSWERS_WITHIN_S = 2.0


def of_this_user() -> Iterator[tuple[Path, dict[str, Any]]]:
    """As `statuses`, with the one that UPNEXTD_SOCKET names."""
    given = os.environ.get("UPNEXTD_SOCKET")
    return statuses([Path(given)] if given else [])


def statuses(further: Sequence[Path] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(control socket, status) of each daemon in the known places and at `further` sockets; those that don't answer are left out."""
    from upnext import config, project

    known = [path for _, path in config.find_control_sockets(project.environment(os.environ))]
    for path in dict.fromkeys([*known, *further]):
        try:
            with ControlClient(str(path), timeout_s=_ANSWERS_WITHIN_S, servers=config.unit_users(path)) as client:
                status = client.call("status")
        except (ControlError, DaemonNotRunningError, TimeoutError):
            continue
        yield path, status
