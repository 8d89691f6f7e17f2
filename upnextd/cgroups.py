"""What the kernel counts for our control group, in either version of the interface."""

from __future__ import annotations

import os
from collections.abc import Iterable

_ROOT = "/sys/fs/cgroup"


def oom_kills(proc: str = "/proc/self/cgroup", root: str = _ROOT, vmstat: str = "/proc/vmstat") -> int | None:
    """How many processes the kernel has killed for memory, in our group or, where that isn't counted, on the machine. None: not known."""
    for path in _counters(proc, root):
        count = _field(path, "oom_kill")
        if count is not None:
            return count
    return _field(vmstat, "oom_kill")


def _counters(proc: str, root: str) -> Iterable[str]:
    try:
        with open(proc, encoding="utf-8") as file:
            groups = [line.strip().split(":", 2) for line in file]
    except OSError:
        return
    for number, controllers, path in (group for group in groups if len(group) == 3):
        inside = path.strip("/")
        if number == "0":
            yield os.path.join(root, inside, "memory.events")
        elif "memory" in controllers.split(","):
            # Version 1 counts what died in this very group.
            yield os.path.join(root, "memory", inside, "memory.oom_control")


def _field(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except (OSError, ValueError):
        return None
    return None
