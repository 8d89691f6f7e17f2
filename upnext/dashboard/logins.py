"""The people of one dashboard: its token, its users file, the sessions and links that it has given out."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from upnext.dashboard import auth, requests
from upnext.dashboard.auth import Role, User
from upnext.dashboard.settings import DashboardSettings
from upnext.errors import UsageError

OWNER = User("owner", Role.ADMIN)
"""Who holds the token of the state directory."""

_FILE_CAP_BYTES = 1 << 20


class Logins:
    """Says who sent a request. Roles are read from the users file at each request, so a change holds at once."""

    def __init__(self, settings: DashboardSettings, started_s: float | None = None) -> None:
        """Make or read the token. Raises UsageError when a file can't be used, naming it and why."""
        self._settings = settings
        self._token = load_token(settings.token_file)
        self._started_s = time.time() if started_s is None else started_s
        self._used: dict[str, float] = {}
        self.cookie_name = auth.cookie_name(str(settings.listen), settings.namespace)
        self.users()

    @property
    def takes_passwords(self) -> bool:
        """Whether people log in by name and password; otherwise by the token or a link."""
        return self._settings.users_file is not None

    def users(self) -> dict[str, User]:
        """The users file as it is now; the owner of the state directory where there is none. Raises UsageError for a bad file."""
        path = self._settings.users_file
        if path is None:
            return {OWNER.name: OWNER}
        try:
            with open(path, "rb") as file:
                return auth.parse_users(file.read(_FILE_CAP_BYTES).decode())
        except OSError as error:
            raise UsageError(f"users file {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"users file {path} is not UTF-8 text") from None
        except UsageError as error:
            raise UsageError(f"users file {path}: {error}") from None

    def user_of(self, headers: Mapping[str, str], cookie: str | None) -> User | None:
        """Who sent a request with these headers and this session cookie; None for a stranger."""
        given = requests.bearer(headers)
        if given is not None:
            return OWNER if auth.token_fits(self._token, given) else None
        try:
            users = self.users()
        except UsageError:
            return None
        header = self._settings.proxy_header
        if header is not None:
            # Only a process that may open our Unix socket can set it.
            name = headers.get(header.lower(), "")
            if self._settings.users_file is not None:
                return users.get(name)
            return User(name, Role.ADMIN) if name else None
        return auth.session_user(self._token, cookie, users, time.time()) if cookie else None

    def by_password(self, name: str, password: str) -> str | None:
        """A new session's cookie, or None. Takes about 50 ms: call it in a thread."""
        users = self.users()
        user = users.get(name)
        # An unknown name costs what a known one costs.
        example = next(iter(users.values()), None) if user is None else user
        fits = example is not None and auth.password_fits(example, password)
        return self._session(user) if user is not None and fits else None

    def by_token(self, token: str) -> str | None:
        """A new session's cookie for who knows the token; None where users are configured."""
        if self.takes_passwords or not auth.token_fits(self._token, token):
            return None
        return self._session(OWNER)

    def by_link(self, ticket: str) -> str | None:
        """A new session's cookie for a ticket of `make_link`, which is used up by it."""
        now_s = time.time()
        self._used = {known: at for known, at in self._used.items() if now_s - at <= 2 * auth.LINK_LIFE_S}
        if self.takes_passwords or not auth.link_fits(self._token, ticket, now_s, self._used, self._started_s):
            return None
        self._used[ticket] = now_s
        return self._session(OWNER)

    def _session(self, user: User) -> str:
        return auth.make_session(self._token, user, time.time(), secrets.token_bytes(16))


def load_token(path: Path) -> str:
    """The token in a file of ours with mode 0600; made where there is none. Raises UsageError when that can't be."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _read_token(path) or _make_token(path)
    except OSError as error:
        raise UsageError(f"dashboard token {path}: {error.strerror}") from None


def _read_token(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in (0, os.geteuid()):
            raise UsageError(f"dashboard token {path} does not belong to this user")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise UsageError(f"dashboard token {path} can be read by others: remove it, a new one is made")
        return file.read(4096).decode("ascii", "replace").strip() or None


def _make_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(token.encode() + b"\n")
    try:
        os.link(beside, path)  # atomic: of two that start at once, one wins
    except FileExistsError:
        if not path.read_bytes().strip():
            os.replace(beside, path)
            return token
        return _read_token(path) or token
    finally:
        beside.unlink(missing_ok=True)
    return token
