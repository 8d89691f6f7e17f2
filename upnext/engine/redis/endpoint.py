"""Where the broker is and how to introduce ourselves: one URL, parsed once."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from upnext.errors import UsageError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed Redis URL. `nodes` are (host, port) to try in turn; for a Unix socket `path` is set instead.

    `sentinel` is the name of the master that the nodes, which are sentinels, know.
    """

    nodes: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: bool = False
    tls_options: Mapping[str, str] = field(default_factory=dict[str, str])
    sentinel: str | None = None
    cluster: bool = False

    def at(self, host: str, port: int) -> Endpoint:
        """The same, at one address, no sentinel in between."""
        return replace(self, nodes=((host, port),), path=None, sentinel=None)

    def describe(self) -> str:
        """For people: never with a password."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)

    def tls_context(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        options = self.tls_options
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
        if is_no(options.get("ssl_check_hostname", "")):
            context.check_hostname = False
        if is_no(options.get("ssl_cert_reqs", "required")):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        return context


def is_no(text: str) -> bool:
    """How a URL's option says no."""
    return text.lower() in ("0", "false", "no", "none")


_SCHEMES = {
    "redis": 6379,
    "rediss": 6379,
    "unix": 0,
    "redis+sentinel": 26379,
    "rediss+sentinel": 26379,
    "redis+cluster": 6379,
    "rediss+cluster": 6379,
}


def _node(text: str, port: int) -> tuple[str, int]:
    host, colon, tail = text.rpartition(":")
    if colon and tail.isdigit() and not host.endswith(":"):
        return host.strip("[]"), int(tail)
    return text.strip("[]") or "localhost", port


def parse_url(url: str) -> Endpoint:
    """`redis[s]://[user:password@]host[:port][/db]`, `unix://[user:password@]/path[?db=N]`, `redis+sentinel://h1,h2/name[/db]`,
    `redis+cluster://h1,h2`. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise UsageError(
            f"not a Redis URL: {parts.scheme or url!r}; use redis://, rediss://, unix:///path, redis+sentinel:// or redis+cluster://"
        )
    options = dict(parse_qsl(parts.query))
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    known: dict[str, Any] = {
        "username": unquote(username) or options.get("username"),
        "password": unquote(password) or options.get("password"),
        "tls": parts.scheme.startswith("rediss") or options.get("ssl", "").lower() in ("1", "true", "yes"),
        "tls_options": {key: value for key, value in options.items() if key.startswith("ssl_")},
    }
    try:
        if parts.scheme == "unix":
            path = unquote((hosts if hosts != "localhost" else "") + parts.path)
            if not path:
                raise UsageError(f"the URL {parts.scheme}:// names no socket path")
            return Endpoint(path=path, db=int(options.get("db", "0")), **known)
        nodes = tuple(_node(host, _SCHEMES[parts.scheme]) for host in hosts.split(",") if host) or (
            ("localhost", _SCHEMES[parts.scheme]),
        )
        path = [unquote(part) for part in parts.path.split("/") if part]
        if parts.scheme.endswith("+sentinel"):
            if not path:
                raise UsageError(
                    "a redis+sentinel:// URL ends with the master's name: redis+sentinel://host1,host2/mymaster"
                )
            return Endpoint(nodes=nodes, sentinel=path[0], db=int(path[1]) if len(path) > 1 else 0, **known)
        db = int(path[0]) if path else int(options.get("db", "0"))
        return Endpoint(nodes=nodes, db=db, cluster=parts.scheme.endswith("cluster"), **known)
    except ValueError as error:
        raise UsageError(f"not a usable Redis URL: {error}") from None
