"""A control group of a test's own, inside the one that the test runs in, in either version; where none can be made, the test is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

_ROOT = Path("/sys/fs/cgroup")
_FILES = {"memory": ("memory.max", "memory.limit_in_bytes"), "pids": ("pids.max", "pids.max")}
"""controller -> the file of its limit, in version 2 and in version 1."""


@contextmanager
def group(controller: str, limit: int) -> Iterator[Path]:
    """A new group with one limit set, removed at the end."""
    version2, version1 = _FILES[controller]
    home, limit_file = _home(controller), version1
    if home is None:
        home, limit_file = _home(None), version2
    if home is None:
        pytest.skip("no control groups here")
    path = home / f"upnextd-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / limit_file).write_text(str(limit))
    except OSError as error:
        with suppress(OSError):
            path.rmdir()
        pytest.skip(f"no {controller} control group can be made here: {error}")
    try:
        yield path
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text().strip(), 10, f"{path} to be empty")
        path.rmdir()


class GroupedDaemon(Daemon):
    """A daemon that starts inside a control group."""

    group: Path

    @property
    def command(self) -> list[str]:
        return ["/bin/sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh", *super().command]


def _home(controller: str | None) -> Path | None:
    """Our own group in version 1's hierarchy of the controller, or (None) in version 2's."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, inside = line.split(":", 2)
        if controller is None and number == "0" and (_ROOT / "cgroup.controllers").exists():
            return _ROOT / inside.strip("/")
        if controller is not None and controller in controllers.split(","):
            return _ROOT / controller / inside.strip("/")
    return None
