"""A lifespan: what is set up in a process before its first job or request, and taken down after the last one.

It is entered and left by one task of its own: task groups and cancel scopes inside it demand that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from upnext.core.spec import OpenLifespan
from upnext.engine.contexts import shared_task
from upnext.engine.worker.failures import text_of, type_name
from upnext.errors import LifespanError

log = logging.getLogger("upnext.worker")

ENTER_S = 30.0
"""What it may take until it yields; well below the time in which a child of the daemon has to be ready."""
LEAVE_S = 8.0
"""What it may take after its yield; below what the daemon gives a drained child to end by itself."""
CUT_S = 1.0
"""The same where the process is to end at once."""


class Lifespan:
    """One life of it, in the running loop. `what` names its owner in messages: "worker 'orders'"."""

    def __init__(self, what: str, opens: OpenLifespan | None) -> None:
        self._what, self._opens = what, opens
        self._leaving = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def enter(self) -> Any:
        """-> what it yields, None where there is no lifespan. Raises LifespanError when it fails or takes over ENTER_S."""
        if self._opens is None:
            return None
        entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._life = shared_task(self._live(self._opens, entered), "upnext-lifespan")
        try:
            done, _ = await asyncio.wait([entered, self._life], timeout=ENTER_S, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._cut()
            raise
        if entered.done():
            return entered.result()
        if not done:
            await self._cut()
            raise LifespanError(f"{self._what}: its lifespan did not yield within {ENTER_S:g} s")
        self._life.result()
        raise LifespanError(f"{self._what}: its lifespan was cancelled before it yielded")

    async def broken(self) -> None:
        """Return once it is left. Raises LifespanError when it ended by itself: a task group in it failed, say."""
        if self._life is None:
            return
        await asyncio.wait([self._life])
        if self._leaving.is_set():
            return
        self._life.result()
        raise LifespanError(f"{self._what}: its lifespan ended by itself")

    async def leave(self, *, cut: bool = False) -> None:
        """Run what comes after its yield, LEAVE_S at most, CUT_S with `cut`; a failure of that is logged."""
        if self._life is None:
            return
        ended_before = self._life.done()
        self._leaving.set()
        limit_s = CUT_S if cut else LEAVE_S
        await asyncio.wait([self._life], timeout=limit_s)
        if not self._life.done():
            log.error("%s: its lifespan did not end within %g s of its last job", self._what, limit_s)
            await self._cut()
        elif not ended_before and not self._life.cancelled() and (error := self._life.exception()) is not None:
            log.error("%s", error, exc_info=error.__cause__)

    async def _cut(self) -> None:
        assert self._life is not None
        self._life.cancel()
        await asyncio.wait([self._life], timeout=CUT_S)
        if self._life.done() and not self._life.cancelled():
            self._life.exception()

    async def _live(self, opens: OpenLifespan, entered: asyncio.Future[Any]) -> None:
        """Raise LifespanError for whatever it raises, so that a SystemExit of it ends no loop."""
        try:
            async with opens() as state:
                entered.set_result(state)
                await self._leaving.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the boundary to user code: whatever it raises says why there is no lifespan
            raise LifespanError(self._line(error, yielded=entered.done())) from error

    def _line(self, error: BaseException, *, yielded: bool) -> str:
        text = text_of(error)
        if isinstance(error, RuntimeError) and text == "generator didn't yield":
            return f"{self._what}: its lifespan never yields"
        if isinstance(error, RuntimeError) and text == "generator didn't stop":
            return f"{self._what}: its lifespan yields twice"
        when = "failed" if not yielded else "failed at its end" if self._leaving.is_set() else "failed while jobs ran"
        return f"{self._what}: its lifespan {when}: {type_name(error)}: {text}"
