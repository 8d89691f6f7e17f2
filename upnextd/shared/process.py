"""The few things about Linux processes that the standard library has no word for.

Everything here is called from a process's main thread: PDEATHSIG follows the *thread* that forked.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from upnextd.shared import cgroups

TEMPLATE_FD = 3
"""Where a template finds its end of the line to the supervisor."""
LINE_CLOSED = 117
"""What a process that imports the service ends with when the import closed the descriptors by which it reports."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IGNORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_ADOPTION_POLL_S = 0.0002

_spawned_limit: tuple[int, int] | None = None
"""What spawned processes get for RLIMIT_NOFILE; None: what we have."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: by exit code or by signal, the other is None."""

    code: int | None
    signal: str | None

    @classmethod
    def of(cls, returncode: int) -> Self:
        """From the code as `subprocess` gives it."""
        return cls(returncode, None) if returncode >= 0 else cls(None, _signal_name(-returncode))

    def __str__(self) -> str:
        return f"exit:{self.code}" if self.signal is None else f"signal:{self.signal}"


def why(error: OSError) -> str:
    """In words what the system refused, and which file it was about: `Permission denied: /usr/bin/python3`."""
    text = error.strerror or str(error)
    return text if error.filename is None or error.strerror is None else f"{text}: {os.fsdecode(error.filename)}"


def become_subreaper() -> None:
    """Orphaned descendants are re-parented to this process from now on. Survives exec."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """End this process when its parent ends; at once when `parent_pid` is no longer the parent."""
    _prctl(_PR_SET_PDEATHSIG, int(with_signal))
    if os.getppid() != parent_pid:
        os._exit(0)


def await_adoption(by_pid: int, from_pid: int, within_s: float = 1.0) -> None:
    """Return once `by_pid` is the parent. Ends this process when someone else adopted it or none did in time."""
    deadline = time.monotonic() + within_s
    while (parent := os.getppid()) != by_pid:
        if parent != from_pid or time.monotonic() > deadline:
            os._exit(0)
        time.sleep(_ADOPTION_POLL_S)


def block_signals() -> None:
    """Hold every signal back until `default_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def default_signals() -> None:
    """Every signal to its default and unblocked, save SIGPIPE and SIGXFSZ: at default, a write to a closed socket kills."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        try:
            signal.signal(number, signal.SIG_IGN if number in _IGNORED_SIGNALS else signal.SIG_DFL)
        except (OSError, ValueError):
            # The C library keeps some real-time signals to itself.
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def lift_descriptor_limit(given: int | None = None) -> None:
    """Let this process open as many files as it may: some hundred children need more than the usual 1,024.

    What is spawned keeps the limit that we were given, now or (`given`) before an upgrade.
    """
    global _spawned_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _spawned_limit = soft if given is None else given, hard


def given_descriptor_limit() -> int | None:
    """What we were given at the first start; None: it was not lifted."""
    return None if _spawned_limit is None else _spawned_limit[0]


def spawn(argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
    """Exec `argv` in a session of its own; `fds` maps its descriptors to ours. Everything else of ours is close-on-exec.

    Returns the pid. Raises OSError (EAGAIN, EMFILE, ENOENT …).
    """
    lifted: list[int] = []
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    try:
        # Sources are lifted first, so that no target can overwrite a source.
        lowest = max(fds) + 1
        for target, source in fds.items():
            high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, lowest)
            lifted.append(high)
            actions.append((os.POSIX_SPAWN_DUP2, high, target))
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_IGNORED_SIGNALS,
        )
        if _spawned_limit is not None:
            with suppress(OSError):  # it is gone already
                resource.prlimit(pid, resource.RLIMIT_NOFILE, _spawned_limit)
        return pid
    finally:
        for high in lifted:
            os.close(high)


def python_argv(entry: str, *args: str) -> list[str]:
    """Command line of a fresh interpreter running `entry` ("module:function") without a script folder on its path."""
    module, _, function = entry.partition(":")
    return [sys.executable, "-P", "-c", f"import {module}; {module}.{function}()", *args]


def enter(directory: str) -> None:
    """Make it the working directory; where it is gone, the one that we have stays."""
    with suppress(OSError):
        os.chdir(directory)


def fill_standard_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: what is opened next would get its number, and what is printed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one


def is_other_than_a_socket(path: str) -> bool:
    """Whether a file is there, and it isn't a socket: it must not be removed to make room for one."""
    try:
        return path.startswith("/") and not stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Signal a process by pidfd; one that is gone already is no error."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def reap(pidfd: int) -> ExitStatus | None:
    """Take the exit status of our ended child; None while it lives. Raises ChildProcessError when it is not ours."""
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if info is None:
        return None
    if info.si_code == os.CLD_EXITED:
        return ExitStatus(info.si_status, None)
    return ExitStatus(None, _signal_name(info.si_status))


def is_reaped(pidfd: int) -> bool:
    """Whether a process has ended and its exit status was taken; not so for a zombie, be it our child or another's."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def reap_orphans(ours: set[int]) -> int:
    """Reap ended children that are unknown here: orphans that we adopted. Returns how many; stops at the first of `ours`."""
    reaped = 0
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if info is None or info.si_pid in ours:
            return reaped
        os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
        reaped += 1


def session_members(session: int) -> list[int]:
    """Pids of a session's living processes (zombies are not)."""
    members: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                stat = file.read()
        except OSError:
            continue
        state, _, _, sid = stat[stat.rindex(b")") + 2 :].split(b" ", 4)[:4]
        if int(sid) == session and state not in (b"Z", b"X"):
            members.append(int(name))
    return members


def kill_session(session: int) -> int:
    """SIGKILL to every living process of a session; returns how many there were.

    Only safe while the session's leader is not reaped: its pid, hence the session's number, could be another's afterwards.
    """
    members = session_members(session)
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return len(members)


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; not so for one that is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            mask = next(line for line in file.read().splitlines() if line.startswith(b"SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def pss_bytes(pid: int) -> int:
    """Memory with shared pages divided among their users; 0 when it can't be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
            for line in file.read().splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def usable_cpus() -> int:
    """CPUs this process may use: affinity, bounded by the quotas of its control groups. At least 1."""
    count = len(os.sched_getaffinity(0))
    limit = cgroups.cpus()
    return count if limit is None else min(count, limit)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
