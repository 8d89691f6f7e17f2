"""What a dashboard needs to know, read once at the edge: where it listens, who may come in, which queue it shows."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from upnext.address import Address
from upnext.control.listen import refuse_open


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """One dashboard. `hosts`: further names in its Host list; `users_file` and `proxy_header`: who vouches for people."""

    listen: Address
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


def check(settings: DashboardSettings) -> None:
    """Refuse what would leave a dashboard open. Raises UsageError that names the way out."""
    refuse_open(
        settings.listen,
        users=settings.users_file is not None,
        proxy_header=settings.proxy_header,
        group=settings.group,
        flag="--users",
    )
