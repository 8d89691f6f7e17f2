"""What a Redis URL may say, and how it is shown: without its password, also where it can't be read as a URL.

No message here quotes a part of a URL that could belong to a password; `urllib`'s own messages do, so they are not passed on.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

from upnext.errors import UsageError

T = TypeVar("T")

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
EXAMPLE = "redis://HOST:6379/0, rediss://…, unix:///PATH, redis+sentinel://H1,H2/NAME or redis+cluster://HOST"
ESCAPES = "in a user's name or a password, write % as %25, / as %2F, ? as %3F, # as %23 and @ as %40"

_TLS_OPTIONS = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_min_version",
    "ssl_ciphers",
)
_OPTIONS = ("db", "username", "password", "sentinel_password", "ssl", *_TLS_OPTIONS)
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:/{1,2})?")
_OPTION = re.compile(rf"[?&](?:{'|'.join(_OPTIONS)})=")
_SECRET_OPTION = re.compile(r"(?i)([?&][a-z_]*pass[a-z_]*=)[^&]*")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False}
_VERIFY = {
    **_WORDS,
    "required": True,
    "optional": True,  # for a client the same as required
    "cert_required": True,
    "cert_optional": True,
    "cert_none": False,
}
_VERSIONS = {"tlsv1_2": "TLSv1_2", "tlsv1.2": "TLSv1_2", "tlsv1_3": "TLSv1_3", "tlsv1.3": "TLSv1_3"}


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What the `ssl_…` options of a URL ask for; both clients make their contexts of it."""

    verify: bool = True
    check_hostname: bool = True
    ca_certs: str | None = None
    ca_path: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = None
    min_version: str | None = None
    """The name of an ssl.TLSVersion."""
    ciphers: str | None = None

    def __repr__(self) -> str:
        return f"TlsOptions(verify={self.verify}, check_hostname={self.check_hostname})"


def redact(url: str) -> str:
    """The URL with *** for its password, fit for a log: whatever is before the last @ and behind a colon, and options named …pass…=."""
    scheme_end = _SCHEME.match(url).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too
    scheme, rest = url[:scheme_end], url[scheme_end:]
    option = _OPTION.search(rest)
    place, options = (rest[: option.start()], rest[option.start() :]) if option else (rest, "")
    credentials, at, host = place.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if at and colon and not _is_path(scheme, place):
        place = f"{user}:***@{host}"
    return _SECRET_OPTION.sub(r"\1***", scheme + place + options)


def _is_path(scheme: str, place: str) -> bool:
    return scheme == "unix://" and place.startswith("/")


def split(url: str) -> SplitResult:
    """The URL's parts. Raises UsageError, never showing the password, unless it can be a broker's."""
    shown = redact(url)
    try:
        url.encode()
        parts = urlsplit(url)
    except UnicodeEncodeError:
        raise UsageError(f"{shown!r} is not a Redis URL: it is not UTF-8 text") from None
    except ValueError:
        raise UsageError(f"{shown!r} is not a Redis URL: the brackets of its IPv6 address don't match") from None
    if parts.scheme not in SCHEMES:
        raise UsageError(f"{shown!r} is not a Redis URL; use {EXAMPLE}")
    if _is_cut_short(parts):
        raise UsageError(f"{shown!r} is not a Redis URL: {ESCAPES}")
    _check_place(parts, shown)
    options = dict(parse_qsl(parts.query))
    if (db := options.get("db")) is not None and not (db.isascii() and db.isdigit()):
        raise UsageError(f"{shown!r}: db= is not the number of a database")
    wants_tls(options)
    tls_options(options)
    return parts


def _is_cut_short(parts: SplitResult) -> bool:
    """Whether a / ? or # of a password may have ended the host's part before its end. (A fragment would be dropped silently.)"""
    if "#" in parts.geturl():
        return True
    if "@" in parts.netloc:
        return False
    stray = any("@" in piece.partition("=")[0] for piece in parts.query.split("&"))
    return stray or ("@" in parts.path and bool(parts.netloc))


def _check_place(parts: SplitResult, shown: str) -> None:
    hosts = parts.netloc.rpartition("@")[2]
    if parts.scheme == "unix":
        if hosts or not parts.path.startswith("/") or parts.path == "/":
            raise UsageError(f"{shown!r} names no socket; write unix:///PATH with three slashes")
        return
    if not hosts:
        raise UsageError(f"{shown!r} names no host; use {EXAMPLE}")
    if "," in hosts and "+" not in parts.scheme:
        raise UsageError(f"{shown!r} names several hosts; only redis+sentinel:// and redis+cluster:// do")
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise UsageError(f"{shown!r}: a port is a number from 0 to 65535")
    if parts.scheme.endswith("+sentinel"):
        if not parts.path.strip("/"):
            raise UsageError(f"{shown!r} names no master; write redis+sentinel://H1,H2/NAME")
    elif not re.fullmatch(r"/?[0-9]*/?", parts.path):
        raise UsageError(f"{shown!r}: after the host comes the number of a database, as in redis://HOST:6379/0")


def wants_tls(options: Mapping[str, str]) -> bool:
    """Whether `ssl=` asks for TLS."""
    return _choice("ssl", options.get("ssl", "no"), _WORDS, "true or false")


def tls_options(options: Mapping[str, str]) -> TlsOptions:
    """The `ssl_…` ones among a URL's options. Raises UsageError for one that is not known, or a value that it can't have."""
    for name in options:
        if name.startswith("ssl_") and name not in _TLS_OPTIONS:
            nearest = difflib.get_close_matches(name, _TLS_OPTIONS, 1)
            meant = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(_TLS_OPTIONS)}"
            raise UsageError(f"a Redis URL has no option {name[:40]!r}; {meant}")
    verify = _choice("ssl_cert_reqs", options.get("ssl_cert_reqs", "required"), _VERIFY, "required or none")
    check = _choice("ssl_check_hostname", options.get("ssl_check_hostname", "true"), _WORDS, "true or false")
    version = options.get("ssl_min_version")
    if options.get("ssl_keyfile") and not options.get("ssl_certfile"):
        raise UsageError("ssl_keyfile needs ssl_certfile, the certificate that belongs to the key")
    return TlsOptions(
        verify=verify,
        check_hostname=verify and check,
        ca_certs=options.get("ssl_ca_certs"),
        ca_path=options.get("ssl_ca_path"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        key_password=options.get("ssl_password"),
        min_version=_choice("ssl_min_version", version, _VERSIONS, "TLSv1_2 or TLSv1_3") if version else None,
        ciphers=options.get("ssl_ciphers"),
    )


def _choice(name: str, text: str, known: Mapping[str, T], choices: str) -> T:
    value = known.get(text.lower())
    if value is None:
        raise UsageError(f"{name}={text[:40]!r} in a Redis URL: use {choices}")
    return value
