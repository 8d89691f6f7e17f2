"""The supervisor: an event loop around the pure core (`slots`, `plan`, `hangs`). It runs no user code, has no Redis and no threads.

Everything that happens becomes an event posted to an instance; the instance's table says what follows, and an actor does it. Commands and
signals only edit `desired`; `_reconcile` closes the gap, after every change and at every tick.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import upnext
from upnext.control.exits import ExitCode
from upnext.core.counted import counted
from upnextd.rules import plan, slots
from upnextd.rules.modes import Request
from upnextd.rules.plan import Desired, Mode, Role
from upnextd.rules.slots import Action, Event, Life, State
from upnextd.settings import Settings
from upnextd.shared import messages
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.supervisor import upgrade
from upnextd.supervisor.activity import Activity
from upnextd.supervisor.boot_wait import BootWait
from upnextd.supervisor.broker_watch import BrokerWatch
from upnextd.supervisor.children import Child
from upnextd.supervisor.companions import Companions
from upnextd.supervisor.exits import ExitHandler
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.hang_watch import HangWatch
from upnextd.supervisor.instances import Instance
from upnextd.supervisor.lateness import TICK_S, Lateness
from upnextd.supervisor.listeners import Listeners, address_of
from upnextd.supervisor.messages import ChildMessages
from upnextd.supervisor.operations import Progress
from upnextd.supervisor.recycling import Recycling
from upnextd.supervisor.reloads import Reloads
from upnextd.supervisor.requests import Requests
from upnextd.supervisor.silent_apis import SilentApis
from upnextd.supervisor.spawning import Spawner
from upnextd.supervisor.systemd import Notifier
from upnextd.supervisor.templates import Templates

LAST_NOTICES_S = 2.0
"""How long a stopping daemon waits for its scheduler to take back the jobs of children that were killed."""
REPORT_S = 1.0
"""How long a fork keeps orphans from being reaped: of a child that was among them, only how it ended is lost."""
_STOP_MARGIN_S = 0.3
_API_MARGIN_S = 3.0
"""What a replaced Api gets beyond its graceful timeout: to leave its lifespan."""


def _no_subscriber(_kind: str, _fields: dict[str, Any]) -> None:
    return


class Supervisor:
    """One daemon: `run` is its life. It carries out the actors' `Duties`, and ticks, reconciles and drives the tables."""

    def __init__(self, settings: Settings, daemon_id: str, log: Log, notifier: Notifier, kernel: Kernel) -> None:
        self.settings = settings
        self.loop = loop = asyncio.get_running_loop()
        self.log = log
        self.kernel = kernel
        self.fleet = fleet = Fleet(
            settings.name,
            daemon_id,
            daemon_id,
            Desired(settings.workers, 1, 1, leave_s=settings.reload_timeout_s),
            kernel.wall_ms(),
            loop.time(),
            settings.redis_url,
            listeners=Listeners(kernel, settings.api_processes),
        )
        fleet.activity = Activity(fleet.since_ms)
        self.ended = asyncio.Event()
        self.on_event: Callable[[str, dict[str, Any]], None] = _no_subscriber
        self.describe: Callable[[], dict[str, Any]] = dict
        """What the scheduler child reports of this daemon: its status."""
        self.orphans: set[int] = set()
        """Processes of ours that are not in the fleet: they are reaped by what started them."""
        self._notifier = notifier
        self._limits = slots.Limits(start_s=settings.start_timeout_s)
        self._woken = False
        self._last_pet = 0.0
        self._suspects_at = -plan.QUARANTINE_IDLE_S
        """When a suspect of a crash last waited or ran."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lateness = Lateness(fleet, log, loop.time)
        self.messages = ChildMessages(
            fleet, self, self._describe, kernel, loop, log, settings.state_dir, settings.stop_timeout_s
        )
        boot_wait = BootWait(fleet, notifier, log, loop.time, settings.boot_timeout_s)
        self.spawner = Spawner(fleet, self, settings, self.messages, boot_wait, kernel, loop, log)
        self.companions = Companions(fleet, self, settings, kernel, log)
        self.reloads = Reloads(
            fleet, self, kernel, loop, log, self.companions.ensure_broker, self._start_template, settings.canary_s
        )
        self.templates = Templates(
            fleet, self, settings, self.lateness, self.reloads, self.spawner, self.companions, kernel, loop, log
        )
        self.broker_watch = BrokerWatch(fleet, self, log)
        self.silent_apis = SilentApis(fleet, self, log, settings.hang_timeout_s)
        self.exits = ExitHandler(
            fleet, self, self.messages, self.reloads, boot_wait, self.broker_watch, kernel, loop, log
        )
        self.hang_watch = HangWatch(fleet, self, self.lateness, loop, log, settings.hang_timeout_s)
        self.recycling = Recycling(fleet, self, kernel, log, settings.max_jobs, settings.max_rss_bytes)
        self.requests = Requests(fleet, self, self.reloads, notifier, log, loop.time, settings.stop_timeout_s)

    def _describe(self) -> dict[str, Any]:
        return self.describe()

    def _start_template(self, number: int) -> bool:
        return self.templates.start(number) is not None

    # -- life of the daemon --

    async def run(self) -> int:
        """Run from the first template to the last child; -> exit code. The control server is the caller's."""
        self.kernel.become_subreaper()
        ticking = self.own(self._tick())
        try:
            if not self.fleet.is_open:
                self.emit("started", {"version": upnext.__version__, "pid": self.kernel.pid()})
                self.templates.start_first()
            await self.ended.wait()
            await self._report_stopped()
        finally:
            ticking.cancel()
        for generation in self.fleet.generations.values():
            generation.kill()
        await self.companions.stop()
        self.fleet.listeners.close()
        await self._templates_gone()
        self._end_leftovers()
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        # A stop that was asked for meanwhile has an end, too.
        await self._report_stopped()
        ending = self.fleet.ending
        if ending.killed_jobs:
            jobs = counted(len(ending.killed_jobs), "job")
            self.log.fault(f"killed at the deadline, to run again elsewhere: {jobs}: {', '.join(ending.killed_jobs)}")
            return ExitCode.TIMEOUT if ending.code == ExitCode.OK else ending.code
        return ending.code

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on with what the program before us left; before `run`."""
        upgrade.from_state(state, self.fleet, self.templates, self.spawner, self.companions)
        for instance in self.fleet.instances:
            self._set_timer(instance)
        if self.fleet.desired.quarantine:
            self._suspects_at = self.loop.time()
        self.companions.start_beside()
        self.templates.replace_lost()
        self.emit("upgraded", {"version": upnext.__version__})
        self.log.note(f"upgraded to {upnext.__version__} in place: {self.fleet.one_line()}")

    async def _report_stopped(self) -> None:
        """End the operation of the stop, while its clients are still connected."""
        killed = self.fleet.ending.killed_jobs
        code = ExitCode.TIMEOUT if killed else ExitCode.OK
        text = (
            f"stopped; killed, to run again: {counted(len(killed), 'job')}: {', '.join(killed)}"
            if killed
            else "stopped"
        )
        data = {"exit_code": int(code), "killed": killed}
        self.fleet.operations.end("stop", Progress(text, done=True, ok=not killed, data=data))
        # Waiting requests are woken, and answer, in the turns to come.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _templates_gone(self) -> None:
        for _ in range(100):
            if not any(generation.living for generation in self.fleet.generations.values()):
                return
            await asyncio.sleep(0.01)

    def _end_leftovers(self) -> None:
        """End what jobs started in sessions of their own. Nothing else runs here any more that could be kept waiting."""
        try:
            count = self.kernel.end_leftovers(self.fleet.mark)
        except OSError as error:
            self.log.fault(f"can't look for what jobs left running: {error.strerror or error}")
        else:
            if count:
                self.log.caution(f"{count} processes that jobs had left running were killed")

    # -- duties (`duties.Duties`) --

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.loop.call_soon(self._reconcile)

    def edit(self, **changes: Any) -> None:
        self.fleet.desired = replace(self.fleet.desired, **changes)
        self.wake()

    def fail(self, code: ExitCode, line: str) -> None:
        if self.fleet.desired.stopping:
            return
        self.log.fault(line)
        self.fleet.ending.code = code
        self._notifier.status(line[:200])
        self.requests.ask(Request.FAILED)

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        self.fleet.activity.note(kind, fields, self.kernel.wall_ms())
        self.on_event(kind, fields)

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._owned_done)
        return task

    def _owned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of the supervisor itself: it must not supervise on with half its duties done.
            self.loop.call_exception_handler({"message": "the supervisor failed", "exception": error, "task": task})
            self.fleet.ending.code = ExitCode.FAILED
            self.ended.set()

    def post(self, instance: Instance, event: Event, until: float | None = None) -> None:
        now = self.loop.time()
        before = instance.life.state
        instance.life, actions = slots.step(instance.life, event, now, self._limits, until)
        if event in (Event.STOP, Event.KILL) and instance.child is not None:
            instance.child.asked = True
        for action in actions:
            self._act(instance, action, event, before)
        self._set_timer(instance)
        self.wake()

    # -- the table driver --

    def _act(self, instance: Instance, action: Action, event: Event, before: State) -> None:
        child = instance.child
        if action is Action.FORK:
            self.spawner.fork(instance)
        elif action is Action.CLASSIFY_EXIT:
            instance.exit_task = self.own(self.exits.handle(instance))
        elif action is Action.GIVE_UP_EXIT:
            self.exits.give_up(instance)
        elif action is Action.LOG_UNEXPECTED:
            self.log.caution(f"{instance.slot}: {event.name} in {before.name} should not happen")
        elif child is not None:
            self._act_on(instance, child, action)

    def _act_on(self, instance: Instance, child: Child, action: Action) -> None:
        match action:
            case Action.WATCH:
                self.spawner.watch(child)
            case Action.SEND_PAUSE:
                child.drain_number += 1
                child.channel.send(messages.Pause())
            case Action.SEND_RESUME:
                # An answer to a drain before it may be on its way: it is out of date.
                child.drain_number += 1
                child.fetches = True
                child.channel.send(messages.Resume())
            case Action.SEND_DRAIN if child.channel.closed:
                # No message reaches it, and it is on its way out: a signal does.
                child.asked = True
                child.signal(signal.SIGTERM)
            case Action.SEND_DRAIN:
                child.drain_number += 1
                child.channel.send(messages.Drain(number=child.drain_number))
            case Action.SEND_STOP:
                self._send_stop(instance, child)
            case Action.DUMP:
                self.hang_watch.dump_hung(instance, child)
            case Action.ABORT:
                child.hung = True
                self.log.fault(f"{instance.slot}[{child.pid}] still hangs: aborted")
                child.signal(signal.SIGABRT)
            case Action.KILL:
                child.signal(signal.SIGKILL)
                if child.pid is None:
                    self.loop.call_soon(self._without_pid, instance, child)
            case Action.ABANDON:
                child.unwatch()
                self.log.fault(
                    f"{instance.slot}[{child.pid}] did not end {self._limits.end_s:g} s after SIGKILL: left behind"
                )
            case _:
                return

    def _without_pid(self, instance: Instance, child: Child) -> None:
        """Give up a child that is to die before the template has reported its pid: a later report ends that process."""
        if instance.child is child and child.pid is None:
            self.post(instance, Event.FORK_FAILED)

    def _send_stop(self, instance: Instance, child: Child) -> None:
        deadline = instance.life.deadline
        grace_s = 0.0
        if instance.life.state is State.STOPPING and deadline is not None:
            grace_s = max(0.0, deadline - self.loop.time())
            # The child reports first: it knows which jobs it had to give up.
            instance.life = replace(instance.life, deadline=deadline + _STOP_MARGIN_S)
        if child.channel.closed:
            child.signal(signal.SIGTERM)
        child.channel.send(messages.Stop(grace_s=grace_s))

    def _set_timer(self, instance: Instance) -> None:
        if instance.timer is not None:
            instance.timer.cancel()
            instance.timer = None
        if instance.life.deadline is not None:
            instance.timer = self.loop.call_at(instance.life.deadline, self._deadline, instance)

    def _deadline(self, instance: Instance) -> None:
        self.lateness.forgive()
        deadline = instance.life.deadline
        if deadline is None or self.loop.time() < deadline:
            self._set_timer(instance)
            return
        if instance.life.state is State.STARTING:
            why = f"not ready within {self._limits.start_s:g} s: killed"
            self.fleet.start_failed(instance, why)
            self.log.fault(f"{instance.slot}: {why}")
        self.post(instance, Event.DEADLINE)

    # -- the tick --

    async def _tick(self) -> None:
        watchdog_s = self._notifier.watchdog_s
        tick_s = TICK_S if watchdog_s is None else min(TICK_S, watchdog_s / 4)
        while True:
            await asyncio.sleep(tick_s)
            self.lateness.forgive()
            self.lateness.ticked()
            now = self.loop.time()
            self._pet(now)
            self.hang_watch.check(now)
            self.recycling.check(now)
            self.templates.check(now)
            self.exits.read_oom_kills(now)
            self._reap_orphans()
            self.broker_watch.check(now)
            self.messages.repeat_notices(now)
            self.wake()

    def _pet(self, now: float) -> None:
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is not None and now - self._last_pet >= watchdog_s / 4:
            self._last_pet = now
            self._notifier.pet()

    def _reap_orphans(self) -> None:
        """Reap what we adopted, as a subreaper or as PID 1. Not while a child of ours has a pid that we don't know yet."""
        now = self.loop.time()
        children = [instance.child for instance in self.fleet.instances if instance.child is not None]
        if any(child.pid is None and now - child.born_at < REPORT_S for child in children):
            return
        ours = {child.pid for child in children if child.pid is not None}
        ours |= {generation.pid for generation in self.fleet.generations.values() if generation.living}
        self.kernel.reap_orphans(ours | self.companions.pids | self.orphans)

    # -- reconciling --

    def _reconcile(self) -> None:
        self._woken = False
        fleet = self.fleet
        now = self.loop.time()
        self._check_suspects(now)
        if fleet.is_open or fleet.desired.stopping:
            for step in plan.reconcile(fleet.desired, [instance.view() for instance in fleet.instances], now):
                self._take(step)
        self.silent_apis.check(now)
        self._check_ready()
        self.reloads.check()
        if fleet.desired.mode is Mode.DRAIN_EXIT and fleet.drained():
            self.requests.ask(Request.DRAINED)
        if fleet.desired.stopping:
            self._check_end(now)
        fleet.operations.check()
        self._notifier.status(fleet.waiting or fleet.one_line())

    def _check_suspects(self, now: float) -> None:
        """Want the quarantine child, or not. The scheduler reports that suspects wait; that one runs is seen here."""
        fleet = self.fleet
        if fleet.scheduler_status.suspects or any(
            instance.child is not None and instance.child.page.busy()
            for instance in fleet.instances
            if instance.slot == plan.QUARANTINE and instance.leave_by is None
        ):
            self._suspects_at = now
        wanted = fleet.booted and now - self._suspects_at < plan.QUARANTINE_IDLE_S
        if wanted != fleet.desired.quarantine:
            fleet.desired = replace(fleet.desired, quarantine=wanted)

    def _take(self, step: plan.Step) -> None:
        fleet = self.fleet
        match step:
            case plan.Add(slot, role, generation):
                # An instance without a template to fork from waits for one.
                if fleet.template(generation) is None:
                    return
                made = Instance(fleet.next_id(), slot, role, generation, Life(since=self.loop.time()))
                if role is Role.API and (api := fleet.api(generation, slot)) is not None:
                    made.leave_s = api.graceful_timeout_s + _API_MARGIN_S
                    made.address = address_of(api)
                fleet.instances.append(made)
                self.wake()
            case plan.Drop(dropped):
                fleet.instances = [instance for instance in fleet.instances if instance.id != dropped]
                self.wake()
            case plan.Leave(leaving, by):
                for instance in fleet.instances:
                    if instance.id == leaving:
                        instance.leave_by = by
                        if instance.generation != fleet.wanted_generation(instance.role):
                            instance.reason = instance.reason or "reloaded"
                self.wake()
            case plan.Post(number, event, until):
                instance = next((instance for instance in fleet.instances if instance.id == number), None)
                if instance is not None and (event is not Event.SPAWN or fleet.template(instance.generation)):
                    self.post(instance, event, until)

    def _check_ready(self) -> None:
        fleet = self.fleet
        if fleet.waiting and fleet.booted and fleet.ready_workers() >= len(fleet.desired.worker_slots):
            fleet.waiting, fleet.lifespan_fails = "", False
        if fleet.booted or not fleet.is_open or fleet.desired.stopping:
            return
        scheduler = any(s.role is Role.SCHEDULER and s.life.state is State.READY for s in fleet.instances)
        ready = fleet.ready_workers() >= len(fleet.desired.worker_slots) and fleet.ready_apis(
            fleet.desired.api_generation
        )
        if scheduler and ready:
            fleet.booted = True
            fleet.waiting, fleet.lifespan_fails = "", False
            where = fleet.where_apis()
            self.log.note(f"ready: {fleet.one_line()}{where and f', {where}'}")
            self._notifier.ready()

    def _check_end(self, now: float) -> None:
        """Keep the order of the end: the workers, then their deaths reported, then the scheduler, then the daemon."""
        fleet = self.fleet
        if any(instance.role is not Role.SCHEDULER for instance in fleet.instances):
            return
        ending = fleet.ending
        if ending.notices_by is None:
            ending.notices_by = now + LAST_NOTICES_S
        settled = not len(fleet.pending_notices) or not fleet.scheduler_status.connected or now >= ending.notices_by
        if fleet.desired.scheduler and settled:
            self.edit(scheduler=False)
        if not fleet.instances:
            self.ended.set()
