"""Finding and ending the processes of a test, whatever their parent is by now."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

# Execs its arguments with a parent-death signal set, so a killed test run leaves no server behind.
# A trampoline, not a preexec_fn: that one is unsafe in a process with threads.
_TRAMPOLINE = (
    "import ctypes, os, sys; parent = int(sys.argv[1]); ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == parent or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


def dies_with_us(command: list[str]) -> list[str]:
    """The command, wrapped so that the kernel kills it when this process ends. Start it from the main thread."""
    return [sys.executable, "-S", "-E", "-c", _TRAMPOLINE, str(os.getpid()), *command]


def processes_in(directory: Path) -> dict[int, str]:
    """pid -> command line of every living process whose working directory is `directory` or below it."""
    inside = str(directory.resolve())
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
            if (cwd == inside or cwd.startswith(inside + "/")) and _alive(int(entry)):
                found[int(entry)] = _command_line(entry)
    found.pop(os.getpid(), None)
    return found


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def _command_line(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def kill_all(pids: dict[int, str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
