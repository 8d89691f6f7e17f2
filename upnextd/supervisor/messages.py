"""Messages of children, and messages to the scheduler child about the others: which live, which died."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from upnextd.rules import hangs
from upnextd.rules.plan import Role
from upnextd.rules.slots import SERVING, Event, State
from upnextd.shared import identity, messages
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log, now_iso
from upnextd.shared.messages import FromChild
from upnextd.supervisor.children import Child
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.instances import Instance, SchedulerStatus, SlotHistory

CUT_OFF_S = 1.0
"""A child whose channel is closed has so long to be gone: at an ordinary end, the channel goes first."""
CUT_OFF_LEAVE_S = 2.0
"""What an idle child without a channel gets to end by a signal."""
NOTICES_AGAIN_S = 5.0
"""How often notices that are not acknowledged are repeated."""


class ChildMessages:
    """Take in what children send and print; send the scheduler child what it must know."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        describe: Callable[[], dict[str, Any]],
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        state_dir: Path,
        stop_timeout_s: float,
    ) -> None:
        """`describe` makes the status that the scheduler child reports of this daemon."""
        self._fleet = fleet
        self._duties = duties
        self._describe = describe
        self._kernel = kernel
        self._loop = loop
        self._log = log
        self._state_dir = state_dir
        self._stop_timeout_s = stop_timeout_s
        self._sent_alive: tuple[str, ...] | None = None
        self._last_notices = self._loop.time()

    def on_output(self, child: Child, line: str) -> None:
        """Log a line that a child printed."""
        self._log.child_line(child.slot, child.pid, line)
        self._fleet.history.setdefault(child.slot, SlotHistory()).output.add(now_iso(), child.pid, line)
        self._fleet.rollouts.keep_line(child.generation, line)

    def on_message(self, child: Child, message: FromChild | None) -> None:
        """Act on a message of a child; None: its channel is closed."""
        instance = self._fleet.instance_of(child.token)
        if instance is None:
            return
        match message:
            case None:
                self._loop.call_later(CUT_OFF_S, self._cut_off, child)
            case messages.Ready():
                child.secrets = {one.name: one.source for one in message.secrets}
                self._became_ready(instance, child, paused=message.paused)
            case messages.ConsumerNamed():
                self.send_alive_if_changed()
            case messages.DrainBegun() | messages.Drained() if message.number == child.drain_number:
                self._drains(instance, child, is_done=isinstance(message, messages.Drained))
            case messages.Stuck():
                self._is_stuck(instance, message)
            case messages.JobFailed():
                self._duties.emit("job_failed", {"slot": child.slot, "pid": child.pid, **messages.as_json(message)})
            case messages.Reaped():
                self._fleet.pending_notices.acknowledge(message.consumer)
                self._duties.wake()
            case messages.LeaseLost():
                self._route_lost(message.consumer)
            case messages.Renamed():
                self._rename(message.daemon_id)
            case messages.SchedulerReport() if instance.generation == self._fleet.desired.scheduler_generation:
                self._scheduler_reports(message)
            case _:
                _note(child, message, self._describe)

    def _scheduler_reports(self, report: messages.SchedulerReport) -> None:
        if report.connected != self._fleet.scheduler_status.connected:
            self._duties.emit("broker", {"connected": report.connected})
        self._fleet.scheduler_status = SchedulerStatus(report.leader, report.epoch, report.connected, report.suspects)
        self._duties.wake()

    def _drains(self, instance: Instance, child: Child, *, is_done: bool) -> None:
        child.fetches = False
        self._duties.wake()
        if is_done:
            self._duties.post(instance, Event.DRAINED)

    def _is_stuck(self, instance: Instance, job: messages.Stuck) -> None:
        self._log.caution(f"{instance.slot}: job {job.job_id} can't be stopped ({job.reason}): the child is replaced")
        instance.outdated = True
        instance.leave_s = self._stop_timeout_s
        self._duties.wake()

    def _became_ready(self, instance: Instance, child: Child, *, paused: bool) -> None:
        child.ready_at = self._loop.time()
        if (history := self._fleet.history.get(child.slot)) is not None:
            history.start_failure = ""
        child.heart = hangs.Heart(child.page.heartbeat, child.ready_at)
        self._duties.emit("child_ready", {"slot": child.slot, "pid": child.pid, "generation": child.generation})
        self._duties.post(instance, Event.BECAME_READY)
        if paused:
            # It started paused. What is wanted may have changed meanwhile: reconciling compares it with this state.
            self._duties.post(instance, Event.PAUSE)

    def _rename(self, daemon_id: str) -> None:
        """Take another id: another daemon has ours. Children to come, and the next start, go by it."""
        self._log.caution(
            f"another daemon has this one's id ({self._fleet.daemon_id}): its state directory is a copy, or this one is;"
            f" from now on {daemon_id}"
        )
        self._fleet.daemon_id = daemon_id
        try:
            self._kernel.store_id(self._state_dir, daemon_id)
        except OSError as error:
            self._log.fault(f"can't write {self._state_dir / identity.FILE}: {error.strerror or error}")

    def _cut_off(self, child: Child) -> None:
        """Replace a child that lives, but gets no messages any more."""
        instance = self._fleet.instance_of(child.token)
        if instance is None or child.asked:
            return
        if instance.life.state is State.STARTING:
            self._fleet.start_failed(instance, "it closed its channel before it was ready")
            self._log.fault(f"{instance.slot}[{child.pid}] closed its channel before it was ready: killed")
            child.signal(signal.SIGKILL)
        elif instance.life.state is State.DRAINING:
            # It can't answer the drain that is waited for: a signal ends it, once nothing runs.
            self._log.fault(f"{instance.slot}[{child.pid}] closed its channel while it drained: it is ended")
            child.asked = True
            child.signal(signal.SIGTERM)
        elif instance.life.state in SERVING:
            self._log.fault(f"{instance.slot}[{child.pid}] closed its channel and gets no more orders: it is replaced")
            instance.outdated = True
            instance.leave_s = CUT_OFF_LEAVE_S + (self._stop_timeout_s if child.page.busy() else 0.0)
            self._duties.wake()

    def send_alive_if_changed(self) -> None:
        """Send the scheduler which consumers live, if that has changed."""
        alive = self._alive()
        if alive != self._sent_alive:
            self._sent_alive = alive
            for scheduler in self._fleet.children(Role.SCHEDULER):
                scheduler.channel.send(messages.Alive(consumers=alive))

    def send_initial_state(self, scheduler: Child) -> None:
        """Send a new scheduler everything that it must know."""
        scheduler.channel.send(messages.Alive(consumers=self._alive()))
        for death in self._fleet.pending_notices.pending:
            scheduler.channel.send(death)

    def send_notices(self) -> None:
        """Send every scheduler every death that is not settled."""
        self._last_notices = self._loop.time()
        for scheduler in self._fleet.children(Role.SCHEDULER):
            for death in self._fleet.pending_notices.pending:
                scheduler.channel.send(death)

    def repeat_notices(self, now: float) -> None:
        """Send them again after a while, as long as there are any."""
        if self._fleet.pending_notices.pending and now - self._last_notices > NOTICES_AGAIN_S:
            self.send_notices()

    def _route_lost(self, consumer: str) -> None:
        for child in self._fleet.children(Role.WORKER):
            if consumer in child.page.consumers():
                child.channel.send(messages.TakeNewName(consumer=consumer))

    def _alive(self) -> tuple[str, ...]:
        return tuple(name for child in self._fleet.children(Role.WORKER) for name in child.page.consumers() if name)


def _note(child: Child, message: FromChild, describe: Callable[[], dict[str, Any]]) -> None:
    """Keep with the child, or answer, what changes nothing now."""
    match message:
        case messages.Stopped():
            child.abandoned = list(message.abandoned)
        case messages.BootFailed():
            child.boot_failure = (message.code, message.line)
            child.broker_away = message.away
            child.lifespan_failed = message.lifespan
        case messages.TasksDescribed():
            waiter = child.stack_waiters.pop(message.number, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(message.text)
        case messages.AskStatus():
            status = orjson.dumps(describe()).decode()
            child.channel.send(messages.DaemonStatus(number=message.number, status=status))
        case _:
            return
