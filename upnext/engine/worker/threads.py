"""Threads for plain functions. They are daemon threads, so that one which can't be stopped doesn't keep its process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """As many as are needed at once; how many that may be is the caller's to say. Belongs to the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: list[SimpleQueue[_Work | None]] = []
        self._started = 0
        self._closed = False

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Start `function` at once in a thread of its own. Cancelling the Future doesn't stop it."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._idle:
            todo = self._idle.pop()
        else:
            todo = SimpleQueue[_Work | None]()
            self._started += 1
            name = f"upnext-sync-{self._started}"
            threading.Thread(target=self._main, args=(todo,), name=name, daemon=True).start()
        todo.put((function, future))
        return future

    def close(self) -> None:
        """End the idle threads; a busy one ends with its work."""
        self._closed = True
        for todo in self._idle:
            todo.put(None)
        self._idle.clear()

    def _main(self, todo: SimpleQueue[_Work | None]) -> None:
        while (work := todo.get()) is not None:
            function, future = work
            value, error = None, None
            try:
                value = function()
            except BaseException as caught:  # noqa: BLE001 - the boundary to user code: whatever it raises goes to the waiter
                error = caught
                if isinstance(caught, StopIteration):  # a Future takes none
                    error = RuntimeError("the task raised StopIteration")
                    error.__cause__ = caught
            try:
                self._loop.call_soon_threadsafe(self._done, todo, future, value, error)
            except RuntimeError:  # the loop is closed: nothing waits any more
                return
            del work, function, future, value, error  # an idle thread keeps nothing alive

    def _done(
        self, todo: SimpleQueue[_Work | None], future: asyncio.Future[Any], value: Any, error: BaseException | None
    ) -> None:
        if self._closed:
            todo.put(None)
        else:
            self._idle.append(todo)
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
