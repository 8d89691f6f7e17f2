"""Where a server listens: an address and its text."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from upnext.errors import UsageError

PATH_CAP_BYTES = 100
LOOPBACK_NAMES = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class Address:
    """`host` and `port`, or the `path` of a Unix socket. Port 0: any that is free."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
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

    @property
    def url(self) -> str:
        """How people reach it."""
        return f"unix:{self.path}" if self.path is not None else f"http://{self}"


def parse_address(what: str, text: str) -> Address:
    """`HOST:PORT`, `[::1]:PORT` or `/path.sock`. Raises UsageError with the value and what is wanted; `what` begins the line."""
    if text.startswith("/"):
        if len(text.encode("utf-8", "surrogateescape")) > PATH_CAP_BYTES:
            raise UsageError(f"{what} {text}: the path of a socket is at most {PATH_CAP_BYTES} bytes")
        return Address(path=text)
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_number = port.isascii() and port.isdecimal()
    if not colon or not bare or not is_number or int(port) > 65535 or (":" in bare and bare == host):
        raise UsageError(f"{what} {text!r} is not HOST:PORT, [IPV6]:PORT (a port is at most 65535) or /path.sock")
    return Address(bare, int(port))


def parse_named(what: str, texts: Iterable[str]) -> dict[str, Address]:
    """`NAME=ADDRESS` each. Raises UsageError, also for a name that is there twice; `what` begins the line."""
    addresses: dict[str, Address] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{what} {text}: write NAME=HOST:PORT or NAME=/path.sock")
        if name in addresses:
            raise UsageError(f"{what} {text}: there is an address for {name!r} already")
        addresses[name] = parse_address(f"{what} {name}:", address)
    return addresses
