"""The hang watch: whose loop doesn't beat is dumped, then aborted; and stacks on demand."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from upnextd.rules import hangs, slots
from upnextd.rules.hangs import Pulse
from upnextd.rules.plan import Role
from upnextd.rules.slots import Event, State
from upnextd.shared import messages
from upnextd.supervisor.children import Child
from upnextd.supervisor.instances import Instance

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor

SCHEDULER_HANG_S = 3.0
TICK_S = 1.0
"""The supervisor looks around this often when nothing happens."""
_LOOK_S = 0.02
_LOOKS = 50
_ANSWER_S = 0.5
_AFTER_S = 0.001


class HangWatch:
    """Looks at heartbeats at every tick, and has stacks written."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._asked = 0
        self._due: asyncio.TimerHandle | None = None
        """The one look that comes before the next tick. One for each child and look would make the next as many again."""

    def check(self, now: float) -> None:
        """Post HUNG and HUNG_ON to whoever doesn't beat."""
        for instance in self._supervisor.instances:
            child = instance.child
            if child is None or child.ready_at is None or instance.life.state not in (*slots.SERVING, State.STOPPING):
                continue
            timeout_s = self._supervisor.settings.hang_timeout_s
            if instance.role is Role.SCHEDULER:
                timeout_s = min(timeout_s, SCHEDULER_HANG_S)
            child.heart, pulse = hangs.look(child.heart, child.page.heartbeat, now, timeout_s)
            self._look_again(hangs.due(child.heart, timeout_s), now)
            if pulse is Pulse.HUNG:
                self._supervisor.post(instance, Event.HUNG)
            elif pulse is Pulse.HUNG_ON:
                self._supervisor.post(instance, Event.HUNG_ON)

    def dump_hung(self, instance: Instance, child: Child) -> None:
        """Its stacks go to the log, and are kept for the records of its jobs."""
        loop = self._supervisor.loop
        age_s = child.heart.age_s(loop.time())
        child.signal(signal.SIGUSR2)
        written: list[str] = []

        def collect(looks: int) -> None:
            new = "" if child.pidfd < 0 else child.new_stacks()
            written.append(new)
            # It writes line by line: done when it has begun and then paused.
            if looks and child.pidfd >= 0 and (new or not any(written)):
                loop.call_later(_LOOK_S, collect, looks - 1)
                return
            stacks = "".join(written)
            child.stacks = stacks or child.stacks
            self._supervisor.log.fault(
                f"{instance.slot}[{child.pid}] hangs: no heartbeat for {age_s:.1f} s\n{stacks.rstrip()}"
            )

        loop.call_later(_LOOK_S, collect, _LOOKS)

    async def stacks(self, child: Child) -> str:
        """A child's stacks now: what its loop says about its tasks, if the loop turns, and what each thread does."""
        self._asked += 1
        number = self._asked
        said = self._supervisor.loop.create_future()
        child.stack_waiters[number] = said
        child.channel.send(messages.DescribeTasks(number=number))
        try:
            async with asyncio.timeout(_ANSWER_S):
                tasks = await said
        except TimeoutError:
            tasks = f"its loop did not answer within {_ANSWER_S:g} s: what its tasks await is not known\n"
        finally:
            child.stack_waiters.pop(number, None)
        return f"{tasks}\n{await self._threads(child)}"

    async def _threads(self, child: Child) -> str:
        if child.pidfd < 0:
            return ""
        child.new_stacks()
        child.signal(signal.SIGUSR2)
        written = ""
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_S)
            new = "" if child.pidfd < 0 else child.new_stacks()
            if written and not new:
                break
            written += new
        return written

    def _look_again(self, due: float | None, now: float) -> None:
        """A hang that is due before the next tick is not left to it."""
        if due is None or not now < due < now + TICK_S:
            return
        if self._due is not None:
            if self._due.when() <= due + _AFTER_S:
                return
            self._due.cancel()
        self._due = self._supervisor.loop.call_at(due + _AFTER_S, self._is_due)

    def _is_due(self) -> None:
        self._due = None
        self.check_now()

    def check_now(self) -> None:
        """Beside the ticks: somebody wants to know, or a hang is due."""
        self._supervisor.forgive_lateness()
        self.check(self._supervisor.loop.time())
