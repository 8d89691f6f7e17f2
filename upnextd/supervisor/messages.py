"""What children say, and what the scheduler child is told of the others: who lives, who died."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from upnextd.rules import hangs
from upnextd.rules.plan import Role
from upnextd.rules.slots import SERVING, Event, State
from upnextd.shared import messages
from upnextd.shared.messages import FromChild
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import PendingDeathNotices
from upnextd.supervisor.instances import Instance, SchedulerStatus

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor

CUT_OFF_S = 1.0
"""A child whose channel is closed has so long to be gone: at an ordinary end, the channel goes first."""
CUT_OFF_LEAVE_S = 2.0
"""What an idle child without a channel gets to end by a signal."""
NOTICES_AGAIN_S = 5.0
"""How often notices that are not acknowledged are repeated."""


class ChildMessages:
    """The supervisor's ear and mouth. `ledger` holds the deaths that no scheduler has settled yet."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.pending_notices = PendingDeathNotices()
        self._supervisor = supervisor
        self._told_alive: tuple[str, ...] | None = None
        self._last_notices = supervisor.loop.time()

    def on_output(self, child: Child, line: str) -> None:
        """A child printed this."""
        self._supervisor.log.child_line(child.slot, child.pid, line)
        self._supervisor.reloads.overhear(child.generation, line)

    def on_message(self, child: Child, message: FromChild | None) -> None:
        """A child sent this; None: its channel is closed."""
        supervisor = self._supervisor
        instance = supervisor.instance_of(child.token)
        if instance is None:
            return
        match message:
            case None:
                supervisor.loop.call_later(CUT_OFF_S, self._cut_off, child)
            case messages.Ready():
                child.secrets = {one.name: one.source for one in message.secrets}
                self._became_ready(instance, child, paused=message.paused)
            case messages.ConsumerNamed():
                self.tell_alive()
            case messages.Drained() if message.number == child.drain_number:
                supervisor.post(instance, Event.DRAINED)
            case messages.Stuck():
                supervisor.log.caution(
                    f"{instance.slot}: job {message.job_id} can't be stopped ({message.reason}): the child is replaced"
                )
                instance.outdated = True
                instance.leave_s = supervisor.settings.stop_timeout_s
                supervisor.wake()
            case messages.JobFailed():
                supervisor.on_event("job_failed", {"slot": child.slot, "pid": child.pid, **messages.as_json(message)})
            case messages.Reaped():
                self.pending_notices.acknowledge(message.consumer)
                supervisor.wake()
            case messages.LeaseLost():
                self._route_lost(message.consumer)
            case messages.Renamed():
                supervisor.rename(message.daemon_id)
            case messages.SchedulerReport() if instance.generation == supervisor.desired.scheduler_generation:
                supervisor.scheduler_status = SchedulerStatus(
                    message.leader, message.epoch, message.connected, message.suspects
                )
                supervisor.wake()
            case _:
                _note(child, message, supervisor.describe)

    def _became_ready(self, instance: Instance, child: Child, *, paused: bool) -> None:
        supervisor = self._supervisor
        child.ready_at = supervisor.loop.time()
        child.heart = hangs.Heart(child.page.heartbeat, child.ready_at)
        supervisor.on_event("child_ready", {"slot": child.slot, "pid": child.pid, "generation": child.generation})
        supervisor.post(instance, Event.BECAME_READY)
        if paused:
            # Born so. What is wanted may have changed meanwhile, which is seen by its state.
            supervisor.post(instance, Event.PAUSE)

    def _cut_off(self, child: Child) -> None:
        """It lives, but nothing can be said to it any more: it is replaced."""
        supervisor = self._supervisor
        instance = supervisor.instance_of(child.token)
        if instance is None or child.asked:
            return
        if instance.life.state is State.STARTING:
            supervisor.log.fault(f"{instance.slot}[{child.pid}] closed its channel before it was ready: killed")
            child.signal(signal.SIGKILL)
        elif instance.life.state is State.DRAINING:
            # It can't answer the drain that is waited for: a signal ends it, once nothing runs.
            supervisor.log.fault(f"{instance.slot}[{child.pid}] closed its channel while it drained: it is ended")
            child.asked = True
            child.signal(signal.SIGTERM)
        elif instance.life.state in SERVING:
            supervisor.log.fault(
                f"{instance.slot}[{child.pid}] closed its channel and can't be steered: it is replaced"
            )
            instance.outdated = True
            instance.leave_s = CUT_OFF_LEAVE_S + (supervisor.settings.stop_timeout_s if child.page.busy() else 0.0)
            supervisor.wake()

    def tell_alive(self) -> None:
        """Tell the scheduler who lives, when that changed."""
        alive = self._alive()
        if alive != self._told_alive:
            self._told_alive = alive
            for scheduler in self._supervisor.children(Role.SCHEDULER):
                scheduler.channel.send(messages.Alive(consumers=alive))

    def send_initial_state(self, scheduler: Child) -> None:
        """Everything that a scheduler must know."""
        scheduler.channel.send(messages.Alive(consumers=self._alive()))
        for death in self.pending_notices.pending:
            scheduler.channel.send(death)

    def tell_notices(self) -> None:
        """Tell every scheduler of every death that is not settled."""
        self._last_notices = self._supervisor.loop.time()
        for scheduler in self._supervisor.children(Role.SCHEDULER):
            for death in self.pending_notices.pending:
                scheduler.channel.send(death)

    def repeat_notices(self, now: float) -> None:
        """Once in a while, as long as there are any."""
        if self.pending_notices.pending and now - self._last_notices > NOTICES_AGAIN_S:
            self.tell_notices()

    def _route_lost(self, consumer: str) -> None:
        for child in self._supervisor.children(Role.WORKER):
            if consumer in child.page.consumers():
                child.channel.send(messages.TakeNewName(consumer=consumer))

    def _alive(self) -> tuple[str, ...]:
        return tuple(
            name for child in self._supervisor.children(Role.WORKER) for name in child.page.consumers() if name
        )


def _note(child: Child, message: FromChild, describe: Callable[[], dict[str, Any]]) -> None:
    """What is kept with the child, or answered, and changes nothing now."""
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
