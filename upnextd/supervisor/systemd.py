"""What systemd is sent: ready, stopping, one line of status, and the watchdog petted by the supervisor's own tick."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from upnext.core.visible import visible


class Notifier:
    """Speaks sd_notify; silent where NOTIFY_SOCKET isn't set."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._status = ""
        self.watchdog_s = _watchdog_s(env) if self._socket else None
        """How often the watchdog must be petted at least; None: no watchdog."""

    def ready(self) -> None:
        self._say("READY=1")

    def extend_start(self, seconds: float) -> None:
        """Ask for so many seconds more, from now, until READY or the next such word."""
        self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def pet(self) -> None:
        if self.watchdog_s is not None:
            self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send one line, if it has changed."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={visible(text)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            # The init system is busy or gone; the next line will do.
            return


def _address(path: str) -> str:
    return "\0" + path[1:] if path.startswith("@") else path


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
