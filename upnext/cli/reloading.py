"""`upnext run --reload`: a process of its own for the services, started again when their source changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from upnext.cli import output

_LOOK_S = 0.25
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv"}


def keep_running(services: Sequence[str], lifeline: str) -> int:
    """Runs this same command line, less --reload, until a signal or its end by itself. -> its exit code.

    `lifeline` names the variable that tells it a descriptor whose other end this process holds.

    A service that can't be imported is reported and waited for: the next change starts it again.
    """
    folders = _folders(services)
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopping.append(number))
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "upnext.cli", *sys.argv[1:]]
    environment = {**os.environ, lifeline: str(reading)}
    while True:
        seen = snapshot(folders)
        # A session of its own: Ctrl-C reaches only this process, which asks the child once.
        child = subprocess.Popen(command, env=environment, pass_fds=[reading], start_new_session=True)
        try:
            changed = _watch(child, stopping, folders, seen)
        finally:
            code = _end(child, stopping)
        if not changed:
            os.close(reading)
            os.close(writing)
            return code
        output.tell(f"{', '.join(changed)} changed: starting again")


def _watch(
    child: subprocess.Popen[bytes], stopping: Sequence[int], folders: Sequence[Path], seen: Mapping[Path, int]
) -> list[str]:
    """Until something changes (-> what), or it is to end: by a signal, or because the child ended well (-> nothing)."""
    while not stopping and child.poll() != 0:
        if changed := changes(seen, snapshot(folders)):
            return changed
        time.sleep(_LOOK_S)
    return []


def _end(child: subprocess.Popen[bytes], stopping: Sequence[int]) -> int:
    """Lets it finish its jobs; a second Ctrl-C is passed on. -> its exit code."""
    asked = len(stopping)
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    while child.poll() is None:
        if len(stopping) > max(1, asked):
            asked = len(stopping)
            child.send_signal(signal.SIGINT)
        time.sleep(_LOOK_S / 5)
    return child.returncode


def _folders(services: Sequence[str]) -> list[Path]:
    """Those of the service files; the working directory for modules."""
    found = [Path(service).resolve().parent if Path(service).exists() else Path.cwd() for service in services]
    return list(dict.fromkeys(found))


def snapshot(folders: Sequence[Path]) -> dict[Path, int]:
    """Python file -> when it was last changed, ns."""
    found: dict[Path, int] = {}
    for folder in folders:
        for path in _sources(folder):
            try:
                found[path] = path.stat().st_mtime_ns
            except OSError:
                continue  # an editor has just replaced it
    return found


def changes(before: Mapping[Path, int], now: Mapping[Path, int]) -> list[str]:
    """Names of files that are new, changed or gone."""
    return sorted({path.name for path in {*before, *now} if before.get(path) != now.get(path)})


def _sources(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        yield from (Path(root, name) for name in files if name.endswith(".py"))
