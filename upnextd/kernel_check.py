"""What upnextd needs of the kernel, tried once at the start: sandboxes and old runtimes deny some of it, sysctls, too."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from upnextd.shared import process


def denied() -> str | None:
    """One line that names what is denied, and what may be the reason; None: everything is there."""
    for name, attempt, hint in _needs():
        try:
            attempt()
        except (OSError, AttributeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "this Python was built without it"
            return f"{name} is denied here ({why}): {hint}"
    return None


def _needs() -> Iterable[tuple[str, Callable[[], None], str]]:
    sandbox = "upnextd needs Linux 5.4 or newer, and a sandbox or container runtime (seccomp) that lets it through"
    yield "pidfd_open", _open_pidfd, sandbox
    yield "pidfd_send_signal", _signal_by_pidfd, sandbox
    yield "waitid by pidfd", _wait_by_pidfd, sandbox
    yield "memfd_create", _make_memfd, f"{sandbox}; the sysctl vm.memfd_noexec must not be 2"
    yield "prctl(PR_SET_CHILD_SUBREAPER)", process.become_subreaper, sandbox


def _open_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _signal_by_pidfd() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def _wait_by_pidfd() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        # We are no child of our own: that is the right answer.
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    finally:
        os.close(pidfd)


def _make_memfd() -> None:
    os.close(os.memfd_create("upnextd-try", os.MFD_CLOEXEC))
