"""`upnext run --reload`: processes of their own for the services, a new one for each change of their source.

The new process imports the services while the old one goes on. Only then the old one ends: it finishes its jobs, which may take a while,
and the new one takes what is queued at once. When the import fails, its one line is all that happens.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from upnext.cli import output

_LOOK_S = 0.1
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv"}


class Gate(NamedTuple):
    """Descriptors of a process that imports before it runs: it writes a byte to `loaded` then, and starts when `go` gives one."""

    loaded: int
    go: int

    def wait(self, *, alone: bool) -> bool:
        """In that process, with its services imported; `alone`: it can't run beside the old one. -> whether to start."""
        os.write(self.loaded, b"a" if alone else b"l")
        go = os.read(self.go, 1)
        os.close(self.loaded)
        os.close(self.go)
        return go != b""


class _Child:
    """One process of this same command line, in a session of its own: Ctrl-C reaches only this process, which asks the child once."""

    def __init__(self, lifeline: int, variable: str) -> None:
        self._loaded, loaded = os.pipe()
        go, self._go = os.pipe()
        given = [lifeline, loaded, go]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upnext.cli", *sys.argv[1:]],
            env={**os.environ, variable: ",".join(map(str, given))},
            pass_fds=given,
            start_new_session=True,
        )
        os.close(loaded)
        os.close(go)

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def loaded(self, within_s: float) -> bytes | None:
        """b"l" or b"a" (see `Gate`) once its services are imported, b"" when it has ended instead, None when it still imports."""
        ready, _, _ = select.select([self._loaded], [], [], within_s)
        return os.read(self._loaded, 1) if ready else None

    def start(self) -> None:
        """Let it run."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            return  # it has ended meanwhile

    def ask(self, number: int) -> None:
        if self.code is None:
            self.process.send_signal(number)

    def close(self) -> None:
        """It has ended."""
        os.close(self._loaded)
        os.close(self._go)


class _Reloader:
    def __init__(self, services: Sequence[str], variable: str) -> None:
        self._folders = _folders(services)
        self._variable = variable
        self._lifeline, self._held = os.pipe()  # the other end goes with this process
        self._asked: list[int] = []
        self._seen: Mapping[Path, int] = {}
        self._old: list[_Child] = []
        """They finish their jobs."""
        self._current: _Child | None = None
        self._failed = 0
        """What the newest ended with, where none could be imported."""

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._asked.append(number))
        try:
            return self._until_the_end()
        finally:
            os.close(self._held)
            os.close(self._lifeline)

    def _until_the_end(self) -> int:
        self._replace()
        while not self._asked:
            self._forget_the_ended()
            if self._current is not None and self._current.code == 0:
                break  # by itself, well
            if changed := changes(self._seen, snapshot(self._folders)):
                output.tell(f"{', '.join(changed)} changed: starting again")
                self._replace()
            else:
                time.sleep(_LOOK_S)
        return self._end()

    def _replace(self) -> None:
        """A new process in the place of the current one, once it has imported the services; else that one stays."""
        self._seen = snapshot(self._folders)
        child = _Child(self._lifeline, self._variable)
        while (loaded := child.loaded(_LOOK_S)) is None and not self._asked:
            if changes(self._seen, snapshot(self._folders)):
                break  # what it imports is old already
        if not loaded:
            child.ask(signal.SIGKILL)
            child.process.wait()
            child.close()
            if loaded == b"" and self._current is not None and self._current.code is None:
                output.tell("the former code goes on")
            elif self._current is None:
                self._failed = child.process.returncode
            return
        if self._current is not None:
            self._current.ask(signal.SIGTERM)
            if loaded == b"a":
                self._await(self._current)
            self._old.append(self._current)
        self._current = child
        child.start()

    def _await(self, child: _Child) -> None:
        while child.code is None and not self._asked:
            time.sleep(_LOOK_S / 2)

    def _forget_the_ended(self) -> None:
        for child in [one for one in self._old if one.code is not None]:
            child.close()
            self._old.remove(child)

    def _end(self) -> int:
        """Lets all finish their jobs; a second Ctrl-C is passed on. -> the exit code of the current one."""
        children = [*self._old, *([self._current] if self._current is not None else [])]
        for child in children:
            child.ask(signal.SIGTERM)
        asked = len(self._asked)
        while any(child.code is None for child in children):
            if len(self._asked) > max(1, asked):
                asked = len(self._asked)
                for child in children:
                    child.ask(signal.SIGINT)
            time.sleep(_LOOK_S / 2)
        code = self._failed if self._current is None else self._current.process.returncode
        for child in children:
            child.close()
        return code


def keep_running(services: Sequence[str], variable: str) -> int:
    """Runs this same command line, less --reload, until a signal or its end by itself. -> its exit code.

    `variable` gives it three descriptors: one whose other end this process holds for as long as it lives, and those of a `Gate`.
    A service that can't be imported is reported; the next change tries again.
    """
    return _Reloader(services, variable).run()


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
