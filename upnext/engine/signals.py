"""Signals that an event loop answers, for its own process alone.

A process that a job forks (by multiprocessing, say) inherits the handlers and the descriptor that wakes the loop: what is sent to it
would be answered here, and not there. So at every fork they are left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_answered: set[int] = set()
_before = threading.local()


def answer(loop: asyncio.AbstractEventLoop, number: int, callback: Callable[..., object], *args: Any) -> None:
    """As `loop.add_signal_handler`."""
    _answered.add(number)
    loop.add_signal_handler(number, callback, *args)


def ignore(loop: asyncio.AbstractEventLoop, number: int) -> None:
    """As `loop.remove_signal_handler`."""
    loop.remove_signal_handler(number)
    _answered.discard(number)


def _hold() -> None:
    # A new process may get its first signal before it ran a line.
    _before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _answered)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before.mask)


def _leave_behind() -> None:
    if _answered:
        signal.set_wakeup_fd(-1)
        for number in _answered:
            signal.signal(number, signal.SIG_DFL)
        _answered.clear()
    _release()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_leave_behind)
