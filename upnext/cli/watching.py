"""Python files below folders: which have changed, and something to wait on until one may have.

What has changed is always seen from the files' times. `watchfiles` (extra `reload`), where it is installed, only says when to look;
without it, and where it can't watch, folders are looked through ten times a second. It reports no change on some network and container
mounts, so with it, too, they are looked through from time to time.
"""

from __future__ import annotations

import importlib
import os
import select
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

_LOOK_S = 0.1
_LOOK_ALL_THE_SAME_S = 1.0
_QUIET_MS, _AT_MOST_MS = 20, 100
"""An editor writes a file in several steps: a change is reported after as much quiet, or after as long."""
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv"}


class Watch:
    """The Python files below `folders`; `watchfiles` is the library, None without it."""

    def __init__(self, folders: Sequence[Path], *, watchfiles: ModuleType | None = None) -> None:
        self._folders = folders
        self._seen: Mapping[Path, int] = {}
        self._looked_at_s = 0.0
        self._alarm = _Alarm(folders, watchfiles) if watchfiles is not None else None

    def wait(self, within_s: float, descriptor: int | None = None) -> bool:
        """Return when a file may have changed, or when `descriptor` can be read (-> True), after `within_s` at most."""
        waits_on = [one for one in (descriptor, self._alarm and self._alarm.descriptor) if one is not None]
        ready, _, _ = select.select(waits_on, [], [], within_s)
        return descriptor in ready

    def begin(self) -> None:
        """Changes count from now on."""
        self._seen = self._snapshot()

    def changed(self) -> list[Path]:
        """Files that are new, changed or gone since `begin`; empty, too, where it isn't time to look."""
        now_s = time.monotonic()
        if self._alarm is not None and self._alarm.works:
            if not self._alarm.rang() and now_s - self._looked_at_s < _LOOK_ALL_THE_SAME_S:
                return []
        elif now_s - self._looked_at_s < _LOOK_S:
            return []
        if found := changes(self._seen, self._snapshot()):
            self._looked_at_s = 0.0  # the next look finds them again
        return found

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.close()

    def _snapshot(self) -> Mapping[Path, int]:
        found = snapshot(self._folders)
        self._looked_at_s = time.monotonic()
        return found


class _Alarm:
    """Makes `descriptor` readable when `watchfiles`, in a thread, reports a change of a Python file."""

    def __init__(self, folders: Sequence[Path], watchfiles: ModuleType) -> None:
        self.works = True
        self.descriptor, self._rings = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(folders, watchfiles), daemon=True)
        self._thread.start()

    def rang(self) -> bool:
        """Since it was last asked."""
        try:
            return os.read(self.descriptor, 4096) != b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        os.close(self.descriptor)
        os.close(self._rings)

    def _listen(self, folders: Sequence[Path], watchfiles: ModuleType) -> None:
        watching = watchfiles.watch(
            *folders,
            watch_filter=_is_source,
            step=_QUIET_MS,
            debounce=_AT_MOST_MS,
            stop_event=self._closing,
            ignore_permission_denied=True,
        )
        try:
            for _ in watching:
                os.write(self._rings, b".")
        except (OSError, RuntimeError):  # too many folders for inotify; its own errors
            self.works = False


def _is_source(_: object, path: str) -> bool:
    return path.endswith(".py")


def watchfiles() -> ModuleType | None:
    """The library, where it is installed."""
    try:
        return importlib.import_module("watchfiles")
    except ImportError:
        return None


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


def changes(before: Mapping[Path, int], now: Mapping[Path, int]) -> list[Path]:
    """Files that are new, changed or gone."""
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path))


def _sources(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        yield from (Path(root, name) for name in files if name.endswith(".py"))
