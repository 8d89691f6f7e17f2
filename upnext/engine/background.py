"""Owns background tasks: each is kept until it is done, its failure is logged, and the owner ends with none of them left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from upnext.engine.contexts import shared_task

log = logging.getLogger("upnext.engine")

T = TypeVar("T")


class BackgroundTasks:
    """Belongs to one loop. The tasks run in no job's context."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Begin `work`; nothing has to await the task. `name` tells it from the owner's others."""
        task = shared_task(work, name or self._name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %r", task.get_name(), error, exc_info=error)

    async def finished(self) -> None:
        """Return when all are done."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Cancel those that are left, and wait for their end."""
        for task in list(self._tasks):
            task.cancel()
        await self.finished()
