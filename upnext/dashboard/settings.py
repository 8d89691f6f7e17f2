"""What a dashboard needs to know, read once at the edge: where it listens, who may come in, which queue it shows."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from upnext.errors import UsageError

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


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """One dashboard. `hosts`: further names in its Host list; `users_file` and `proxy_header`: who vouches for people."""

    listen: Listen
    namespace: str
    redis_url: str
    state_dir: Path
    hosts: frozenset[str] = frozenset()
    users_file: Path | None = None
    proxy_header: str | None = None
    group: str | None = None

    @property
    def token_file(self) -> Path:
        return self.state_dir / "dashboard.token"

    @property
    def host_list(self) -> frozenset[str]:
        """Names that the Host header may have, besides IP literals."""
        own = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        named = {self.listen.host.lower()} if self.listen.host else set[str]()
        return frozenset(own | named | {host.lower() for host in self.hosts})


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


def check(settings: DashboardSettings) -> None:
    """Refuse what would leave a dashboard open. Raises UsageError that names the way out."""
    if settings.proxy_header is not None and settings.listen.path is None:
        raise UsageError(
            f"a proxy's header is only believed on a Unix socket: listen on /path.sock, not on {settings.listen}"
        )
    if not settings.listen.is_local and settings.users_file is None:
        raise UsageError(
            f"{settings.listen} can be reached from other machines: give --users FILE (lines of `upnext dashboard adduser`),"
            " or listen on 127.0.0.1 or a Unix socket"
        )
    if settings.group is not None and settings.listen.path is None:
        raise UsageError("a group is for a Unix socket: listen on /path.sock")
