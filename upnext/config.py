"""Where things are found: the Redis URL, the state of a daemon, its sockets.

Read once, at the edge, from flags and an environment given as a mapping.
Every function takes the flag as the user gave it (None: not given); an empty environment variable counts as unset.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from upnext.core import naming
from upnext.core import redis_url as redis_url_rules
from upnext.errors import NoBrokerError, UsageError

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 107 bytes; the rest is for a temporary name beside it."""

UNITS_RUNTIME_DIR = Path("/run/upnext")
"""Where the daemons of systemd/upnextd@.service have their sockets: NAME/NAME.sock."""
UNITS_STATE_DIR = Path("/var/lib/upnext")
"""Where they have their state: NAME."""

_CONNECT_TIMEOUT_S = 1.0
_URL_CAP_BYTES = 1 << 14
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}\Z")
_NAMESPACE = re.compile(r"[^\s\x00-\x1f\ud800-\udfff{}]{1,100}\Z")

LOG_LEVELS = ("debug", "info", "warning", "error")


class UrlSource(StrEnum):
    """Which place gave it; the value names the place as a user would."""

    FLAG = "--redis-url"
    DAEMON_ENV = "UPNEXTD_REDIS_URL"
    CREDENTIAL = "the credential redis-url"
    ENV = "UPNEXT_REDIS_URL"
    WORKER = "Worker(redis_url=…)"
    EMBEDDED = "the embedded broker of a running daemon"


@dataclass(frozen=True, slots=True)
class ResolvedUrl:
    """A Redis URL that was checked, and where it was given. Shown by `redact(url)` only."""

    url: str
    source: UrlSource

    def __repr__(self) -> str:
        return f"ResolvedUrl({redact(self.url)!r}, {self.source.name})"


# ---- Redis


def redis_url(
    flag: str | None,
    env: Mapping[str, str],
    worker_url: str | None = None,
    name: str | None = None,
    *,
    daemon: bool = False,
) -> ResolvedUrl:
    """The URL to use: flag > UPNEXTD_REDIS_URL (only with `daemon`) > UPNEXT_REDIS_URL > the Worker's > a running daemon's broker.

    With `daemon`, the credential `redis-url` ($CREDENTIALS_DIRECTORY/redis-url, as systemd's LoadCredential= makes it) stands in for
    UPNEXTD_REDIS_URL where that is not set.

    `name` chooses among several running daemons. Raises NoBrokerError when there is none, UsageError when there are several,
    and for a URL that can't be one.
    """
    configured = configured_url(flag, env, worker_url, daemon=daemon)
    return configured if configured is not None else embedded_url(env, name)


def configured_url(
    flag: str | None, env: Mapping[str, str], worker_url: str | None = None, *, daemon: bool = False
) -> ResolvedUrl | None:
    """As `redis_url`, but None when no place names a URL, without searching for running daemons. Raises UsageError for a bad URL."""
    places = (
        (UrlSource.FLAG, flag),
        (UrlSource.DAEMON_ENV, env.get("UPNEXTD_REDIS_URL") if daemon else None),
        (UrlSource.CREDENTIAL, credential(env) if daemon and not env.get("UPNEXTD_REDIS_URL") else None),
        (UrlSource.ENV, env.get("UPNEXT_REDIS_URL")),
        (UrlSource.WORKER, worker_url),
    )
    for source, url in places:
        if url:
            try:
                return ResolvedUrl(validate_url(url), source)
            except UsageError as error:
                raise UsageError(f"{source}: {error}") from None
    return None


def credential(env: Mapping[str, str]) -> str | None:
    """What $CREDENTIALS_DIRECTORY/redis-url says; None when it is not there or empty. Raises UsageError when it can't be read."""
    folder = _given(env, "CREDENTIALS_DIRECTORY")
    if folder is None:
        return None
    try:
        with open(Path(folder, "redis-url"), "rb") as file:
            return file.read(_URL_CAP_BYTES).decode().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{UrlSource.CREDENTIAL} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{UrlSource.CREDENTIAL} can't be read: it is not text") from None


def embedded_url(env: Mapping[str, str], name: str | None = None) -> ResolvedUrl:
    """The embedded broker of the running daemon (called `name`). Raises NoBrokerError for none, UsageError for several."""
    name = name or _given(env, "UPNEXTD_NAME")
    live = find_brokers(env, name)
    if len(live) == 1:
        return ResolvedUrl(live[0][1], UrlSource.EMBEDDED)
    if not live:
        which = f" named {name!r}" if name else ""
        closed = closed_units(name)
        raise NoBrokerError(
            f"no Redis is configured and no daemon{which} with an embedded broker is running"
            + (f"; not readable as this user are the units {', '.join(closed)} (use sudo): " if closed else ": ")
            + "set UPNEXT_REDIS_URL, or start one with `upnextd start service.py`"
        )
    raise UsageError(
        f"several daemons are running: {', '.join(n for n, _ in live)}; choose one with --name or UPNEXT_REDIS_URL"
    )


def find_brokers(env: Mapping[str, str], name: str | None = None) -> list[tuple[str, str]]:
    """(daemon name, URL) of each embedded broker that answers a connect, by name. Root finds those of the systemd units as well."""
    found: dict[str, str] = {}
    for daemon, folder in _state_dirs(env, name):
        url = broker_url_of(folder)
        if url is not None and url not in found.values():
            found[daemon] = url
    if not (_given(env, "UPNEXTD_STATE_DIR") or _first(env, "STATE_DIRECTORY")):
        for daemon, folder in _unit_states(name):
            url = broker_url_of(folder, (folder, UNITS_RUNTIME_DIR / daemon))
            if url is not None and url not in found.values():
                found.setdefault(daemon, url)
    return sorted(found.items())


def broker_url_of(state: Path, within: Sequence[Path] = ()) -> str | None:
    """What STATE/broker.url says, when the broker there answers a connect; else None. `within`: folders that its socket may be in."""
    try:
        url = (state / "broker.url").read_text(encoding="utf-8").strip()
        path = Path(socket_of(validate_url(url)))
        if within and path.parent.resolve() not in {folder.resolve() for folder in within}:
            return None
    except (OSError, ValueError, UsageError):
        return None
    return url if url.startswith("unix:") and is_listening(path) else None


def socket_of(url: str) -> str:
    """The path of the socket that a unix:// URL names."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path)


def validate_url(url: str) -> str:
    """The URL without surrounding space. Raises UsageError, never showing the password, unless it can be a broker's."""
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
        raise UsageError(f"a Redis URL is text, not {type(url).__name__}; use {redis_url_rules.EXAMPLE}")
    url = url.strip()
    redis_url_rules.split(url)
    return url


def redact(url: str) -> str:
    """The same URL with *** for its password, fit for a log."""
    return redis_url_rules.redact(url)


def log_level(flag: str | None, env: Mapping[str, str]) -> str:
    """--log-level > UPNEXT_LOG_LEVEL > info. Raises UsageError for a word that is none of LOG_LEVELS."""
    for source, word in (("--log-level", flag), ("UPNEXT_LOG_LEVEL", env.get("UPNEXT_LOG_LEVEL"))):
        if word:
            if word.lower() not in LOG_LEVELS:
                raise UsageError(f"{source} {word!r}: write one of {', '.join(LOG_LEVELS)}")
            return word.lower()
    return "info"


def namespace(flag: str | None, env: Mapping[str, str]) -> str:
    """--namespace > UPNEXT_NAMESPACE > "default". Raises UsageError for a name that can't stand in a key."""
    namespace = flag or _given(env, "UPNEXT_NAMESPACE") or "default"
    if not _NAMESPACE.match(namespace):
        raise UsageError(
            f"namespace {namespace!r}: use 1 to 100 characters without spaces, control characters or braces"
        )
    return namespace


def service_name(flag: str | None, env: Mapping[str, str]) -> str | None:
    """--service-name > UPNEXT_SERVICE; None: it follows from the file. Raises UsageError for a name that can't be used."""
    for source, name in (("--service-name", flag), ("UPNEXT_SERVICE", _given(env, "UPNEXT_SERVICE"))):
        if name:
            return naming.checked_service_name(name, source)
    return None


# ---- a daemon's name, state and sockets


def working_directory(env: Mapping[str, str]) -> str:
    """The working directory by the name that it was entered by, which may lead through links: `current` in place of `releases/7`.

    The shell keeps that name in PWD; it counts only while it leads here.
    """
    named = env.get("PWD", "")
    with suppress(OSError):
        if named.startswith("/") and os.path.samefile(named, "."):
            return named
    return os.getcwd()


def daemon_name(flag: str | None, env: Mapping[str, str], service: str) -> str:
    """--name > UPNEXTD_NAME > the stem of the service's file or the last part of its module.

    Raises UsageError unless it can be part of a path.
    """
    stem = Path(service).stem if service.endswith(".py") or "/" in service else service.rpartition(".")[2]
    return check_daemon_name(flag or _given(env, "UPNEXTD_NAME") or stem)


def check_daemon_name(name: str) -> str:
    """Returns the name; raises UsageError unless it can be part of a path."""
    if not _NAME.match(name):
        raise UsageError(
            f"daemon name {name!r}: use 1 to 100 letters, digits and _ . @ + -, not starting with a dot or dash"
        )
    return name


def state_dir(name: str, flag: str | None, env: Mapping[str, str]) -> Path:
    """--state-dir / UPNEXTD_STATE_DIR as given > $STATE_DIRECTORY > $XDG_STATE_HOME/upnext/NAME > ~/.local/state/upnext/NAME.

    Absolute; not created here. Raises UsageError where none is given and this user has no home.
    """
    given = flag or _given(env, "UPNEXTD_STATE_DIR") or _first(env, "STATE_DIRECTORY")
    if given:
        return _absolute(given)
    root = _state_root(env)
    if root is None:
        raise UsageError(
            f"no folder for the state: HOME is not set, and the user database has no uid {os.getuid()}; give --state-dir"
            " (UPNEXTD_STATE_DIR), or set HOME or XDG_STATE_HOME"
        )
    return root / check_daemon_name(name)


def runtime_dir(env: Mapping[str, str]) -> Path:
    """Where sockets go: $RUNTIME_DIRECTORY > $XDG_RUNTIME_DIR/upnextd > a folder per user in the temporary directory.

    Not created here: `private_dir` does that.
    """
    given = _first(env, "RUNTIME_DIRECTORY")
    if given:
        return Path(given)
    return _user_runtime_dirs(env)[0]


def private_dir(path: Path) -> Path:
    """Makes the folder, mode 0700, and returns it. Raises UsageError when it can't be made or used, is another user's or open to others.

    A link to such a folder will do when root or this user made it: systemd makes one for StateDirectory= with DynamicUser=.
    """
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link = path.lstat()
    except OSError as error:
        raise UsageError(f"{error.filename or path}: {error.strerror}") from None
    us = os.geteuid()
    trusted = link.st_uid in {us, 0} if path.is_symlink() else link.st_uid == us
    if not trusted or not path.is_dir() or (status := path.stat()).st_uid != us:
        raise UsageError(f"{path} must be a directory of this user (uid {us})")
    if status.st_mode & 0o022:
        todo = "choose a folder of its own" if status.st_mode & stat.S_ISVTX else f"run chmod 700 {path}"
        raise UsageError(f"{path} can be written by others; {todo}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{path} can't be written to")
    return path


def control_socket(name: str, flag: str | None, env: Mapping[str, str]) -> Path:
    """--socket / UPNEXTD_SOCKET > NAME.sock in the runtime directory. Absolute. Raises UsageError when the path is too long."""
    given = flag or _given(env, "UPNEXTD_SOCKET")
    path = _absolute(given) if given else runtime_dir(env) / f"{check_daemon_name(name)}.sock"
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"the socket path {path} has {size} bytes, at most {MAX_SOCKET_PATH_BYTES} are possible; give a shorter --socket"
        )
    return path


def broker_socket_path(state: Path, runtime: Path, name: str | None = None) -> Path:
    """STATE/broker.sock, or NAME-broker.sock (NAME: the last part of STATE unless given) in `runtime` when that path is over 100 bytes."""
    path = state / "broker.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    path = runtime / f"{name or state.name}-broker.sock"
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"the socket path {path} has {size} bytes, at most {MAX_SOCKET_PATH_BYTES} are possible; give a shorter --name"
        )
    return path


def find_control_sockets(env: Mapping[str, str]) -> list[tuple[str, Path]]:
    """(daemon name, path) of each control socket in the known places that answers a connect, by name.

    With UPNEXTD_SOCKET or UPNEXTD_NAME set, only that daemon's. Root finds those of the systemd units as well.
    """
    given = _given(env, "UPNEXTD_SOCKET")
    if given:
        path = _absolute(given)
        return [(path.stem, path)] if is_listening(path) else []
    wanted = _given(env, "UPNEXTD_NAME")
    if wanted:
        check_daemon_name(wanted)
    first = _first(env, "RUNTIME_DIRECTORY")
    folders = [*([Path(first)] if first else []), *_user_runtime_dirs(env)]
    found: dict[str, Path] = {}
    for folder in filter(_is_ours, folders):
        for path in sorted(folder.glob(f"{wanted or '*'}.sock")):
            if not path.name.endswith("-broker.sock") and path.stem not in found and is_listening(path):
                found[path.stem] = path
    for path in _unit_sockets(wanted or "*"):
        if path.stem not in found and is_listening(path):
            found[path.stem] = path
    return sorted(found.items())


def is_listening(path: Path) -> bool:
    """Whether a Unix socket answers a connect within a second: a socket file alone says nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # so many wait to be let in that no more can
        except (OSError, ValueError):
            return False
    return True


# ---- shared steps


def _given(env: Mapping[str, str], variable: str) -> str | None:
    return env.get(variable) or None


def _first(env: Mapping[str, str], variable: str) -> str | None:
    """systemd lists several directories, colon separated; the first is ours."""
    return env.get(variable, "").split(":")[0] or None


def _absolute(given: str) -> Path:
    """Raises UsageError for the home of an unknown user."""
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{given}: that user's home is not known; write the whole path") from None


def _state_root(env: Mapping[str, str]) -> Path | None:
    """None for a user who has no home, as containers may run under any uid."""
    xdg = env.get("XDG_STATE_HOME", "")
    if xdg.startswith("/"):  # the XDG rules: ignore a relative one
        return Path(xdg) / "upnext"
    try:
        return Path(env.get("HOME") or Path.home()) / ".local/state/upnext"
    except RuntimeError:
        return None


def _state_dirs(env: Mapping[str, str], name: str | None) -> list[tuple[str, Path]]:
    """Every (daemon name, folder) where a daemon of this user may keep its state; one folder when the environment names it."""
    given = _given(env, "UPNEXTD_STATE_DIR") or _first(env, "STATE_DIRECTORY")
    if given:
        folder = _absolute(given)
        return [(name or folder.name, folder)]
    root = _state_root(env)
    if root is None:
        return []
    if name:
        return [(name, root / check_daemon_name(name))]
    with suppress(OSError):
        return [(folder.name, folder) for folder in sorted(root.iterdir()) if folder.is_dir()]
    return []


def _is_ours(folder: Path) -> bool:
    """Anyone may have made a folder of our name in the temporary directory, or a link to one of ours."""
    us = {os.geteuid(), 0}
    try:
        return folder.lstat().st_uid in us and folder.stat().st_uid in us
    except OSError:
        return False


def unit_users(socket_path: Path) -> frozenset[int]:
    """Who serves there, when it is the socket of a systemd unit: its folder was made by systemd for the unit's user."""
    if socket_path.parent.parent != UNITS_RUNTIME_DIR or not _is_ours(UNITS_RUNTIME_DIR):
        return frozenset()
    try:
        return frozenset({socket_path.parent.stat().st_uid})
    except OSError:
        return frozenset()


def _unit_sockets(name: str) -> list[Path]:
    """NAME/NAME.sock of each unit, for root only: others can't look in there."""
    if os.geteuid() != 0 or not _is_ours(UNITS_RUNTIME_DIR):
        return []
    return [path for path in sorted(UNITS_RUNTIME_DIR.glob(f"{name}/*.sock")) if path.stem == path.parent.name]


def _unit_states(name: str | None) -> list[tuple[str, Path]]:
    """(name, folder) of the units' state, for root only: others can't look in there."""
    if os.geteuid() != 0 or not _is_ours(UNITS_STATE_DIR):
        return []
    with suppress(OSError):
        folders = [UNITS_STATE_DIR / check_daemon_name(name)] if name else sorted(UNITS_STATE_DIR.iterdir())
        return [(folder.name, folder) for folder in folders]
    return []


def closed_units(name: str | None = None) -> list[str]:
    """Names of the running systemd units (or only `name`) whose folders this user can't look into."""
    with suppress(OSError):
        folders = (folder for folder in sorted(UNITS_RUNTIME_DIR.iterdir()) if name in (None, folder.name))
        return [folder.name for folder in folders if not os.access(folder, os.R_OK | os.X_OK)]
    return []


def _user_runtime_dirs(env: Mapping[str, str]) -> list[Path]:
    """In the order of preference. A client looks in all: a daemon under another login may lack XDG_RUNTIME_DIR."""
    xdg = env.get("XDG_RUNTIME_DIR", "")
    try:
        temporary = env.get("TMPDIR") or tempfile.gettempdir()
    except FileNotFoundError:  # none can be written to: what needs it reports that
        temporary = "/tmp"  # noqa: S108 - a folder of our own in it, which is checked
    return [*([Path(xdg) / "upnextd"] if xdg.startswith("/") else []), Path(temporary) / f"upnextd-{os.getuid()}"]
