"""The timeouts of the attempts that run: one timer of the loop for all of them, set to the next."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from upnext.core.deadlines import Deadlines
from upnext.engine.attempt import Attempt


class AttemptDeadlines:
    """Belongs to the running loop. Calls `timed_out(attempt)` when an attempt's timeout has passed, in `context`."""

    def __init__(self, timed_out: Callable[[Attempt], None], context: contextvars.Context) -> None:
        self._timed_out, self._context = timed_out, context
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines[int] = Deadlines()
        self._attempts: dict[int, Attempt] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def start(self, attempt: Attempt) -> None:
        """Count the attempt's timeout from now on."""
        timeout_s = attempt.options.timeout_s
        if timeout_s is not None and not attempt.timed_out:
            self._attempts[id(attempt)] = attempt
            self._deadlines.add(id(attempt), self._loop.time() + timeout_s)
            self._set_timer()

    def stop(self, attempt: Attempt) -> None:
        """Count it no more; of no effect for one that doesn't count."""
        if self._attempts.pop(id(attempt), None) is not None:
            self._deadlines.discard(id(attempt))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        at = self._deadlines.next_at()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._expire, context=self._context.copy())

    def _expire(self) -> None:
        self._timer = None
        for key in self._deadlines.expired(self._loop.time()):
            attempt = self._attempts.pop(key, None)
            if attempt is not None:
                self._timed_out(attempt)
        self._set_timer()
