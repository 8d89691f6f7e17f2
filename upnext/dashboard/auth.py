"""Who may look at the dashboard and who may act: roles, user files, one-time links, sessions. Pure: time and randomness are arguments.

Every value that a browser or a script sends is checked against an HMAC-SHA256 (RFC 2104) or a scrypt hash (RFC 7914), in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from upnext.errors import UsageError

LINK_LIFE_S = 60
"""A printed link opens the dashboard for so long, once."""
SESSION_LIFE_S = 12 * 3600
"""A session ends so long after the login."""

_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 14, 8, 1
_SCRYPT_MAX_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_.@+-]{1,64}\Z")


class Right(StrEnum):
    """What a role may be allowed to do."""

    VIEW = "view"
    JOB_PAYLOAD = "job.payload"
    JOB_ACT = "job.act"
    TASK_ACT = "task.act"
    CRON_ACT = "cron.act"
    EVENT_SEND = "event.send"
    HOST_ACT = "host.act"


class Role(StrEnum):
    """A named set of rights."""

    VIEWER = "viewer"
    ADMIN = "admin"


RIGHTS: Mapping[Role, frozenset[Right]] = MappingProxyType(
    {Role.VIEWER: frozenset({Right.VIEW}), Role.ADMIN: frozenset(Right)}
)


@dataclass(frozen=True, slots=True)
class User:
    """One line of the users file. `secret` is what the password is checked against; "" for a user that a proxy vouches for."""

    name: str
    role: Role
    secret: str = ""

    def __repr__(self) -> str:
        return f"User({self.name!r}, {self.role.value!r})"

    def may(self, right: Right) -> bool:
        """Whether the user's role allows it."""
        return right in RIGHTS[self.role]


# -- passwords ----------------------------------------------------------------------------------------------------------------------------


def user_line(name: str, role: Role, password: str, salt: bytes) -> str:
    """`NAME:ROLE:scrypt$N$R$P$SALT$HASH`, a line for the users file. `salt`: 16 random bytes.

    Raises UsageError for a name that a users file can't hold, and for an empty password.
    """
    if not _NAME.match(name):
        raise UsageError(f"user name {name!r}: use 1 to 64 letters, digits or _ . @ + -")
    if not password:
        raise UsageError(f"user {name}: the password is empty")
    digest = _scrypt(password, salt, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
    return f"{name}:{role.value}:scrypt${_SCRYPT_N}${_SCRYPT_R}${_SCRYPT_P}${_b64(salt)}${_b64(digest)}"


def parse_users(text: str) -> dict[str, User]:
    """Users by name, from lines as `user_line` makes them; blank lines and those that begin with # are passed over.

    Raises UsageError that names the line's number, never its secret.
    """
    users: dict[str, User] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        role, _, secret = rest.partition(":")
        if not _NAME.match(name) or role not in set(Role) or not _is_secret(secret):
            raise UsageError(
                f"line {number} is not `user:role:hash` (role: viewer or admin);"
                " make one with `upnext dashboard adduser NAME --role viewer|admin`"
            )
        if name in users:
            raise UsageError(f"line {number}: user {name} is listed twice")
        users[name] = User(name, Role(role), secret)
    return users


def password_fits(user: User, password: str) -> bool:
    """Whether it is this user's password. Takes about 50 ms of CPU and 16 MiB on purpose: call it in a thread."""
    parts = user.secret.split("$")
    if not _is_secret(user.secret):
        return False
    expected = _unb64(parts[5])
    return hmac.compare_digest(_scrypt(password, _unb64(parts[4]), *(int(part) for part in parts[1:4])), expected)


def _is_secret(secret: str) -> bool:
    parts = secret.split("$")
    if len(parts) != 6 or parts[0] != "scrypt" or not all(part.isdecimal() and len(part) < 9 for part in parts[1:4]):
        return False
    n, r, p = (int(part) for part in parts[1:4])
    if n < 2 or n & (n - 1) or r < 1 or p < 1 or 128 * r * (n + p) > _SCRYPT_MAX_BYTES:
        return False
    try:
        return len(_unb64(parts[4])) >= 8 and len(_unb64(parts[5])) == 32
    except (binascii.Error, ValueError):
        return False


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=2 * _SCRYPT_MAX_BYTES, dklen=32
    )


# -- links and sessions -------------------------------------------------------------------------------------------------------------------


def token_fits(token: str, given: str) -> bool:
    """Whether a script, or the form of the login page, gave the dashboard's own token."""
    return bool(token) and hmac.compare_digest(token.encode(), given.encode("utf-8", "surrogatepass"))


def make_link(token: str, now_s: float, random: bytes) -> str:
    """A ticket for `upnext dashboard url`, good for LINK_LIFE_S and one use. `random`: 16 random bytes."""
    body = f"{int(now_s * 1000)}.{_b64(random)}"
    return f"{body}.{_sign(token, 'link', body)}"


def link_fits(token: str, ticket: str, now_s: float, used: Collection[str], started_s: float) -> bool:
    """Whether a ticket is ours, young enough and unused. Those made before the server started may have been used: they are refused."""
    body, _, signature = ticket.rpartition(".")
    made = body.partition(".")[0]
    if not made.isdecimal() or len(made) > 15 or ticket in used:
        return False
    if not hmac.compare_digest(_sign(token, "link", body).encode(), signature.encode("utf-8", "surrogatepass")):
        return False
    age_s = now_s - int(made) / 1000
    return -5 <= age_s <= LINK_LIFE_S and int(made) / 1000 >= started_s - 1


def make_session(token: str, user: User, now_s: float, random: bytes) -> str:
    """The value of a session's cookie. `random`: 16 random bytes. It ends early when the token or the user's password changes."""
    body = f"{user.name}|{int(now_s) + SESSION_LIFE_S}|{_b64(random)}"
    return f"{body}|{_sign(token, 'session', body + '|' + user.secret)}"


def session_user(token: str, cookie: str, users: Mapping[str, User], now_s: float) -> User | None:
    """The user of a session, as the users file has it now; None for a session that is over, forged, or of a user who is gone."""
    body, _, signature = cookie.rpartition("|")
    name, _, rest = body.partition("|")
    ends = rest.partition("|")[0]
    user = users.get(name)
    if user is None or not ends.isdecimal() or len(ends) > 12:
        return None
    expected = _sign(token, "session", body + "|" + user.secret)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass")):
        return None
    return user if now_s < int(ends) else None


def cookie_name(listen: str, namespace: str) -> str:
    """Browsers share cookies among the ports of a host: the name tells dashboards apart."""
    return "upnext_" + hashlib.sha256(f"{listen}\n{namespace}".encode()).hexdigest()[:12]


def _sign(token: str, purpose: str, body: str) -> str:
    return _b64(hmac.digest(token.encode(), f"{purpose}\n{body}".encode("utf-8", "surrogatepass"), "sha256"))


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
