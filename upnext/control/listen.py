"""Where a dashboard listens, and what must be given so that it is never open: for `upnext dashboard` and the daemon's flags."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from upnext.errors import ListenError, UsageError

LOOPBACK_NAMES = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class Listen:
    """An address: `host` and `port`, or the `path` of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Reachable from this machine only."""
        if self.path is not None or self.host in LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_listen(text: str) -> Listen:
    """`HOST:PORT`, `[::1]:PORT` or `/path.sock`. Raises UsageError with the value and what is wanted."""
    if text.startswith("/"):
        if len(os.fsencode(text)) > 100:
            raise UsageError(f"dashboard socket {text!r}: the path is longer than 100 bytes")
        return Listen(path=Path(text))
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"dashboard address {text!r} is not HOST:PORT (port 1–65535) or /path.sock")
    return Listen(host, int(port))


def refuse_taken(listen: Listen) -> None:
    """Raises ListenError for an address on which something listens already, or that this machine does not have.

    Blocks for a look-up of the name.
    """
    if listen.path is not None:
        return
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
    except OSError as error:
        raise ListenError(f"can't listen on {listen}: {error.strerror}") from None


def refuse_open(listen: Listen, *, users: bool, proxy_header: str | None, group: str | None, flag: str) -> None:
    """Refuse what would leave a dashboard open. Raises UsageError that names the way out; `flag` is the one that names the users file."""
    if proxy_header is not None and listen.path is None:
        raise UsageError(f"a proxy's header is only believed on a Unix socket: listen on /path.sock, not on {listen}")
    if not listen.is_local and not users:
        raise UsageError(
            f"{listen} can be reached from other machines: give {flag} FILE (lines of `upnext dashboard adduser`),"
            " or listen on 127.0.0.1 or a Unix socket"
        )
    if group is not None and listen.path is None:
        raise UsageError("a group is for a Unix socket: listen on /path.sock")
