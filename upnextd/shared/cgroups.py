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


def cpus(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> int | None:
    """How many CPUs our control group and every one above it let us use at once, rounded up; None: no limit is known."""
    limits = [
        limit
        for controllers, path in _groups(proc)
        for place in _up(_mounts(root, controllers, "cpu"), path)
        if (limit := _quota(place)) is not None
    ]
    return min(limits, default=None)


def _quota(place: str) -> int | None:
    """Version 2 has both numbers in one file, version 1 a file for each."""
    try:
        with open(os.path.join(place, "cpu.max"), encoding="utf-8") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open(os.path.join(place, "cpu.cfs_quota_us"), encoding="utf-8") as file:
                quota = file.read().strip()
            with open(os.path.join(place, "cpu.cfs_period_us"), encoding="utf-8") as file:
                period = file.read().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:
        # "max", or -1.
        return None
    return max(1, -(-int(quota) // int(period)))


def _mounts(root: str, controllers: str, wanted: str) -> list[str]:
    """Where the groups of this line of /proc/PID/cgroup are."""
    if not controllers:
        return [root, os.path.join(root, "unified")]
    if wanted not in controllers.split(","):
        return []
    return [os.path.join(root, wanted), os.path.join(root, controllers)]


def _up(mounts: Iterable[str], path: str) -> Iterable[str]:
    """A group and all above it. In a container, the path may be the host's, and only the root be there."""
    for mount in mounts:
        inside = path.strip("/")
        while inside:
            yield os.path.join(mount, inside)
            inside = os.path.dirname(inside)
        yield mount


def _groups(proc: str) -> list[tuple[str, str]]:
    """(controllers, path) of each line; no controllers: version 2."""
    try:
        with open(proc, encoding="utf-8") as file:
            groups = [line.strip().split(":", 2) for line in file]
    except OSError:
        return []
    return [(controllers, path) for _, controllers, path in (group for group in groups if len(group) == 3)]


def _counters(proc: str, root: str) -> Iterable[str]:
    for controllers, path in _groups(proc):
        inside = path.strip("/")
        if not controllers:
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
