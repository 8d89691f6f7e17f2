"""A lifespan in a process that has no event loop of its own: a pool process, whose main thread runs plain functions."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from upnext.core.spec import OpenLifespan
from upnext.engine.worker.lifespan import Lifespan


class LifespanThread:
    """Enters it on a loop of a thread, which goes on while jobs run, and leaves it there."""

    def __init__(self, what: str, opens: OpenLifespan | None) -> None:
        self._what, self._opens = what, opens
        self._entered = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Event | None = None
        self._state: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="upnext-lifespan", daemon=True)

    def enter(self) -> Any:
        """-> what it yields; None, and no thread, where there is none. Raises LifespanError."""
        if self._opens is None:
            return None
        self._thread.start()
        self._entered.wait()
        if self._error is not None:
            raise self._error
        return self._state

    def leave(self) -> None:
        """Run what comes after its yield."""
        if self._loop is None or self._leaving is None:
            return
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()

    def _main(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        lifespan = Lifespan(self._what, self._opens)
        leaving = asyncio.Event()
        try:
            self._state = await lifespan.enter()
            self._loop, self._leaving = asyncio.get_running_loop(), leaving
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits for it
            self._error = error
            return
        finally:
            self._entered.set()
        await leaving.wait()
        await lifespan.leave()
