"""The hang watch: a child whose heartbeat stops is dumped, then aborted. Also stacks on demand."""

from __future__ import annotations

import asyncio

from upnextd.rules import hangs, slots
from upnextd.rules.hangs import Pulse
from upnextd.rules.plan import Role
from upnextd.rules.slots import Event, State
from upnextd.shared import messages
from upnextd.shared.logs import Log
from upnextd.supervisor.children import Child
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.instances import Instance
from upnextd.supervisor.lateness import TICK_S, Lateness

SCHEDULER_HANG_S = 3.0
_POLL_S = 0.02
_POLLS = 50
_ANSWER_S = 0.5
_AFTER_S = 0.001


def of_job(tasks: str, job_id: str) -> str:
    """Of what a child's tasks await, what belongs to a job. Pure."""
    blocks = [block for block in tasks.split("\n\n") if block.startswith(f"job {job_id} (")]
    return "\n\n".join(blocks) or f"no task of {job_id} waits: see what the threads do\n"


class HangWatch:
    """Read heartbeats at every tick, and have stacks written."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        lateness: Lateness,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        hang_timeout_s: float,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._lateness = lateness
        self._loop = loop
        self._log = log
        self._hang_timeout_s = hang_timeout_s
        self._asked = 0
        self._due: asyncio.TimerHandle | None = None
        """The one check before the next tick. With one for each child, each check would set as many again."""

    def check(self, now: float) -> None:
        """Post HUNG and HUNG_ON for children without a heartbeat."""
        for instance in self._fleet.instances:
            child = instance.child
            if child is None or child.ready_at is None or instance.life.state not in (*slots.SERVING, State.STOPPING):
                continue
            timeout_s = self._hang_timeout_s
            if instance.role is Role.SCHEDULER:
                timeout_s = min(timeout_s, SCHEDULER_HANG_S)
            child.heart, pulse = hangs.look(child.heart, child.page.heartbeat, now, timeout_s)
            self._check_at(hangs.due(child.heart, timeout_s), now)
            if pulse is Pulse.HUNG:
                self._duties.post(instance, Event.HUNG)
            elif pulse is Pulse.HUNG_ON:
                self._duties.post(instance, Event.HUNG_ON)

    def dump_hung(self, instance: Instance, child: Child) -> None:
        """Log the stacks of a child, and keep them for the records of its jobs."""
        loop = self._loop
        age_s = child.heart.age_s(loop.time())
        child.write_stacks()
        written: list[str] = []

        def collect(polls: int) -> None:
            new = "" if child.pidfd < 0 else child.new_stacks()
            written.append(new)
            # It writes line by line: done when it has begun and then paused.
            if polls and child.pidfd >= 0 and (new or not any(written)):
                loop.call_later(_POLL_S, collect, polls - 1)
                return
            stacks = "".join(written)
            child.stacks = stacks or child.stacks
            self._log.fault(f"{instance.slot}[{child.pid}] hangs: no heartbeat for {age_s:.1f} s\n{stacks.rstrip()}")

        loop.call_later(_POLL_S, collect, _POLLS)

    async def stacks(self, child: Child, job_id: str | None = None) -> str:
        """Return a child's stacks: what its tasks await, if its loop answers, and what each thread does.

        job_id: of the tasks only the one of this job.
        """
        self._asked += 1
        number = self._asked
        reply: asyncio.Future[str] = self._loop.create_future()
        child.stack_waiters[number] = reply
        child.channel.send(messages.DescribeTasks(number=number))
        try:
            async with asyncio.timeout(_ANSWER_S):
                tasks = await reply
                if job_id is not None:
                    tasks = of_job(tasks, job_id)
        except TimeoutError:
            tasks = f"its loop did not answer within {_ANSWER_S:g} s: what its tasks await is not known\n"
        finally:
            child.stack_waiters.pop(number, None)
        return f"{tasks}\n{await self._threads(child)}"

    async def _threads(self, child: Child) -> str:
        if child.pidfd < 0:
            return ""
        child.new_stacks()
        if not child.write_stacks():
            return "it has just started: what its threads do can't be seen yet\n"
        written = ""
        for _ in range(_POLLS):
            await asyncio.sleep(_POLL_S)
            new = "" if child.pidfd < 0 else child.new_stacks()
            if written and not new:
                break
            written += new
        return written

    def _check_at(self, due: float | None, now: float) -> None:
        """Set a timer for a hang that is due before the next tick."""
        if due is None or not now < due < now + TICK_S:
            return
        if self._due is not None:
            if self._due.when() <= due + _AFTER_S:
                return
            self._due.cancel()
        self._due = self._loop.call_at(due + _AFTER_S, self._is_due)

    def _is_due(self) -> None:
        self._due = None
        self.check_now()

    def check_now(self) -> None:
        """Check beside the ticks: `status` is asked for, or a hang is due."""
        self._lateness.forgive()
        self.check(self._loop.time())
