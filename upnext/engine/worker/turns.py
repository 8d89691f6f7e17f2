"""Slots for which coroutines stand in line: the states of `upnext.engine.worker.slots`, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic

from upnext.engine.worker.slots import Event, H, Slot, Slots


class Turns(Generic[H]):
    """Belongs to the running loop. `changed` as in `Slots`."""

    def __init__(self, count: int, changed: Callable[[H, Slot, Slot], None]) -> None:
        self.slots: Slots[H] = Slots(count, self._wake)
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._turns: dict[H, asyncio.Future[None]] = {}

    async def come_back(self, holder: H, *, at_once: bool) -> None:
        """Its waits are over: returns when it has a slot, with `at_once` (or when it is cancelled meanwhile) without one."""
        self.slots.move(holder, Event.GO_ON if at_once else Event.RETURN)
        if holder.slot is not Slot.RETURNING:
            return
        turn = self._turns[holder] = self._loop.create_future()
        try:
            await turn
        except asyncio.CancelledError:
            if self._turns.get(holder) is turn:
                self.slots.move(holder, Event.GO_ON)
            raise

    def _wake(self, holder: H, before: Slot, after: Slot) -> None:
        if before is Slot.RETURNING:
            turn = self._turns.pop(holder, None)
            if turn is not None and not turn.done():
                turn.set_result(None)
        self._changed(holder, before, after)
