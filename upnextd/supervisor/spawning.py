"""Start children: make their descriptors, order the fork, take the pid in, watch for the end."""

from __future__ import annotations

import asyncio
from typing import Any

from upnextd.rules.plan import QUARANTINE, Mode, Role
from upnextd.rules.slots import Event, State
from upnextd.settings import Settings
from upnextd.shared import api_meters, process
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.shared.messages import Assignment, DeclaredApi
from upnextd.supervisor.boot_wait import BootWait
from upnextd.supervisor.children import Child
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.instances import Instance, SlotHistory
from upnextd.supervisor.messages import ChildMessages


class Spawner:
    """Fork for instances, and post what the templates report of it."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        settings: Settings,
        messages: ChildMessages,
        boot_wait: BootWait,
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._settings = settings
        self._messages = messages
        self._boot_wait = boot_wait
        self._kernel = kernel
        self._loop = loop
        self._log = log

    def fork(self, instance: Instance) -> None:
        """Order a child; FORKED or FORK_FAILED follows."""
        generation = self._fleet.template(instance.generation)
        history = self._fleet.history.setdefault(instance.slot, SlotHistory())
        if generation is None:
            self._loop.call_soon(self._duties.post, instance, Event.FORK_FAILED)
            return
        api = self._api(instance)
        try:
            child = Child(
                self._fleet.next_id(),
                instance.slot,
                instance.generation,
                history.incarnations + 1,
                generation.shapes if api is None else [api_meters.shape(api.name, api.routes)],
                self._loop,
                self._messages.on_message,
                self._messages.on_output,
                self._kernel,
            )
        except OSError as error:
            self._log.fault(f"{instance.slot}: can't make a child: {process.why(error)}")
            self._loop.call_soon(self._duties.post, instance, Event.FORK_FAILED)
            return
        instance.child = child
        if instance.role is Role.SCHEDULER:
            # Queued before it runs: it must know the living before it looks for the dead.
            self._messages.send_initial_state(child)
        listener = [] if api is None else [self._fleet.listeners.descriptor(api)]
        ordered = generation.fork(self._assignment(instance, child, api), [*child.order_fds, *listener])
        child.ordered()
        if not ordered:
            self._loop.call_soon(self._duties.post, instance, Event.FORK_FAILED)
            return
        history.incarnations += 1

    def _assignment(self, instance: Instance, child: Child, api: DeclaredApi | None) -> Assignment:
        settings = self._settings
        return Assignment(
            token=child.token,
            slot=instance.slot,
            role=str(instance.role),
            quarantine=instance.slot == QUARANTINE,
            generation=instance.generation,
            incarnation=child.incarnation,
            name=settings.name,
            redis_url=settings.redis_url,
            embedded_url=self._fleet.broker.url if self._fleet.broker is not None else None,
            namespace=settings.namespace,
            daemon_id=self._fleet.daemon_id,
            since_ms=self._fleet.since_ms,
            since_s=self._fleet.since_s,
            generation_ms=self._fleet.generations[instance.generation].made_ms,
            provisional=self._fleet.rollouts.on_trial(instance.generation),
            boot_timeout_s=self._boot_wait.try_s(first=child.incarnation == 1),
            metered=settings.metrics is not None,
            stop_timeout_s=settings.stop_timeout_s,
            paused=self._starts_paused(instance),
            api="" if api is None else api.name,
            routes=() if api is None else api.routes,
        )

    def _api(self, instance: Instance) -> DeclaredApi | None:
        return self._fleet.api(instance.generation, instance.slot) if instance.role is Role.API else None

    def _starts_paused(self, instance: Instance) -> bool:
        desired = self._fleet.desired
        if instance.role is Role.API:
            # It takes connections when it is ordered to: until then it is known to take none.
            return True
        return desired.mode is Mode.PAUSE or desired.mode.drains

    def forked(self, token: int, pid: int) -> None:
        """Take in the pid that a template reports."""
        instance = self._fleet.instance_of(token)
        if instance is None or instance.child is None or instance.life.state is State.EXITED:
            # It comes too late: its slot has given it up. Its channel is closed, which ends it, too.
            self._kernel.kill(pid)
            return
        instance.child.pid = pid
        self._duties.post(instance, Event.FORKED)

    def fork_failed(self, token: int, error: str, *, blameless: bool) -> None:
        instance = self._fleet.instance_of(token)
        if instance is None or instance.child is None or instance.child.pid is not None:
            # A process that was killed right after it had reported the pid has not failed to fork.
            return
        instance.child.died_in_fork = not blameless
        self._fleet.start_failed(instance, f"can't fork: {error}")
        self._log.fault(f"{instance.slot}: can't fork: {error}")
        self._duties.post(instance, Event.FORK_FAILED)

    def watch(self, child: Child) -> None:
        """Open its pidfd; its end posts GONE."""
        assert child.pid is not None
        try:
            child.watch(child.pid, self._gone)
        except ProcessLookupError:
            # It ended, and was reaped with the orphans, before its pid was known here.
            self._loop.call_soon(self._gone_unwatched, child)
            return
        except OSError as error:
            self._log.fault(f"{child.slot}: can't watch pid {child.pid}: {error.strerror or error}")
            self._kernel.kill(child.pid)
            child.pid = None
            self._loop.call_soon(self._gone_unwatched, child)
            return
        self._duties.emit("child_started", {"slot": child.slot, "pid": child.pid, "generation": child.generation})

    def resume(self, instance: Instance, state: dict[str, Any]) -> None:
        """Take a child over after an upgrade: its pidfd is open already."""
        instance.child = Child.from_state(
            state, self._loop, self._messages.on_message, self._messages.on_output, self._kernel
        )
        instance.child.rewatch(self._gone)

    def _gone(self, child: Child) -> None:
        child.unwatch()
        self._gone_unwatched(child)

    def _gone_unwatched(self, child: Child) -> None:
        instance = self._fleet.instance_of(child.token)
        if instance is not None:
            self._duties.post(instance, Event.GONE)
