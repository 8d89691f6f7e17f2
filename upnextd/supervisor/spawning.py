"""How a child comes to be: its descriptors, the order to the template, its pid, the watch on its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upnextd.rules import boot
from upnextd.rules.plan import QUARANTINE, Mode, Role
from upnextd.rules.slots import Event, State
from upnextd.shared.messages import Assignment
from upnextd.supervisor.children import Child
from upnextd.supervisor.generations import Phase
from upnextd.supervisor.instances import Instance, SlotHistory

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor


class Spawner:
    """Forks for instances, and hears from templates what became of it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def fork(self, instance: Instance) -> None:
        """Order a child; FORKED or FORK_FAILED follows."""
        supervisor = self._supervisor
        generation = supervisor.generations.get(instance.generation)
        history = supervisor.history.setdefault(instance.slot, SlotHistory())
        if generation is None or generation.phase is not Phase.READY or generation.retired:
            supervisor.loop.call_soon(supervisor.post, instance, Event.FORK_FAILED)
            return
        try:
            child = Child(
                supervisor.next_id(),
                instance.slot,
                instance.generation,
                history.incarnations + 1,
                generation.shapes,
                supervisor.loop,
                supervisor.messages.on_message,
                supervisor.messages.on_output,
                supervisor.kernel,
            )
        except OSError as error:
            supervisor.log.fault(f"{instance.slot}: can't make a child: {error.strerror or error}")
            supervisor.loop.call_soon(supervisor.post, instance, Event.FORK_FAILED)
            return
        instance.child = child
        if instance.role is Role.SCHEDULER:
            # Queued before it runs: it must know the living before it looks for the dead.
            supervisor.messages.send_initial_state(child)
        ordered = generation.fork(self._assignment(instance, child), child.order_fds)
        child.ordered()
        if not ordered:
            supervisor.loop.call_soon(supervisor.post, instance, Event.FORK_FAILED)
            return
        history.incarnations += 1

    def _assignment(self, instance: Instance, child: Child) -> Assignment:
        supervisor = self._supervisor
        settings = supervisor.settings
        return Assignment(
            token=child.token,
            slot=instance.slot,
            role=str(instance.role),
            quarantine=instance.slot == QUARANTINE,
            generation=instance.generation,
            incarnation=child.incarnation,
            name=settings.name,
            redis_url=settings.redis_url,
            embedded_url=supervisor.broker.url if supervisor.broker is not None else None,
            namespace=settings.namespace,
            daemon_id=supervisor.daemon_id,
            since_ms=supervisor.since_ms,
            since_s=supervisor.since_s,
            generation_ms=supervisor.generations[instance.generation].made_ms,
            provisional=supervisor.reloads.on_trial(instance.generation),
            boot_timeout_s=boot.try_s(
                settings.boot_timeout_s,
                supervisor.waited_s(),
                booted=supervisor.booted,
                first=child.incarnation == 1,
            ),
            metered=settings.metrics is not None,
            stop_timeout_s=settings.stop_timeout_s,
            paused=supervisor.desired.mode is Mode.PAUSE or supervisor.desired.mode.drains,
        )

    def forked(self, token: int, pid: int) -> None:
        """A template reports a pid."""
        instance = self._supervisor.instance_of(token)
        if instance is None or instance.child is None or instance.life.state is State.EXITED:
            # It comes too late: its slot has given it up. Its channel is closed, which ends it, too.
            self._supervisor.kernel.kill(pid)
            return
        instance.child.pid = pid
        self._supervisor.post(instance, Event.FORKED)

    def fork_failed(self, token: int, error: str, *, blameless: bool) -> None:
        instance = self._supervisor.instance_of(token)
        if instance is None or instance.child is None or instance.child.pid is not None:
            # A process that was killed right after it had reported the pid has not failed to fork.
            return
        instance.child.died_in_fork = not blameless
        self._supervisor.log.fault(f"{instance.slot}: can't fork: {error}")
        self._supervisor.post(instance, Event.FORK_FAILED)

    def watch(self, child: Child) -> None:
        """Its end posts GONE."""
        assert child.pid is not None
        supervisor = self._supervisor
        try:
            child.watch(child.pid, self._gone)
        except ProcessLookupError:
            # It ended, and was reaped with the orphans, before its pid was known here.
            supervisor.loop.call_soon(self._gone_unwatched, child)
            return
        except OSError as error:
            supervisor.log.fault(f"{child.slot}: can't watch pid {child.pid}: {error.strerror or error}")
            supervisor.kernel.kill(child.pid)
            child.pid = None
            supervisor.loop.call_soon(self._gone_unwatched, child)
            return
        supervisor.on_event("child_started", {"slot": child.slot, "pid": child.pid, "generation": child.generation})

    def watch_again(self, child: Child) -> None:
        """After an upgrade: its pidfd is open already."""
        child.rewatch(self._gone)

    def _gone(self, child: Child) -> None:
        child.unwatch()
        self._gone_unwatched(child)

    def _gone_unwatched(self, child: Child) -> None:
        instance = self._supervisor.instance_of(child.token)
        if instance is not None:
            self._supervisor.post(instance, Event.GONE)
