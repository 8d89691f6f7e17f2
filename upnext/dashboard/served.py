"""The dashboard as a process of a daemon: exec'd by the supervisor with its order as JSON on stdin, ended with it."""

# ruff: noqa: PLC0415 - what the extra brings is imported once the order is read

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import orjson
import setproctitle

from upnext.control.exits import ExitCode
from upnext.control.listen import parse_listen
from upnext.errors import UpNextError


def main() -> None:
    """Entry of the exec'd process."""
    order: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    setproctitle.setproctitle(f"upnextd {order['name']}: dashboard")
    try:
        daemon = os.pidfd_open(order["supervisor_pid"])
    except ProcessLookupError:
        os._exit(ExitCode.FAILED)
    from upnext.dashboard.command import serve
    from upnext.dashboard.settings import DashboardSettings

    os.environ["UPNEXTD_SOCKET"] = order["socket"]
    try:
        settings = DashboardSettings(
            listen=parse_listen(order["listen"]),
            namespace=order["namespace"],
            redis_url=order["redis_url"],
            state_dir=Path(order["state_dir"]),
            hosts=frozenset(order["hosts"]),
            users_file=Path(order["users"]) if order["users"] else None,
            proxy_header=order["proxy_header"],
        )
        code = serve(settings, until=daemon)
    except UpNextError as error:
        _end(str(error))
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _end(line: str) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    os._exit(ExitCode.CONFIG)
