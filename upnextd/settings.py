"""Settings of `upnextd start`, from flags, UPNEXTD_… variables and the defaults of the contract: read once, frozen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from upnext import config, project
from upnext.address import Address, parse_named
from upnext.control.listen import parse_listen, refuse_open
from upnext.core import secret_names
from upnext.errors import UsageError
from upnextd.rules import plan
from upnextd.shared import log_records, process

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
_ADDRESS = re.compile(r"(\[[^][]+\]|[^][:]*):([0-9]{1,5})\Z")
API_CAP = 100
"""Most processes of one Api."""
_DASHBOARD_NEEDS = ("starlette", "jinja2", "uvicorn")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OTHER_VARIABLES = frozenset({"UPNEXTD_CANARY_S", "UPNEXTD_START_TIMEOUT_S", "UPNEXTD_DAEMON", "UPNEXTD_UPGRADE_FD"})
_PRIVATE_VARIABLES = ("NOTIFY_", "WATCHDOG_", "LISTEN_")


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line as click read it, variables filled in. None: not given."""

    service: str
    name: str | None = None
    redis_url: str | None = None
    namespace: str | None = None
    socket: str | None = None
    state_dir: str | None = None
    workers: int | None = None
    only: tuple[str, ...] = ()
    stop_timeout: float = 30.0
    hang_timeout: float = 60.0
    reload_timeout: float = 3600.0
    import_timeout: float = 60.0
    boot_timeout: float = 5.0
    max_jobs: int | None = None
    max_rss: str | None = None
    no_preload: bool = False
    metrics: str | None = None
    dashboard: str | None = None
    dashboard_host: tuple[str, ...] = ()
    dashboard_users: str | None = None
    dashboard_proxy_header: str | None = None
    log_format: str = "text"
    log_level: str | None = None
    log_file: str | None = None
    service_name: str | None = None
    secrets_dir: str | None = None
    secrets_exec: str | None = None
    api_listen: tuple[str, ...] = ()
    api_processes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What `--dashboard` and its flags say."""

    listen: Address
    hosts: tuple[str, ...]
    users: Path | None
    proxy_header: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """A daemon's settings. `redis_url` is None when neither flag nor environment names one."""

    service: str
    name: str
    redis_url: str | None
    namespace: str
    socket: Path
    state_dir: Path
    runtime_dir: Path
    workers: int
    only: tuple[str, ...]
    stop_timeout_s: float
    hang_timeout_s: float
    reload_timeout_s: float
    import_timeout_s: float
    """How long an import of the service may take, at the start, at a reload, or when a template is replaced."""
    boot_timeout_s: float
    """How long the broker is waited for at the start; 0: without end."""
    metrics: str | None
    """`HOST:PORT`, or the path of a Unix socket."""
    max_jobs: int | None
    """A worker is replaced after so many jobs; None: never."""
    max_rss_bytes: int | None
    preload: bool
    """Children are forked from a template that imported the service; else each imports it for itself."""
    canary_s: float
    """How long the first worker of new code must stay ready. `UPNEXTD_CANARY_S` changes it; for tests."""
    start_timeout_s: float
    """How long a child may take until it is ready. `UPNEXTD_START_TIMEOUT_S` changes it; for tests."""
    log_format: str
    log_file: Path | None
    warnings: tuple[str, ...]
    """What was set and means nothing, a line each."""
    child_env: Mapping[str, str]
    """The environment that the service gets: see `child_env`."""
    dashboard: Dashboard | None = None
    api_listen: tuple[str, ...] = ()
    """`NAME=ADDRESS` for Apis that listen elsewhere than they declare."""
    api_processes: Mapping[str, int] = field(default_factory=dict[str, int])
    """For Apis that have another number of processes than they declare."""
    directory: str = "."
    """The working directory of what imports the service, entered anew for each generation: a link in it may have been moved."""
    log_level: str = "info"
    """The least level of what is logged, by the daemon itself and (as UPNEXTD_LOG_LEVEL) by the service."""


def build(flags: Flags, environment: Mapping[str, str], directory: str | None = None) -> Settings:
    """Raises UsageError with one line that says what is wrong. `directory`: the working directory of before an upgrade.

    The project's files are below the environment, and not exported to children.
    """
    env = project.environment(environment, daemon=True)
    _check_text(flags)
    name = config.daemon_name(flags.name, env, flags.service)
    url = config.configured_url(flags.redis_url, env, daemon=True)
    workers = process.usable_cpus() if flags.workers is None else flags.workers
    if not 0 <= workers <= plan.WORKERS_CAP:
        raise UsageError(f"--workers {workers}: from 0 to {plan.WORKERS_CAP}")
    for flag, value in (
        ("--stop-timeout", flags.stop_timeout),
        ("--reload-timeout", flags.reload_timeout),
        ("--boot-timeout", flags.boot_timeout),
    ):
        if not 0 <= value < float("inf"):
            raise UsageError(f"{flag} {value:g}: seconds, 0 or more")
    if not 0.5 <= flags.hang_timeout < float("inf"):
        raise UsageError(f"--hang-timeout {flags.hang_timeout:g}: seconds, at least 0.5")
    if not 0 < flags.import_timeout < float("inf"):
        raise UsageError(f"--import-timeout {flags.import_timeout:g}: seconds, more than 0")
    if flags.max_jobs is not None and flags.max_jobs < 1:
        raise UsageError(f"--max-jobs {flags.max_jobs}: 1 or more")
    directory = directory or config.working_directory(env)
    level = config.log_level(flags.log_level, env)
    return Settings(
        service=_service(flags.service, directory),
        name=name,
        redis_url=url.url if url else None,
        namespace=config.namespace(flags.namespace, env),
        socket=config.control_socket(name, flags.socket, env),
        state_dir=config.state_dir(name, flags.state_dir, env),
        runtime_dir=config.runtime_dir(env),
        workers=workers,
        only=_names(flags.only),
        stop_timeout_s=flags.stop_timeout,
        hang_timeout_s=flags.hang_timeout,
        reload_timeout_s=flags.reload_timeout,
        import_timeout_s=flags.import_timeout,
        boot_timeout_s=flags.boot_timeout,
        metrics=_metrics(flags.metrics, env) if flags.metrics else None,
        max_jobs=flags.max_jobs,
        max_rss_bytes=None if flags.max_rss is None else _max_rss(flags.max_rss),
        preload=not flags.no_preload,
        canary_s=_seconds(env, "UPNEXTD_CANARY_S", 5.0),
        start_timeout_s=_seconds(env, "UPNEXTD_START_TIMEOUT_S", 60.0),
        log_format=flags.log_format,
        log_level=level,
        log_file=Path(flags.log_file).absolute() if flags.log_file else None,
        warnings=tuple(unknown_variables(env)),
        child_env=child_env(
            environment, flags.service_name or env.get("UPNEXT_SERVICE"), flags.secrets_dir, flags.secrets_exec
        )
        | ({} if environment.get(log_records.LEVEL_VARIABLE, "info") == level else {log_records.LEVEL_VARIABLE: level}),
        dashboard=_dashboard(flags),
        api_listen=_api_listen(flags.api_listen),
        api_processes=_api_processes(flags.api_processes),
        directory=directory,
    )


def _api_listen(texts: Sequence[str]) -> tuple[str, ...]:
    parse_named("--api-listen", texts)
    return tuple(texts)


def _api_processes(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name or not number.isascii() or not number.isdecimal() or not 1 <= int(number) <= API_CAP:
            raise UsageError(f"--api-processes {text}: write NAME=N, N from 1 to {API_CAP}")
        if name in found:
            raise UsageError(f"--api-processes {text}: there is a number for {name!r} already")
        found[name] = int(number)
    return found


def child_env(
    env: Mapping[str, str], service_name: str | None, secrets_dir: str | None = None, secrets_exec: str | None = None
) -> dict[str, str]:
    """The environment of all that imports the service: ours, less what systemd meant for us alone; UPNEXT_SERVICE names the service.

    The two about secrets say where its workers find them. Raises UsageError for a name, a folder or a program that can't be used.
    """
    kept = {key: value for key, value in env.items() if not key.startswith(_PRIVATE_VARIABLES)}
    name = config.service_name(service_name, env)
    if name is not None:
        kept["UPNEXT_SERVICE"] = name
    if secrets_dir is not None:
        if not Path(secrets_dir).is_dir():
            raise UsageError(f"--secrets-dir {secrets_dir}: no such folder")
        kept[secret_names.DIRECTORY_VARIABLE] = str(Path(secrets_dir).absolute())
    if secrets_exec is not None:
        program = shutil.which(secrets_exec, path=env.get("PATH"))
        if program is None:
            raise UsageError(f"--secrets-exec {secrets_exec}: no such program, or it can't be executed")
        kept[secret_names.EXEC_VARIABLE] = str(Path(program).absolute())
    return kept


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Return a line for each UPNEXTD_… variable that nothing reads, with the nearest that something does."""
    known = {"UPNEXTD_" + field.name.upper() for field in fields(Flags)} | _OTHER_VARIABLES
    lines: list[str] = []
    for name in sorted(env):
        if name.startswith("UPNEXTD_") and name not in known:
            near = get_close_matches(
                name.removeprefix("UPNEXTD_"), (one.removeprefix("UPNEXTD_") for one in sorted(known)), 1
            )
            lines.append(
                f"{name} is set, and no setting has that name" + (f"; did you mean UPNEXTD_{near[0]}?" if near else "")
            )
    return lines


def _check_text(flags: Flags) -> None:
    """A path or a word that is not text would fail later, where it is sent to a child."""
    for option in fields(flags):
        value = getattr(flags, option.name)
        for one in value if isinstance(value, tuple) else (value,):  # pyright: ignore[reportUnknownVariableType]
            if isinstance(one, str) and not _is_text(one):
                flag = "SERVICE" if option.name == "service" else "--" + option.name.replace("_", "-")
                raise UsageError(f"{flag} {one!r}: is not UTF-8")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def metrics_address(text: str) -> str:
    """`HOST:PORT`, `:PORT` (this machine only) or a path -> what the metrics process listens on. Raises UsageError."""
    host, slash, _ = text.partition("/")
    if slash and _ADDRESS.match(host):
        raise UsageError(f"--metrics {text}: write {host} alone; the metrics are at /metrics there")
    if slash:
        return str(Path(text.removeprefix("unix://").removeprefix("unix:")).absolute())
    match = _ADDRESS.match(text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UsageError(f"--metrics {text}: write HOST:PORT, or the path of a Unix socket")
    return f"{match[1] or '127.0.0.1'}:{match[2]}"


def _metrics(text: str, env: Mapping[str, str]) -> str:
    where = metrics_address(text)
    if where.endswith(".sock") and Path(where).parent == config.runtime_dir(env):
        raise UsageError(
            f"--metrics {text}: every .sock in {config.runtime_dir(env)} is taken for a daemon's; give it another ending"
        )
    return where


def _dashboard(flags: Flags) -> Dashboard | None:
    if flags.dashboard is None:
        for flag, value in (
            ("--dashboard-host", flags.dashboard_host),
            ("--dashboard-users", flags.dashboard_users),
            ("--dashboard-proxy-header", flags.dashboard_proxy_header),
        ):
            if value:
                raise UsageError(f"{flag} is for a dashboard: give --dashboard HOST:PORT, too")
        return None
    listen = parse_listen(flags.dashboard)
    users = Path(flags.dashboard_users).absolute() if flags.dashboard_users else None
    header = flags.dashboard_proxy_header
    refuse_open(listen, users=users is not None, proxy_header=header, group=None, flag="--dashboard-users")
    if users is not None and not users.is_file():
        raise UsageError(f"--dashboard-users {users}: there is no such file")
    missing = [name for name in _DASHBOARD_NEEDS if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--dashboard needs {missing[0]}: install the extra, pip install '/path/to/checkout[dashboard]'"
        )
    return Dashboard(listen, flags.dashboard_host, users, header)


def size_bytes(text: str) -> int:
    """512M -> bytes; K, M, G, T are powers of 1024. Raises UsageError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size: write 512M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def _max_rss(text: str) -> int:
    try:
        size = size_bytes(text)
    except UsageError as error:
        raise UsageError(f"--max-rss: {error}") from None
    if size == 0:
        raise UsageError(f"--max-rss {text}: more than 0")
    return size


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(env.get(name, default))
    except ValueError:
        raise UsageError(f"{name}: not a number of seconds") from None


def _service(service: str, directory: str) -> str:
    """A file's absolute path, or a module's name as it is."""
    return str(Path(directory, service)) if service.endswith(".py") or os.sep in service else service


def _names(only: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for part in only for name in part.split(",") if name)
