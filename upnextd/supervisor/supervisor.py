"""The supervisor: an event loop around the pure core (`slots`, `plan`, `hangs`). It runs no user code, has no Redis and no threads.

Everything that happens becomes an event posted to a instance; the instance's table says what follows. Commands and signals only edit
`desired`; `_reconcile` closes the gap, after every change and at every tick.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

import upnext
from upnext import config
from upnext.control.exits import ExitCode
from upnext.core import secret_names
from upnext.errors import UpNextError
from upnextd.broker.embedded import STOP_S, EmbeddedBroker
from upnextd.metrics.counters import Counters
from upnextd.metrics.exporter import Exporter
from upnextd.rules import boot, hangs, modes, plan, slots
from upnextd.rules.modes import Request
from upnextd.rules.plan import Desired, Mode, Role
from upnextd.rules.slots import Action, Event, Life, State
from upnextd.settings import Settings
from upnextd.shared import identity, leftovers, messages
from upnextd.shared.companion import Companion
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.shared.process import ExitStatus
from upnextd.supervisor import upgrade
from upnextd.supervisor.children import Child
from upnextd.supervisor.exits import ExitHandler
from upnextd.supervisor.generations import Generation, ImportFailure, Phase
from upnextd.supervisor.hang_watch import TICK_S, HangWatch
from upnextd.supervisor.instances import Ending, Instance, SchedulerStatus, SlotHistory
from upnextd.supervisor.messages import ChildMessages
from upnextd.supervisor.operations import Operations, Progress
from upnextd.supervisor.recycling import Recycling
from upnextd.supervisor.reloads import Reloads
from upnextd.supervisor.spawning import Spawner
from upnextd.supervisor.systemd import Notifier
from upnextd.supervisor.templates import Templates

LATE_S = 1.0
"""A tick later than this means that we were stopped or the machine slept: no child is blamed for that time."""
LAST_NOTICES_S = 2.0
"""How long a stopping daemon waits for its scheduler to take back the jobs of children that were killed."""
REPORT_S = 1.0
"""How long a fork keeps orphans from being reaped: of a child that was among them, only how it ended is lost."""
_BROKER_NOW_S = 1.0
_DASHBOARD_ENV = frozenset(
    (
        *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "SSL_CERT_DIR"),
        *("SSL_CERT_FILE", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    )
)
"""What the dashboard's process gets of the environment: nothing of the service's secrets."""
_STOP_MARGIN_S = 0.3


def _nobody_listens(_kind: str, _fields: dict[str, Any]) -> None:
    return


class Supervisor:
    """One daemon. `run` is its life."""

    def __init__(self, settings: Settings, daemon_id: str, log: Log, notifier: Notifier, kernel: Kernel) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.log = log
        self.kernel = kernel
        self.desired = Desired(settings.workers, 1, 1, leave_s=settings.reload_timeout_s)
        self.instances: list[Instance] = []
        self.history: dict[str, SlotHistory] = {}
        self.generations: dict[int, Generation] = {}
        self.broker: EmbeddedBroker | None = None
        self.exporter: Exporter | None = None
        self.dashboard: Companion | None = None
        self.counters = Counters()
        self.scheduler_status = SchedulerStatus()
        self.operations = Operations()
        self.ended = asyncio.Event()
        self.on_event: Callable[[str, dict[str, Any]], None] = _nobody_listens
        self.describe: Callable[[], dict[str, Any]] = dict
        """What the scheduler child reports of this daemon: its status."""
        self.daemon_id = daemon_id
        self.since_ms = kernel.wall_ms()
        self.since_s = self.loop.time()
        self.child_env = {**settings.child_env, leftovers.VARIABLE: daemon_id}
        """What every child gets, and passes on: by the daemon's mark, what a job leaves behind is found and ended."""
        self._notifier = notifier
        self._limits = slots.Limits(start_s=settings.start_timeout_s)
        self.ending = Ending()
        self._open = False
        self._booted = False
        self._opened_at = self.loop.time()
        self.waiting = ""
        """What children that can't start wait for, in one line; empty when they wait for nothing."""
        self.lifespan_fails = False
        """Children of the committed code can't start for it; newer code may be the cure."""
        self._woken = False
        self._ids = 0
        self._last_tick = self.loop.time()
        self._last_pet = 0.0
        self._suspects_at = -plan.QUARANTINE_IDLE_S
        """When a suspect of a crash last waited or ran."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.orphans: set[int] = set()
        """Processes of ours that are nobody's child in the sense above: they are reaped by who started them."""
        self.spawner = Spawner(self)
        self.exits = ExitHandler(self)
        self.hang_watch = HangWatch(self)
        self.messages = ChildMessages(self)
        self.templates = Templates(self)
        self.reloads = Reloads(self)
        self.recycling = Recycling(self)

    # -- life of the daemon --

    async def run(self) -> int:
        """From the first template to the last child; -> exit code. The control server is somebody else's."""
        self.kernel.become_subreaper()
        ticking = self.own(self._tick())
        try:
            if not self._open:
                self.templates.start_first()
            await self.ended.wait()
            await self._tell_stopped()
        finally:
            ticking.cancel()
        for generation in self.generations.values():
            generation.kill()
        for companion in (self.exporter, self.dashboard):
            if companion is not None:
                companion.stop()
        if self.broker is not None:
            await self.broker.stop(_BROKER_NOW_S if self.desired.mode is Mode.STOP_NOW else STOP_S)
        await self._templates_gone()
        self._end_leftovers()
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        # A stop that was asked for meanwhile has an end, too.
        await self._tell_stopped()
        killed = self.ending.killed_jobs
        if killed:
            self.log.fault(
                f"{len(killed)} jobs were killed at the deadline, they run again elsewhere: {', '.join(killed)}"
            )
            return ExitCode.TIMEOUT if self.ending.code == ExitCode.OK else self.ending.code
        return self.ending.code

    def _end_leftovers(self) -> None:
        """What jobs started in sessions of their own. Nothing else runs here any more that could be kept waiting."""
        try:
            count = self.kernel.end_leftovers(self.child_env[leftovers.VARIABLE])
        except OSError as error:
            self.log.fault(f"can't look for what jobs left running: {error.strerror or error}")
        else:
            if count:
                self.log.caution(f"{count} processes that jobs had left running were killed")

    def rename(self, daemon_id: str) -> None:
        """Another daemon has our name: children to come, and the next start, go by this one."""
        self.log.caution(
            f"another daemon has this one's id ({self.daemon_id}): its state directory is a copy, or this one is; from now on {daemon_id}"
        )
        self.daemon_id = daemon_id
        try:
            self.kernel.store_id(self.settings.state_dir, daemon_id)
        except OSError as error:
            self.log.fault(f"can't write {self.settings.state_dir / identity.FILE}: {error.strerror or error}")

    async def _tell_stopped(self) -> None:
        """The last word to whoever waits for the stop, while they can still be told."""
        killed = self.ending.killed_jobs
        code = ExitCode.TIMEOUT if killed else ExitCode.OK
        text = f"stopped; {len(killed)} jobs were killed and run again: {', '.join(killed)}" if killed else "stopped"
        data = {"exit_code": int(code), "killed": killed}
        self.operations.end("stop", Progress(text, done=True, ok=not killed, data=data))
        # Whoever waits is woken, and answers, in the turns to come.
        for _ in range(3):
            await asyncio.sleep(0)

    def ask(self, request: Request) -> str | None:
        """Take a request in: the mode follows its table. -> why it is refused, None when it is not."""
        cell = modes.decide(self.desired.mode, request)
        if cell.refusal is None and cell.to is not self.desired.mode:
            self._enter(cell.to, request)
        return cell.refusal

    def _enter(self, mode: Mode, request: Request) -> None:
        # Who waits for what is reached at this moment is told so, before anything supersedes it.
        self.operations.look()
        self.operations.supersede(modes.OVERTAKEN[mode], request.value)
        if mode in (Mode.STOP, Mode.STOP_NOW):
            self._stop(request, now=mode is Mode.STOP_NOW)
            return
        self.log.note(f"asked to {request.value}")
        self.edit(mode=mode)
        self.on_event("mode", {"mode": self.mode()})

    def _stop(self, request: Request, *, now: bool) -> None:
        if not self.desired.stopping:
            self._notifier.stopping()
        grace = "running jobs are killed" if now else f"running jobs have {self.settings.stop_timeout_s:g} s"
        self.log.note(f"stopping ({request.value}): {grace}")
        if now:
            self.edit(mode=Mode.STOP_NOW)
        else:
            self.edit(mode=Mode.STOP, stop_by=self.loop.time() + self.settings.stop_timeout_s)
        self.reloads.abort("the daemon stops")

    def fail(self, code: ExitCode, line: str) -> None:
        """End with this code, now; the line says why. The first failure counts."""
        if self.desired.stopping:
            return
        self.log.fault(line)
        self.ending.code = code
        self._notifier.status(line[:200])
        self.ask(Request.FAILED)

    def edit(self, **changes: Any) -> None:
        """Change what should be."""
        self.desired = replace(self.desired, **changes)
        self.wake()

    def scale(self, workers: int, by: str) -> None:
        """Want so many workers; `by`: who asked."""
        if workers == self.desired.workers:
            return
        self.operations.supersede(("scale",), by)
        text = f"{by}: {workers} workers from now on, {self.desired.workers} before"
        if workers:
            self.log.note(text)
        else:
            self.log.caution(f"{text}: no job runs here until it is scaled up")
        self.edit(workers=workers)

    def restart(self, marks: Mapping[str, int]) -> None:
        """Want the children of these slots replaced: all places up to the id that each is given."""
        self.desired = plan.renew(self.desired, marks)
        self.wake()

    def is_outdated(self, instance: Instance) -> bool:
        """It is to be replaced, by an operator's wish or for what it has used up."""
        return plan.is_outdated(self.desired, instance.view())

    def wake(self) -> None:
        """Reconcile soon."""
        if not self._woken:
            self._woken = True
            self.loop.call_soon(self._reconcile)

    def next_id(self) -> int:
        """A number that no instance and no child of this daemon had before."""
        self._ids += 1
        return self._ids

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on with what the program before us left; before `run`."""
        upgrade.from_state(self, state)
        self._open = self._booted = True
        if self.desired.quarantine:
            self._suspects_at = self.loop.time()
        self._start_companions()
        self.templates.replace_lost()
        self.log.note(f"upgraded to {upnext.__version__} in place: {self.one_line()}")

    def resume_ids(self, last: int) -> None:
        self._ids = last

    @property
    def opened(self) -> bool:
        """The service was imported once, and the broker, if it needs one, was started: children may be forked."""
        return self._open

    @property
    def booted(self) -> bool:
        return self._booted

    # -- the start --

    def waited_s(self) -> float:
        """Seconds since the first children could be made."""
        return self.loop.time() - self._opened_at

    def waits_for_broker(self) -> bool:
        """Whether a child that found no broker is followed by another: the start goes on."""
        return not self._booted and boot.goes_on(self.settings.boot_timeout_s, self.waited_s())

    def still_waiting(self, what: str, line: str) -> None:
        """A child did not get what it needs: log it once, and ask the service manager for more time."""
        if not self.waiting:
            self.log.caution(f"waiting for {what}: {line}")
        self.waiting = f"{self.settings.name}: waiting for {what}: {line}"
        if not self._booted:
            self._notifier.extend_start(boot.EXTENSION_S)

    # -- templates (generations.Listener) --

    def start_generation(self, number: int) -> Generation | None:
        """Exec a template; None when the system refuses."""
        return self.templates.start(number)

    def template_line(self, pid: int | None, line: str) -> None:
        """A template printed this."""
        self.log.child_line("template", pid, line)

    def imported(self, generation: Generation) -> None:
        for warning in generation.warnings:
            self.log.caution(warning)
        if not self.templates.takes(generation):
            return
        if not self._open:
            self.own(self._open_up(generation))
        else:
            self.own(self.reloads.imported(generation))
        self.wake()

    def import_failed(self, generation: Generation, failure: ImportFailure) -> None:
        if generation.retired:
            # Its import was ended because nobody wants it any more.
            return
        if failure.traceback:
            self.log.line("template", generation.pid, failure.traceback.rstrip())
        if not self._open:
            self.fail(ExitCode.CONFIG, failure.told(self.settings.service))
        elif not self.desired.stopping:
            self.log.fault(failure.told(self.settings.service))
            self.reloads.import_failed(generation, failure)

    def forked(self, token: int, pid: int) -> None:
        self.spawner.forked(token, pid)

    def fork_failed(self, token: int, error: str, *, blameless: bool) -> None:
        self.spawner.fork_failed(token, error, blameless=blameless)

    def template_gone(self, generation: Generation, status: ExitStatus) -> None:
        for instance in list(self.instances):
            if instance.generation == generation.number and instance.unborn:
                self.post(instance, Event.FORK_FAILED)
        self.reloads.template_gone(generation)
        unwanted = generation.number not in (self.desired.generation, self.desired.scheduler_generation)
        if unwanted and self._open:
            self.generations.pop(generation.number, None)
        if self.desired.stopping or not self._open or unwanted:
            self.wake()
            return
        if generation.failure is None and not generation.retired:
            self.log.fault(f"the template ended ({status}); its children live on, a new one imports the service")
        self.templates.replace(generation)
        self.wake()

    async def _open_up(self, generation: Generation) -> None:
        """The first import is done: a broker if one is needed, then children."""
        error = await self.ensure_broker(generation)
        if error is not None:
            self.fail(ExitCode.UNAVAILABLE, error)
            return
        self._open = True
        self._opened_at = self.loop.time()
        self._start_companions()
        # It may have ended while the broker started.
        self.templates.replace_lost()
        self.wake()

    def _start_companions(self) -> None:
        if self.settings.metrics is not None:
            self.exporter = Exporter(self._metrics_order, secret_names.without(self.child_env), self.log, self.kernel)
            self.exporter.start()
        if self.settings.dashboard is not None:
            env = {name: value for name, value in self.settings.child_env.items() if name in _DASHBOARD_ENV}
            env[leftovers.VARIABLE] = self.daemon_id
            entry = "upnext.dashboard.served:main"
            self.dashboard = Companion("dashboard", entry, self._dashboard_order, env, self.log, self.kernel)
            self.dashboard.start()

    async def ensure_broker(self, generation: Generation) -> str | None:
        """Start the embedded broker if this generation needs one and there is none. -> why that failed."""
        if self.broker is None and self.settings.redis_url is None and None in generation.redis_urls:
            path = config.broker_socket_path(self.settings.state_dir, self.settings.runtime_dir, self.settings.name)
            self.broker = EmbeddedBroker(
                self.settings.state_dir,
                path,
                secret_names.without(self.settings.child_env),
                self.log,
                self.wake,
                self.kernel,
            )
            try:
                await self.broker.start()
            except (UpNextError, OSError) as error:
                return str(error)
        return None

    def _metrics_order(self) -> dict[str, Any]:
        return {
            "supervisor_pid": self.kernel.pid(),
            "name": self.settings.name,
            "listen": self.settings.metrics,
            "socket": str(self.settings.socket),
            "redis_url": self.broker_url(),
            "namespace": self.settings.namespace,
        }

    def _dashboard_order(self) -> dict[str, Any]:
        dashboard = self.settings.dashboard
        assert dashboard is not None
        return {
            "supervisor_pid": self.kernel.pid(),
            "name": self.settings.name,
            "listen": str(dashboard.listen),
            "hosts": dashboard.hosts,
            "users": str(dashboard.users) if dashboard.users is not None else None,
            "proxy_header": dashboard.proxy_header,
            "state_dir": str(self.settings.state_dir),
            "socket": str(self.settings.socket),
            "redis_url": self.broker_url(),
            "namespace": self.settings.namespace,
        }

    def broker_url(self) -> str:
        """Where the queue is, by flag, the embedded broker, or the service itself; "" before that is known."""
        if self.settings.redis_url is not None:
            return self.settings.redis_url
        if self.broker is not None:
            return self.broker.url
        generation = self.generations.get(self.desired.generation)
        return next((url for url in generation.redis_urls if url), "") if generation is not None else ""

    # -- instances --

    def post(self, instance: Instance, event: Event, until: float | None = None) -> None:
        """One event happened to a instance: step its table and do what follows."""
        now = self.loop.time()
        before = instance.life.state
        instance.life, actions = slots.step(instance.life, event, now, self._limits, until)
        if event in (Event.STOP, Event.KILL) and instance.child is not None:
            instance.child.asked = True
        for action in actions:
            self._act(instance, action, event, before)
        self.set_timer(instance)
        self.wake()

    def _act(self, instance: Instance, action: Action, event: Event, before: State) -> None:
        child = instance.child
        if action is Action.FORK:
            self.spawner.fork(instance)
        elif action is Action.CLASSIFY_EXIT:
            instance.burial = self.own(self.exits.handle(instance))
        elif action is Action.FORSAKE:
            self.exits.forsake(instance)
        elif action is Action.LOG_UNEXPECTED:
            self.log.caution(f"{instance.slot}: {event.name} in {before.name} should not happen")
        elif child is not None:
            self._act_on(instance, child, action)

    def _act_on(self, instance: Instance, child: Child, action: Action) -> None:
        match action:
            case Action.WATCH:
                self.spawner.watch(child)
            case Action.TELL_PAUSE:
                child.channel.send(messages.Pause())
            case Action.TELL_RESUME:
                child.channel.send(messages.Resume())
            case Action.TELL_DRAIN if child.channel.closed:
                # It can't be told, and is on its way out: a signal gets there.
                child.asked = True
                child.signal(signal.SIGTERM)
            case Action.TELL_DRAIN:
                child.drain_number += 1
                child.channel.send(messages.Drain(number=child.drain_number))
            case Action.TELL_STOP:
                self._tell_stop(instance, child)
            case Action.DUMP:
                self.hang_watch.dump_hung(instance, child)
            case Action.ABORT:
                child.hung = True
                self.log.fault(f"{instance.slot}[{child.pid}] still hangs: aborted")
                child.signal(signal.SIGABRT)
            case Action.KILL:
                child.signal(signal.SIGKILL)
                if child.pid is None:
                    self.loop.call_soon(self._never_born, instance, child)
            case Action.ABANDON:
                child.unwatch()
                self.log.fault(
                    f"{instance.slot}[{child.pid}] did not end {self._limits.end_s:g} s after SIGKILL: left behind"
                )
            case _:
                return

    def _never_born(self, instance: Instance, child: Child) -> None:
        """Who is to die now is not waited for until the template says its pid: a report that comes later ends that process."""
        if instance.child is child and child.pid is None:
            self.post(instance, Event.FORK_FAILED)

    def _tell_stop(self, instance: Instance, child: Child) -> None:
        deadline = instance.life.deadline
        grace_s = 0.0
        if instance.life.state is State.STOPPING and deadline is not None:
            grace_s = max(0.0, deadline - self.loop.time())
            # The child speaks first: it knows which jobs it had to give up.
            instance.life = replace(instance.life, deadline=deadline + _STOP_MARGIN_S)
        if child.channel.closed:
            child.signal(signal.SIGTERM)
        child.channel.send(messages.Stop(grace_s=grace_s))

    def set_timer(self, instance: Instance) -> None:
        if instance.timer is not None:
            instance.timer.cancel()
            instance.timer = None
        if instance.life.deadline is not None:
            instance.timer = self.loop.call_at(instance.life.deadline, self._deadline, instance)

    def _deadline(self, instance: Instance) -> None:
        self.forgive_lateness()
        deadline = instance.life.deadline
        if deadline is None or self.loop.time() < deadline:
            self.set_timer(instance)
            return
        if instance.life.state is State.STARTING:
            self.log.fault(f"{instance.slot}: not ready within {self._limits.start_s:g} s: killed")
        self.post(instance, Event.DEADLINE)

    # -- the tick --

    async def _tick(self) -> None:
        watchdog_s = self._notifier.watchdog_s
        tick_s = TICK_S if watchdog_s is None else min(TICK_S, watchdog_s / 4)
        while True:
            await asyncio.sleep(tick_s)
            self.forgive_lateness()
            now = self.loop.time()
            self._last_tick = now
            self._pet(now)
            self.hang_watch.check(now)
            self.recycling.look(now)
            self.templates.look(now)
            self.exits.look_for_oom_kills(now)
            self._reap_orphans()
            self.messages.repeat_notices(now)
            self.wake()

    def _pet(self, now: float) -> None:
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is not None and now - self._last_pet >= watchdog_s / 4:
            self._last_pet = now
            self._notifier.pet()

    def forgive_lateness(self) -> None:
        """If this process was stopped for a while, that while doesn't count against anyone."""
        now = self.loop.time()
        late_s = now - self._last_tick - TICK_S
        if late_s < LATE_S:
            return
        self._last_tick = now
        self.log.caution(f"the supervisor itself was held up for {late_s:.1f} s; deadlines are moved by as much")
        if self.desired.stop_by is not None:
            self.desired = replace(self.desired, stop_by=self.desired.stop_by + late_s)
        self.templates.forgive(late_s)
        for instance in self.instances:
            if instance.leave_by is not None:
                instance.leave_by += late_s
            if instance.life.deadline is not None:
                instance.life = replace(instance.life, deadline=instance.life.deadline + late_s)
                self.set_timer(instance)
            if instance.child is not None:
                instance.child.heart = hangs.forgive(instance.child.heart, late_s)

    def _reap_orphans(self) -> None:
        """Orphans that we adopted, as a subreaper or as PID 1. Not just when a child of ours has a pid that we don't know yet."""
        now = self.loop.time()
        if any(
            s.child is not None and s.child.pid is None and now - s.child.born_at < REPORT_S for s in self.instances
        ):
            return
        ours = {
            instance.child.pid
            for instance in self.instances
            if instance.child is not None and instance.child.pid is not None
        }
        ours |= {generation.pid for generation in self.generations.values() if generation.living}
        ours |= {
            kept.pid
            for kept in (self.broker, self.exporter, self.dashboard)
            if kept is not None and kept.pid is not None
        }
        self.kernel.reap_orphans(ours | self.orphans)

    # -- reconciling --

    def _reconcile(self) -> None:
        self._woken = False
        now = self.loop.time()
        self._look_at_suspects(now)
        if self._open or self.desired.stopping:
            for step in plan.reconcile(self.desired, [instance.view() for instance in self.instances], now):
                self._take(step)
        self._check_ready()
        self.reloads.look()
        if self.desired.mode is Mode.DRAIN_EXIT and self.drained():
            self.ask(Request.DRAINED)
        if self.desired.stopping:
            self._check_end(now)
        self.operations.look()
        self._notifier.status(self.waiting or self.one_line())

    def _look_at_suspects(self, now: float) -> None:
        """The scheduler says that suspects wait; that they run is seen here."""
        if self.scheduler_status.suspects or any(
            instance.child is not None and instance.child.page.busy()
            for instance in self.instances
            if instance.slot == plan.QUARANTINE and instance.leave_by is None
        ):
            self._suspects_at = now
        wanted = self._booted and now - self._suspects_at < plan.QUARANTINE_IDLE_S
        if wanted != self.desired.quarantine:
            self.desired = replace(self.desired, quarantine=wanted)

    def _take(self, step: plan.Step) -> None:
        match step:
            case plan.Add(slot, role, generation):
                # A place without a template to fork from waits for one.
                template = self.generations.get(generation)
                if template is None or template.phase is not Phase.READY or template.retired:
                    return
                self.instances.append(Instance(self.next_id(), slot, role, generation, Life(since=self.loop.time())))
                self.wake()
            case plan.Drop(place):
                self.instances = [instance for instance in self.instances if instance.id != place]
                self.wake()
            case plan.Leave(place, by):
                for instance in self.instances:
                    if instance.id == place:
                        instance.leave_by = by
                        if instance.generation != self._wanted_generation(instance.role):
                            instance.reason = instance.reason or "reloaded"
                self.wake()
            case plan.Post(place, event, until):
                instance = next((instance for instance in self.instances if instance.id == place), None)
                if instance is not None and (event is not Event.SPAWN or self._can_fork(instance)):
                    self.post(instance, event, until)

    def _wanted_generation(self, role: Role) -> int:
        return self.desired.generation if role is Role.WORKER else self.desired.scheduler_generation

    def _can_fork(self, instance: Instance) -> bool:
        template = self.generations.get(instance.generation)
        return template is not None and template.phase is Phase.READY and not template.retired

    def _check_ready(self) -> None:
        if self.waiting and self._booted and self.ready_workers() >= self.desired.workers:
            self.waiting, self.lifespan_fails = "", False
        if self._booted or not self._open or self.desired.stopping:
            return
        scheduler = any(s.role is Role.SCHEDULER and s.life.state is State.READY for s in self.instances)
        if scheduler and self.ready_workers() >= self.desired.workers:
            self._booted = True
            self.waiting, self.lifespan_fails = "", False
            self.log.note(f"ready: {self.one_line()}")
            self._notifier.ready()

    def _check_end(self, now: float) -> None:
        if any(instance.role is Role.WORKER for instance in self.instances):
            return
        ending = self.ending
        if ending.notices_by is None:
            ending.notices_by = now + LAST_NOTICES_S
        settled = (
            not len(self.messages.pending_notices) or not self.scheduler_status.connected or now >= ending.notices_by
        )
        if self.desired.scheduler and settled:
            self.edit(scheduler=False)
        if not self.instances:
            self.ended.set()

    # -- views --

    def ready_workers(self) -> int:
        """Slots whose child serves, or is paused because the operator wants it."""
        fine = {State.READY} if self.desired.mode is Mode.RUN else slots.SERVING
        return len({s.slot for s in self.instances if s.counts and s.leave_by is None and s.life.state in fine})

    def running_jobs(self) -> int:
        return sum(child.page.busy() for child in self.children(Role.WORKER))

    def mode(self) -> str:
        """As `status` shows it."""
        if self.desired.stopping:
            return "stopping"
        if self.reloads.under_way:
            return "reloading"
        if self.desired.mode is Mode.PAUSE:
            return "paused"
        if self.desired.mode.drains:
            return "drained" if self.drained() else "draining"
        return "running"

    def drained(self) -> bool:
        """Nothing runs and nothing is pending in any worker."""
        return all(
            s.life.state in slots.VACANT or (s.life.state is State.PAUSED and s.life.drained)
            for s in self.instances
            if s.role is Role.WORKER
        )

    def one_line(self) -> str:
        wanted = f"{self.ready_workers()}/{self.desired.workers} workers ready"
        return (
            f"{self.settings.name}: {self.mode()}, {wanted if self.desired.workers else 'no workers wanted'},"
            f" generation {self.desired.generation}, {self.running_jobs()} jobs running"
        )

    def instance_of(self, token: int) -> Instance | None:
        return next((s for s in self.instances if s.child is not None and s.child.token == token), None)

    def children(self, role: Role) -> Iterable[Child]:
        return [
            s.child
            for s in self.instances
            if s.role is role and s.child is not None and s.life.state is not State.EXITED
        ]

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run in the background, for no longer than the daemon; its failure ends the daemon."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._owned_done)
        return task

    def _owned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of the supervisor itself: it must not supervise on with half its duties done.
            self.loop.call_exception_handler({"message": "the supervisor failed", "exception": error, "task": task})
            self.ending.code = ExitCode.FAILED
            self.ended.set()

    async def _templates_gone(self) -> None:
        for _ in range(100):
            if not any(generation.living for generation in self.generations.values()):
                return
            await asyncio.sleep(0.01)
