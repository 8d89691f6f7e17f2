"""`upnext run --reload`: processes of their own for the services, a new one for each change of their source.

The new process imports the services while the old one goes on. Only then the old one ends: it finishes its jobs, which may take a while,
and the new one takes what is queued at once. When the import fails, its one line is all that happens.

One process more is spare: it has imported UpNext already, and waits for the next change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from upnext.cli import output
from upnext.cli.watching import Watch, watchfiles

_LOOK_S = 0.1
_SPARE_AFTER_S = 1.0
"""So long after a change the next process is prepared: it must not slow that change's down."""
_PACKAGE = Path(__file__).parents[1]


class Gate(NamedTuple):
    """Descriptors of a process that is let on twice by a byte from `go`: to import its services, and, when `loaded` has one, to run."""

    loaded: int
    go: int
    apis: bool
    """Whether the code before had Apis."""

    def may_import(self) -> bool:
        """In that process, before it reads any setting."""
        return os.read(self.go, 1) != b""

    def may_run(self, *, alone: bool) -> bool:
        """In that process, with its services imported; `alone`: it can't run beside the old one."""
        os.write(self.loaded, b"a" if alone else b"l")
        go = os.read(self.go, 1)
        os.close(self.loaded)
        os.close(self.go)
        return go != b""


class _Child:
    """One process of this same command line, in a session of its own: Ctrl-C reaches only this process, which asks the child once."""

    def __init__(self, lifeline: int, variable: str, *, apis: bool) -> None:
        self._loaded, loaded = os.pipe()
        go, self._go = os.pipe()
        given = [lifeline, loaded, go]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upnext.cli.next_code", *sys.argv[1:]],
            env={**os.environ, variable: ",".join(map(str, [*given, int(apis)]))},
            pass_fds=given,
            start_new_session=True,
        )
        os.close(loaded)
        os.close(go)

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def loaded(self, watch: Watch, within_s: float) -> bytes | None:
        """b"l" or b"a" (see `Gate`) once its services are imported, b"" when it has ended instead, None when it still imports."""
        return os.read(self._loaded, 1) if watch.wait(within_s, self._loaded) else None

    def go_on(self) -> None:
        """Let it import its services; later, let it run."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            return  # it has ended meanwhile

    def ask(self, number: int) -> None:
        if self.code is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it before it runs."""
        self.ask(signal.SIGKILL)
        self.process.wait()
        self.close()

    def close(self) -> None:
        """It has ended."""
        os.close(self._loaded)
        os.close(self._go)


class _Reloader:
    def __init__(self, services: Sequence[str], variable: str) -> None:
        self._watch = Watch(_folders(services), watchfiles=watchfiles())
        self._variable = variable
        self._lifeline, self._held = os.pipe()  # the other end goes with this process
        self._asked: list[int] = []
        self._old: list[_Child] = []
        """They finish their jobs."""
        self._current: _Child | None = None
        self._spare: _Child | None = None
        self._spare_at_s = 0.0
        self._apis = False
        self._failed = 0
        """What the newest ended with, where none could be imported."""

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._asked.append(number))
        try:
            return self._until_the_end()
        finally:
            self._watch.close()
            self._drop_the_spare()
            os.close(self._held)
            os.close(self._lifeline)

    def _until_the_end(self) -> int:
        self._replace()
        while not self._asked:
            self._forget_the_ended()
            if self._current is not None and self._current.code == 0:
                break  # by itself, well
            if changed := self._watch.changed():
                output.tell(f"{', '.join(sorted({path.name for path in changed}))} changed: starting again")
                if any(path.is_relative_to(_PACKAGE) for path in changed):
                    self._drop_the_spare()  # it has imported what was there before
                self._replace()
            elif self._spare is None and time.monotonic() > self._spare_at_s:
                self._spare = _Child(self._lifeline, self._variable, apis=self._apis)
            else:
                self._watch.wait(_LOOK_S)
        return self._end()

    def _replace(self) -> None:
        """A new process in the place of the current one, once it has imported the services; else that one stays."""
        self._watch.begin()
        child = self._next()
        child.go_on()
        while (loaded := child.loaded(self._watch, _LOOK_S)) is None and not self._asked:
            if self._watch.changed():
                break  # what it imports is old already
        if not loaded:
            child.kill()
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
        self._apis = loaded == b"a"
        self._current = child
        child.go_on()

    def _next(self) -> _Child:
        """The spare one, where it waits; a new one else."""
        self._spare_at_s = time.monotonic() + _SPARE_AFTER_S
        child, self._spare = self._spare, None
        if child is not None and child.code is None:
            return child
        if child is not None:
            child.close()
        return _Child(self._lifeline, self._variable, apis=self._apis)

    def _drop_the_spare(self) -> None:
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

    def _await(self, child: _Child) -> None:
        while child.code is None and not self._asked:
            time.sleep(_LOOK_S / 10)

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

    `variable` gives it a descriptor whose other end this process holds for as long as it lives, and the values of a `Gate`.
    A service that can't be imported is reported; the next change tries again.
    """
    return _Reloader(services, variable).run()


def _folders(services: Sequence[str]) -> list[Path]:
    """Those of the service files; the working directory for modules."""
    found = [Path(service).resolve().parent if Path(service).exists() else Path.cwd() for service in services]
    return list(dict.fromkeys(found))
