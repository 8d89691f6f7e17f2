"""The methods of the control socket. They edit the desired state, and report by an operation how far it is."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import upnext
from upnext.control import protocol
from upnext.control.protocol import ErrorCode
from upnext.control.slot_names import api_slots
from upnextd.control.server import Client, CommandError
from upnextd.control.status import running, status
from upnextd.rules import slots
from upnextd.rules.modes import Request
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import State
from upnextd.settings import Settings
from upnextd.shared.logs import now_iso
from upnextd.supervisor.companions import Companions
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.hang_watch import HangWatch
from upnextd.supervisor.instances import Instance, SlotHistory, oldest_jobs
from upnextd.supervisor.operations import Operation, Progress
from upnextd.supervisor.reloads import Reloads
from upnextd.supervisor.requests import Requests

_Answer = dict[str, Any]


class ControlCommands:
    """Answer requests. What a mutation does to the mode, and when it is refused, is `upnextd.rules.modes`' table."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        duties: Duties,
        requests: Requests,
        reloads: Reloads,
        companions: Companions,
        hang_watch: HangWatch,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._duties = duties
        self._requests = requests
        self._reloads = reloads
        self._companions = companions
        self._hang_watch = hang_watch
        self._clock = clock
        self._subscribers: set[Client] = set()
        self._methods: dict[str, Callable[[dict[str, Any], Client], _Answer | Awaitable[_Answer]]] = {
            "hello": self._hello,
            "status": self._status,
            "running": self._running,
            "metrics": self._metrics,
            "subscribe": self._subscribe,
            "wait": self._wait,
            "drain": self._drain,
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop,
            "restart": self._restart,
            "reload": self._reload,
            "scale": self._scale,
            "dump": self._dump,
            "stacks": self._stacks,
        }

    def answer(self, request: protocol.Request, params: dict[str, Any], client: Client) -> _Answer | Awaitable[_Answer]:
        return self._methods[request.method](params, client)

    def client_left(self, client: Client) -> None:
        self._subscribers.discard(client)

    def subscribe(self, client: Client) -> None:
        """Send it every event from now on."""
        self._subscribers.add(client)

    def subscribed(self, client: Client) -> bool:
        return client in self._subscribers

    def publish(self, kind: str, fields: dict[str, Any]) -> None:
        """Send an event to every subscriber."""
        for client in tuple(self._subscribers):
            client.send(protocol.event(kind, now_iso(), **fields))

    # -- reading --

    def _hello(self, _params: dict[str, Any], _client: Client) -> _Answer:
        return {
            "protocol": protocol.PROTOCOL,
            "version": upnext.__version__,
            "name": self._settings.name,
            "pid": os.getpid(),
        }

    def _status(self, _params: dict[str, Any], _client: Client) -> _Answer:
        self._hang_watch.check_now()
        return self._full_status(pss=True)

    def describe(self) -> _Answer:
        """Return the status without what takes the kernel long, with what happened lately: a scheduler reports it."""
        return {**self._full_status(pss=False), "activity": self._fleet.activity.as_json()}

    def _full_status(self, *, pss: bool) -> _Answer:
        return status(self._settings, self._fleet, self._companions.beside, self._clock(), pss=pss)

    def _running(self, params: dict[str, Any], _client: Client) -> _Answer:
        if params["slot"] is not None:
            self._slot(params["slot"])
        return running(self._fleet, params["slot"], params["offset"], self._clock())

    def _metrics(self, _params: dict[str, Any], _client: Client) -> _Answer:
        workers, apis = (self._fleet.children(role) for role in (Role.WORKER, Role.API))
        return self._fleet.counters.as_json((one.page.meters() for one in workers), (one.page.meters() for one in apis))

    def _subscribe(self, _params: dict[str, Any], client: Client) -> _Answer:
        self.subscribe(client)
        return {}

    async def _wait(self, params: dict[str, Any], client: Client) -> _Answer:
        operation = self._fleet.operations.find(params["op_id"])
        if operation is None:
            raise CommandError(ErrorCode.NO_SUCH_OPERATION, f"no operation {params['op_id']!r}")

        def send(changed: Operation) -> None:
            now = changed.progress
            client.send(protocol.progress(changed.op_id, now.text, done=now.done, ok=now.ok))

        operation.check()
        if operation.progress.text:
            send(operation)
        operation.watchers.add(send)
        try:
            await operation.ended.wait()
        finally:
            operation.watchers.discard(send)
        end = operation.progress
        return {"op_id": operation.op_id, "ok": end.ok, "text": end.text, "data": end.data}

    async def _dump(self, params: dict[str, Any], _client: Client) -> _Answer:
        instance = self._slot(params["slot"])
        if params.get("output"):
            pid = instance.child.pid if instance.child is not None else None
            history = self._fleet.history.get(instance.slot, SlotHistory())
            return {"slot": instance.slot, "pid": pid, "lines": history.output.as_json()}
        if instance.child is None or instance.child.pidfd < 0:
            raise CommandError(ErrorCode.FAILED, f"{instance.slot} has no process now ({instance.life.state.name})")
        pid = instance.child.pid
        return {"slot": instance.slot, "pid": pid, "stacks": await self._hang_watch.stacks(instance.child)}

    async def _stacks(self, params: dict[str, Any], _client: Client) -> _Answer:
        job_id: str = params["job_id"]
        now = self._clock()
        for instance in self._fleet.instances:
            child = instance.child
            if (
                child is not None
                and child.pidfd >= 0
                and any(job.job_id == job_id for jobs in child.page.running(now) for job in jobs)
            ):
                pid, stacks = child.pid, await self._hang_watch.stacks(child, job_id)
                return {"job_id": job_id, "slot": instance.slot, "pid": pid, "stacks": stacks}
        raise CommandError(ErrorCode.FAILED, f"job {job_id} does not run in a process of this daemon")

    # -- modes --

    def _drain(self, params: dict[str, Any], _client: Client) -> _Answer:
        if self._fleet.rollouts.under_way:
            raise CommandError(
                ErrorCode.CONFLICT, "a reload is under way: wait for its end, or end it by `reload --abort`; then drain"
            )
        self._ask(Request.DRAIN_EXIT if params["exit"] else Request.DRAIN)

        def check() -> Progress:
            if not self._fleet.drained():
                return Progress(self._running_text())
            ends = self._fleet.desired.mode is Mode.DRAIN_EXIT
            return Progress("drained; the daemon ends" if ends else "drained", done=True)

        return self._begin(f"drain {params['exit']}", check)

    def _pause(self, _params: dict[str, Any], _client: Client) -> _Answer:
        self._ask(Request.PAUSE)
        return self._begin("pause", lambda: self._all_workers("paused", State.PAUSED, State.DRAINING, *slots.VACANT))

    def _resume(self, _params: dict[str, Any], _client: Client) -> _Answer:
        self._ask(Request.RESUME)
        return self._begin("resume", lambda: self._all_workers("running", State.READY))

    def _ask(self, request: Request) -> None:
        """Raises CommandError CONFLICT when the table refuses it."""
        refusal = self._requests.ask(request)
        if refusal is not None:
            raise CommandError(ErrorCode.CONFLICT, refusal)

    def _all_workers(self, text: str, *states: State) -> Progress:
        workers = self._fleet.workers
        there = sum(instance.life.state in states for instance in workers)
        done = there == len(workers)
        return Progress(text if done else f"{there} of {len(workers)} workers {text}", done=done)

    def _stop(self, params: dict[str, Any], _client: Client) -> _Answer:
        self._ask(Request.STOP_NOW if params["now"] else Request.STOP)
        return self._begin("stop", lambda: Progress(f"stopping; {self._running_text()}"))

    # -- numbers --

    def _scale(self, params: dict[str, Any], _client: Client) -> _Answer:
        workers = params["workers"]
        self._ask(Request.SCALE)
        self._requests.scale(workers, "scale")

        def check() -> Progress:
            ready, there = self._fleet.ready_workers(), len(self._fleet.workers)
            # None where the service declares no Workers.
            wanted = len(self._fleet.desired.worker_slots)
            return Progress(
                f"{ready} of {wanted} workers ready" + (f", {there - wanted} leaving" if there > wanted else ""),
                done=ready == wanted == there,
            )

        return self._begin(f"scale {workers}", check)

    def _restart(self, params: dict[str, Any], _client: Client) -> _Answer:
        slot = params["slot"]
        instances = [self._slot(slot)] if slot is not None else [s for s in self._fleet.serving if s.leave_by is None]
        self._ask(Request.RESTART)
        self._requests.restart(slot, {instance.slot: instance.id for instance in instances})
        ids = {instance.id for instance in instances}

        def check() -> Progress:
            left = [instance for instance in self._fleet.instances if instance.id in ids]
            serving = [s for s in self._fleet.instances if s.life.state in slots.SERVING]
            fine = {instance.slot for instance in serving if not self._fleet.is_outdated(instance)}
            # A slot that is scaled away meanwhile is not waited for.
            desired = self._fleet.desired
            wanted = ("scheduler", *desired.worker_slots, *api_slots(desired.apis))
            done = not left and all(instance.slot in fine or instance.slot not in wanted for instance in instances)
            return Progress("restarted" if done else f"{len(ids) - len(left)} of {len(instances)} restarted", done=done)

        return self._begin(f"restart {slot}", check)

    def _reload(self, params: dict[str, Any], _client: Client) -> _Answer:
        if params["abort"]:
            return self._abort_reload()
        self._ask(Request.RELOAD)
        rollout = self._reloads.begin()
        return self._begin(f"reload {rollout.generation}", lambda: self._reloads.progress(rollout))

    def _abort_reload(self) -> _Answer:
        self._ask(Request.ABORT_RELOAD)
        if not self._fleet.rollouts.under_way:
            raise CommandError(ErrorCode.CONFLICT, "no reload is under way")
        self._reloads.abort("aborted by an operator")
        serving = self._fleet.desired.generation
        return self._begin("reload abort", lambda: Progress(f"aborted: generation {serving} goes on", done=True))

    # -- shared --

    def _begin(self, key: str, check: Callable[[], Progress]) -> _Answer:
        operation = self._fleet.operations.begin(key, check)
        self._duties.wake()
        return {"op_id": operation.op_id}

    def _slot(self, slot: str) -> Instance:
        """Return the instance of a slot that stays. Raises CommandError NO_SUCH_SLOT."""
        instances = [instance for instance in self._fleet.instances if instance.leave_by is None]
        for instance in instances:
            if instance.slot == slot and not self._fleet.is_outdated(instance):
                return instance
        for instance in instances:
            if instance.slot == slot:
                return instance
        known = ", ".join(sorted({instance.slot for instance in instances}))
        raise CommandError(ErrorCode.NO_SUCH_SLOT, f"no slot {slot!r}; there are: {known}")

    def _running_text(self) -> str:
        return oldest_jobs(self._fleet.instances, self._clock())
