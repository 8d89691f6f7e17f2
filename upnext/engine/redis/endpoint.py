"""Where the broker is and how to introduce ourselves: one URL, parsed once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote

from upnext.core import redis_url
from upnext.core.redis_url import TlsOptions
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
    tls_options: TlsOptions = field(default_factory=TlsOptions)
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
        context = ssl.create_default_context(cafile=options.ca_certs, capath=options.ca_path)
        context.check_hostname = options.check_hostname
        context.verify_mode = ssl.CERT_REQUIRED if options.verify else ssl.CERT_NONE
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile, options.key_password)
        if options.min_version is not None:
            context.minimum_version = ssl.TLSVersion[options.min_version]
        if options.ciphers is not None:
            context.set_ciphers(options.ciphers)
        return context


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
    parts = redis_url.split(url)
    options = dict(parse_qsl(parts.query))
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    known: dict[str, Any] = {
        "username": unquote(username) or options.get("username"),
        "password": unquote(password) or options.get("password"),
        "tls": parts.scheme.startswith("rediss") or redis_url.wants_tls(options),
        "tls_options": redis_url.tls_options(options),
    }
    if parts.scheme == "unix":
        return Endpoint(path=unquote(parts.path), db=int(options.get("db", "0")), **known)
    nodes = tuple(_node(host, _SCHEMES[parts.scheme]) for host in hosts.split(",") if host)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if parts.scheme.endswith("+sentinel"):
        return Endpoint(nodes=nodes, sentinel=path[0], db=_number(path[1]) if len(path) > 1 else 0, **known)
    db = int(path[0]) if path else int(options.get("db", "0"))
    return Endpoint(nodes=nodes, db=db, cluster=parts.scheme.endswith("cluster"), **known)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            "a Sentinel URL ends with the master's name and the number of a database: redis+sentinel://H1,H2/NAME/0"
        )
    return int(text)
