"""The socket for an address."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

from upnext.address import Address
from upnext.errors import ListenError

BACKLOG = 2048
AWAY = ".away"
"""What the path of a socket that refuses ends with."""


def resolve(what: str, address: Address) -> Address:
    """The same with an IP address for its host's name. May block. Raises ListenError; `what` begins the line."""
    if address.path is not None:
        return address
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not the name of a host"
        raise ListenError(f"{what}: {address} can't be listened on: {why}") from None
    return replace(address, host=str(found[0][4][0]))


def listen(what: str, address: Address) -> socket.socket:
    """A listening socket of a resolved address; a Unix one is 0600. Raises ListenError when it can't be had; `what` begins the line."""
    try:
        bound = bind_path(address.path) if address.path is not None else _bind_tcp(address)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on: {error.strerror or error}"
        raise ListenError(f"{what}: {address} {why}") from None
    try:
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def bound_at(bound: socket.socket) -> Address:
    """Where it listens: with the port that the system chose."""
    name = bound.getsockname()
    return Address(path=os.fsdecode(name)) if bound.family == socket.AF_UNIX else Address(name[0], name[1])


def refuse(bound: socket.socket) -> None:
    """Have connects fail in place of waiting for nothing, whichever processes share the socket, until `listen_again`.

    An address of TCP stays bound, and what waits to be accepted is cut off; a path is renamed (AWAY), and what waits there waits on.
    Raises OSError.
    """
    path = bound_at(bound).path
    if path is None:
        bound.shutdown(socket.SHUT_RD)
    else:
        os.rename(path, path + AWAY)


def listen_again(bound: socket.socket) -> None:
    """Undo `refuse`. Raises OSError when another process listens there by now."""
    path = bound_at(bound).path
    if path is None:
        bound.listen(BACKLOG)
    elif os.path.lexists(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    else:
        os.rename(path + AWAY, path)


def refuses(bound: socket.socket) -> bool:
    path = bound_at(bound).path
    if path is None:
        return not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return os.path.lexists(path + AWAY) and not os.path.lexists(path)


def _bind_tcp(address: Address) -> socket.socket:
    bound = _bind_port(address)
    if address.port:
        return bound
    # A port that the system chose is given up when nothing listens there; one that was named is kept.
    with bound:
        return _bind_port(replace(address, port=int(bound.getsockname()[1])))


def _bind_port(address: Address) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
    except BaseException:
        bound.close()
        raise
    return bound


def bind_path(path: str) -> socket.socket:
    """A Unix socket, 0600, that does not listen yet. Raises OSError, as `make_room` does, too."""
    make_room(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(bound.fileno(), 0o600)  # before bind: no moment in which others could connect
        bound.bind(path)
    except BaseException:
        bound.close()
        raise
    return bound


def make_room(path: str) -> None:
    """Make room for our socket: only a socket that nothing answers on is removed. Raises OSError for what is in the way."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is not a socket is in the way")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there", path)
