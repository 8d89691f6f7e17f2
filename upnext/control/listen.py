"""Where a dashboard listens, and what must be given so that it is never open: for `upnext dashboard` and the daemon's flags."""

from __future__ import annotations

import socket

from upnext.address import Address, parse_address
from upnext.errors import ListenError, UsageError


def parse_listen(text: str) -> Address:
    """`HOST:PORT`, `[::1]:PORT` or `/path.sock`; no port that the system chooses. Raises UsageError with the value and what is wanted."""
    listen = parse_address("dashboard address", text)
    if listen.path is None and listen.port == 0:
        raise UsageError(f"dashboard address {text!r} is not HOST:PORT with a port from 1 to 65535")
    return listen


def refuse_taken(listen: Address) -> None:
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


def refuse_open(listen: Address, *, users: bool, proxy_header: str | None, group: str | None, flag: str) -> None:
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
