"""The supervisor: an event loop around the pure core (`slots`, `plan`, `hangs`). It runs no user code, has no Redis and no threads.

Everything that happens becomes an event posted to a station; the station's table says what follows. Commands and signals only edit
`desired`; `_reconcile` closes the gap, after every change and at every tick.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from upnext import config
from upnext.control.exits import ExitCode
from upnext.errors import UpNextError
from upnextd import hangs, plan, process, slots
from upnextd.broker import Broker
from upnextd.channel import Message
from upnextd.children import Child
from upnextd.deaths import Death, LastExit, Ledger, notice
from upnextd.generations import Generation, ImportFailure, Phase
from upnextd.hangs import Pulse
from upnextd.logs import Log, now_iso
from upnextd.notify import Notifier
from upnextd.operations import Operations
from upnextd.plan import Desired, Exit, Mode, Place, Role
from upnextd.process import ExitStatus
from upnextd.settings import Settings
from upnextd.slots import Action, Event, Life, State

TICK_S = 0.25
LATE_S = 1.0
"""A tick later than this means that we were stopped or the machine slept: no child is blamed for that time."""
SCHEDULER_HANG_S = 3.0
LAST_NOTICES_S = 2.0
"""How long a stopping daemon waits for its scheduler to take back the jobs of children that were killed."""
BOOT_TIMEOUT_S = 5.0
BOOT_TIMEOUT_LATER_S = 45.0
"""How long a child tries to reach the broker before it gives up; below the limit of STARTING."""
_STOP_MARGIN_S = 0.3
_STACKS_AFTER_S = 0.1
_SESSION_POLL_S = 0.002
_SESSION_POLLS = 500
_NOTICES_AGAIN_S = 5.0


def _nobody_listens(_kind: str, _fields: dict[str, Any]) -> None:
    return


@dataclass(slots=True, eq=False)
class Station:
    """A place as the supervisor keeps it: its life and its child."""

    id: int
    slot: str
    role: Role
    generation: int
    life: Life
    child: Child | None = None
    outdated: bool = False
    leave_s: float | None = None
    leave_by: float | None = None
    reason: str | None = None
    timer: asyncio.TimerHandle | None = None

    def view(self) -> Place:
        life = self.life
        return Place(
            self.id,
            self.slot,
            self.role,
            self.generation,
            life.state,
            life.drained,
            self.outdated,
            self.leave_s,
            self.leave_by,
        )


@dataclass(slots=True)
class SlotHistory:
    """What is remembered of a slot beyond its children."""

    incarnations: int = 0
    restarts: int = 0
    last_exit: LastExit | None = None


@dataclass(slots=True)
class SchedulerSaid:
    """What the scheduler child last said of itself."""

    leader: bool = False
    epoch: int | None = None
    connected: bool = False


@dataclass(slots=True)
class Ending:
    """How the daemon is going to end."""

    code: int = ExitCode.OK
    killed_jobs: list[str] = field(default_factory=list[str])
    notices_by: float | None = None


class Supervisor:
    """One daemon. `run` is its life."""

    def __init__(self, settings: Settings, daemon_id: str, log: Log, notifier: Notifier) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.log = log
        self.desired = Desired(settings.workers, 1, 1, leave_s=settings.reload_timeout_s)
        self.stations: list[Station] = []
        self.history: dict[str, SlotHistory] = {}
        self.generations: dict[int, Generation] = {}
        self.broker: Broker | None = None
        self.scheduler_said = SchedulerSaid()
        self.operations = Operations()
        self.ended = asyncio.Event()
        self.on_event: Callable[[str, dict[str, Any]], None] = _nobody_listens
        self._daemon_id = daemon_id
        self._since_ms = time.time_ns() // 1_000_000
        self._notifier = notifier
        self._limits = slots.Limits()
        self._record = plan.Record()
        self._rng = random.Random()
        self._ledger = Ledger()
        self._told_alive: list[str] | None = None
        self._ending = Ending()
        self._open = False
        self._booted = False
        self._woken = False
        self._ids = 0
        self._last_tick = self.loop.time()
        self._last_notices = self.loop.time()
        self._last_pet = 0.0
        self._oom_kills = process.oom_kills()
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life of the daemon --

    async def run(self) -> int:
        """From the first template to the last child; -> exit code. The control server is somebody else's."""
        process.become_subreaper()
        ticking = self._own(self._tick())
        try:
            self.start_generation(1)
            await self.ended.wait()
        finally:
            ticking.cancel()
        for generation in self.generations.values():
            generation.kill()
        if self.broker is not None:
            await self.broker.stop()
        await self._templates_gone()
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        killed = self._ending.killed_jobs
        if killed:
            self.log.fault(
                f"{len(killed)} jobs were killed at the deadline, they run again elsewhere: {', '.join(killed)}"
            )
            return ExitCode.TIMEOUT if self._ending.code == ExitCode.OK else self._ending.code
        return self._ending.code

    def stop(self, *, now: bool = False) -> None:
        """Drain and end by the stop timeout; or end now."""
        if not self.desired.stopping:
            self._notifier.stopping()
            self.log.note("stopping now" if now else f"stopping: running jobs have {self.settings.stop_timeout_s:g} s")
        if now:
            self.edit(mode=Mode.STOP_NOW)
        elif not self.desired.stopping:
            self.edit(mode=Mode.STOP, stop_by=self.loop.time() + self.settings.stop_timeout_s)

    def fail(self, code: ExitCode, line: str) -> None:
        """End with this code, now; the line says why. The first failure counts."""
        if self.desired.stopping:
            return
        self.log.fault(line)
        self._ending.code = code
        self._notifier.status(line[:200])
        self.stop(now=True)

    def edit(self, **changes: Any) -> None:
        """Change what should be."""
        self.desired = replace(self.desired, **changes)
        self.wake()

    def wake(self) -> None:
        """Reconcile soon."""
        if not self._woken:
            self._woken = True
            self.loop.call_soon(self._reconcile)

    @property
    def booted(self) -> bool:
        return self._booted

    # -- templates (generations.Listener) --

    def start_generation(self, number: int) -> Generation | None:
        """Exec a template; None when the system refuses."""
        order = {
            "supervisor_pid": os.getpid(),
            "service": self.settings.service,
            "name": self.settings.name,
            "only": self.settings.only,
        }
        try:
            generation = Generation(
                number,
                order,
                self.settings.child_env,
                self.loop,
                self,
                lambda pid, line: self.log.line("template", pid, line),
            )
        except OSError as error:
            self.log.fault(f"can't start a template: {error.strerror or error}")
            self.loop.call_later(1.0, self._replace_template, number)
            return None
        self.generations[number] = generation
        return generation

    def imported(self, generation: Generation) -> None:
        for warning in generation.warnings:
            self.log.caution(warning)
        if not self._open:
            self._own(self._open_up(generation))
        self.wake()

    def import_failed(self, generation: Generation, failure: ImportFailure) -> None:
        if failure.traceback:
            self.log.line("template", generation.pid, failure.traceback.rstrip())
        if not self._open:
            self.fail(ExitCode.CONFIG, f"can't import {self.settings.service}: {failure.line}")
        elif not self.desired.stopping:
            self.log.fault(f"can't import {self.settings.service}: {failure.line}")

    def forked(self, token: int, pid: int) -> None:
        station = self._station(token)
        if station is None or station.child is None:
            # Nobody waits for it any more. It is our child, unreaped: the pid can't be another's.
            os.kill(pid, signal.SIGKILL)
            return
        station.child.pid = pid
        self.post(station, Event.FORKED)

    def fork_failed(self, token: int, error: str) -> None:
        station = self._station(token)
        if station is not None:
            self.log.fault(f"{station.slot}: can't fork: {error}")
            self.post(station, Event.FORK_FAILED)

    def template_gone(self, generation: Generation, status: ExitStatus) -> None:
        for station in self.stations:
            if station.generation == generation.number and station.life.state is State.SPAWNING:
                self.post(station, Event.FORK_FAILED)
        if self.desired.stopping or not self._open:
            self.wake()
            return
        if generation.number in (self.desired.generation, self.desired.scheduler_generation):
            self.log.fault(f"the template ended ({status}); its children live on, a new one imports the service")
            age_s = self.loop.time() - generation.started_at
            self.loop.call_later(0.0 if age_s > plan.PROVEN_S else 1.0, self._replace_template, generation.number)

    def _replace_template(self, number: int) -> None:
        if not self.desired.stopping:
            self.start_generation(number)

    async def _open_up(self, generation: Generation) -> None:
        """The first import is done: a broker if one is needed, then children."""
        if self.settings.redis_url is None and None in generation.redis_urls:
            path = config.broker_socket_path(self.settings.state_dir, self.settings.runtime_dir, self.settings.name)
            self.broker = Broker(self.settings.state_dir, path, self.settings.child_env, self.log, self.wake)
            try:
                await self.broker.start()
            except (UpNextError, OSError) as error:
                self.fail(ExitCode.UNAVAILABLE, str(error))
                return
        self._open = True
        self.wake()

    # -- stations --

    def post(self, station: Station, event: Event, until: float | None = None) -> None:
        """One event happened to a station: step its table and do what follows."""
        now = self.loop.time()
        before = station.life.state
        station.life, actions = slots.step(station.life, event, now, self._limits, until)
        if event in (Event.STOP, Event.KILL) and station.child is not None:
            station.child.asked = True
        for action in actions:
            self._act(station, action, event, before)
        self._set_timer(station)
        self.wake()

    def _act(self, station: Station, action: Action, event: Event, before: State) -> None:
        child = station.child
        if action is Action.FORK:
            self._fork(station)
        elif action is Action.JUDGE:
            self._own(self._bury(station))
        elif action is Action.COMPLAIN:
            self.log.caution(f"{station.slot}: {event.name} in {before.name} should not happen")
        elif child is not None:
            self._act_on(station, child, action)

    def _act_on(self, station: Station, child: Child, action: Action) -> None:
        match action:
            case Action.WATCH:
                self._watch(child)
            case Action.TELL_PAUSE:
                child.channel.send("pause")
            case Action.TELL_RESUME:
                child.channel.send("resume")
            case Action.TELL_DRAIN:
                child.drain_number += 1
                child.channel.send("drain", number=child.drain_number)
            case Action.TELL_STOP:
                self._tell_stop(station, child)
            case Action.DUMP:
                self._dump_hung(station, child)
            case Action.ABORT:
                child.hung = True
                self.log.fault(f"{station.slot}[{child.pid}] still hangs: aborted")
                child.signal(signal.SIGABRT)
            case Action.KILL:
                child.signal(signal.SIGKILL)
            case _:
                return

    def _fork(self, station: Station) -> None:
        generation = self.generations.get(station.generation)
        history = self.history.setdefault(station.slot, SlotHistory())
        self._ids += 1
        if generation is None or generation.phase is not Phase.READY:
            self.loop.call_soon(self.post, station, Event.FORK_FAILED)
            return
        try:
            child = Child(
                self._ids,
                station.slot,
                station.generation,
                history.incarnations + 1,
                generation.shapes,
                self.loop,
                self._hear,
                self._line,
            )
        except OSError as error:
            self.log.fault(f"{station.slot}: can't make a child: {error.strerror or error}")
            self.loop.call_soon(self.post, station, Event.FORK_FAILED)
            return
        station.child = child
        if station.role is Role.SCHEDULER:
            # Queued before it runs: it must know the living before it looks for the dead.
            self._brief(child)
        ordered = generation.fork(self._assignment(station, child), child.order_fds)
        child.ordered()
        if not ordered:
            self.loop.call_soon(self.post, station, Event.FORK_FAILED)
            return
        history.incarnations += 1

    def _assignment(self, station: Station, child: Child) -> dict[str, Any]:
        return {
            "token": child.token,
            "slot": station.slot,
            "role": str(station.role),
            "generation": station.generation,
            "incarnation": child.incarnation,
            "name": self.settings.name,
            "redis_url": self.settings.redis_url,
            "embedded_url": self.broker.url if self.broker is not None else None,
            "namespace": self.settings.namespace,
            "daemon_id": self._daemon_id,
            "since_ms": self._since_ms,
            "generation_ms": self.generations[station.generation].made_ms,
            # Later, a broker that is away is waited for, so that nobody restarts for it.
            "boot_timeout_s": BOOT_TIMEOUT_LATER_S if self._booted else BOOT_TIMEOUT_S,
            "stop_timeout_s": self.settings.stop_timeout_s,
            "paused": self.desired.mode in (Mode.PAUSE, Mode.DRAIN),
        }

    def _watch(self, child: Child) -> None:
        assert child.pid is not None
        try:
            child.watch(child.pid, self._gone)
        except OSError as error:
            self.log.fault(f"{child.slot}: can't watch pid {child.pid}: {error.strerror or error}")
            os.kill(child.pid, signal.SIGKILL)
            child.pid = None
            station = self._station(child.token)
            if station is not None:
                self.loop.call_soon(self.post, station, Event.GONE)
            return
        self.on_event("child_started", {"slot": child.slot, "pid": child.pid, "generation": child.generation})

    def _gone(self, child: Child) -> None:
        child.unwatch()
        station = self._station(child.token)
        if station is not None:
            self.post(station, Event.GONE)

    def _tell_stop(self, station: Station, child: Child) -> None:
        deadline = station.life.deadline
        grace_s = 0.0
        if station.life.state is State.STOPPING and deadline is not None:
            grace_s = max(0.0, deadline - self.loop.time())
            # The child speaks first: it knows which jobs it had to give up.
            station.life = replace(station.life, deadline=deadline + _STOP_MARGIN_S)
        child.channel.send("stop", grace_s=grace_s)

    def _dump_hung(self, station: Station, child: Child) -> None:
        age_s = child.heart.age_s(self.loop.time())
        child.signal(signal.SIGUSR2)

        def collect() -> None:
            stacks = "" if child.pidfd < 0 else child.new_stacks()
            child.stacks = stacks or child.stacks
            self.log.fault(f"{station.slot}[{child.pid}] hangs: no heartbeat for {age_s:.1f} s\n{stacks.rstrip()}")

        self.loop.call_later(_STACKS_AFTER_S, collect)

    async def stacks(self, child: Child) -> str:
        """A child's stacks now."""
        child.new_stacks()
        child.signal(signal.SIGUSR2)
        for _ in range(20):
            await asyncio.sleep(_STACKS_AFTER_S / 2)
            if child.pidfd < 0:
                break
            if text := child.new_stacks():
                return text
        return ""

    def _set_timer(self, station: Station) -> None:
        if station.timer is not None:
            station.timer.cancel()
            station.timer = None
        if station.life.deadline is not None:
            station.timer = self.loop.call_at(station.life.deadline, self._deadline, station)

    def _deadline(self, station: Station) -> None:
        self._forgive_lateness()
        deadline = station.life.deadline
        if deadline is None or self.loop.time() < deadline:
            self._set_timer(station)
            return
        if station.life.state is State.STARTING:
            self.log.fault(f"{station.slot}: not ready within {self._limits.start_s:g} s: killed")
        self.post(station, Event.DEADLINE)

    # -- what children say --

    def _line(self, child: Child, line: str) -> None:
        self.log.line(child.slot, child.pid, line)

    def _hear(self, child: Child, message: Message) -> None:
        station = self._station(child.token)
        if station is None:
            return
        match message["op"]:
            case "ready":
                child.ready_at = self.loop.time()
                child.heart = hangs.Heart(child.page.heartbeat, child.ready_at)
                self.on_event("child_ready", {"slot": child.slot, "pid": child.pid, "generation": child.generation})
                self.post(station, Event.BECAME_READY)
            case "consumer":
                self._tell_alive()
            case "drained" if message["number"] == child.drain_number:
                self.post(station, Event.DRAINED)
            case "stopped":
                child.abandoned = message["abandoned"]
            case "boot_failed":
                child.boot_failure = (message["code"], message["line"])
            case "stuck":
                self.log.caution(
                    f"{station.slot}: job {message['job_id']} can't be stopped ({message['reason']}): the child is replaced"
                )
                station.outdated = True
                station.leave_s = self.settings.stop_timeout_s
                self.wake()
            case "reaped":
                self._ledger.acknowledge(message["consumer"])
                self.wake()
            case "lost":
                self._route_lost(message["consumer"])
            case "scheduler":
                self.scheduler_said = SchedulerSaid(message["leader"], message["epoch"], message["connected"])
                self.wake()
            case _:
                return

    def _route_lost(self, consumer: str) -> None:
        for child in self._children(Role.WORKER):
            if consumer in child.page.consumers():
                child.channel.send("lost", consumer=consumer)

    def _alive(self) -> list[str]:
        return [name for child in self._children(Role.WORKER) for name in child.page.consumers() if name]

    def _tell_alive(self) -> None:
        alive = self._alive()
        if alive != self._told_alive:
            self._told_alive = alive
            for scheduler in self._children(Role.SCHEDULER):
                scheduler.channel.send("alive", consumers=alive)

    def _brief(self, scheduler: Child) -> None:
        """Everything that a scheduler must know."""
        scheduler.channel.send("alive", consumers=self._alive())
        for said in self._ledger.pending:
            scheduler.channel.send("died", notice=said)

    # -- burials --

    async def _bury(self, station: Station) -> None:
        """A child is gone: nothing of its session may run on; then its jobs are reported, then its slot is judged."""
        child = station.child
        if child is None:
            self._judge(station, Exit(blameless=True))
            return
        status = await self._lay_out(child)
        now = self.loop.time()
        running = child.page.running(now)
        death = self._death(station, child, status)
        if station.role is Role.WORKER:
            detail = (child.stacks + child.new_stacks())[-16384:]
            for consumer, started in zip(child.page.consumers(), running, strict=True):
                if consumer:
                    self._ledger.add(notice(consumer, death, started, detail))
        else:
            self.scheduler_said = SchedulerSaid()
        self._remember(station, child, death, [job.job_id for jobs in running for job in jobs])
        ended = Exit(
            asked=child.asked,
            ran_job=child.page.ran_job,
            ready_for_s=None if child.ready_at is None else now - child.ready_at,
            blameless=status is None
            or (child.boot_failure is not None and child.boot_failure[0] == ExitCode.UNAVAILABLE),
        )
        child.close(writers_gone=True)
        station.child = None
        self._tell_alive()
        self._tell_notices()
        failure = child.boot_failure
        if failure is not None and not self.desired.stopping:
            if not self._booted:
                self.fail(ExitCode(failure[0]) if failure[0] != ExitCode.FAILED else ExitCode.CRASH_LOOP, failure[1])
            else:
                self.log.fault(f"{station.slot} can't start: {failure[1]}")
        self._judge(station, ended)

    async def _lay_out(self, child: Child) -> ExitStatus | None:
        """Hear its last words, kill its session, reap it. None: there never was a process."""
        child.channel.pump()
        if child.pid is None or child.pidfd < 0:
            return None
        # Before the reaping: until then the session's number can't be another's.
        for _ in range(_SESSION_POLLS):
            if process.kill_session(child.pid) == 0:
                break
            await asyncio.sleep(_SESSION_POLL_S)
        return process.reap(child.pidfd)

    def _death(self, station: Station, child: Child, status: ExitStatus | None) -> Death:
        oom = False
        if status is not None and status.signal == "SIGKILL" and not child.asked and not child.hung:
            kills = process.oom_kills()
            oom, self._oom_kills = kills > self._oom_kills, kills
        return Death(status, asked=child.asked, hung=child.hung, oom=oom, reason=station.reason)

    def _remember(self, station: Station, child: Child, death: Death, running: list[str]) -> None:
        status = death.status
        history = self.history.setdefault(station.slot, SlotHistory())
        history.last_exit = LastExit(
            death.shown_cause, status.code if status else None, status.signal if status else None, now_iso()
        )
        if not self.desired.stopping:
            history.restarts += 1
        killed = sorted({*child.abandoned, *running})
        had = f"; jobs that had started: {', '.join(killed)}" if killed else ""
        if not child.asked or killed:
            self.log.caution(f"{station.slot}[{child.pid}] ended: {death.cause}{had}")
        if child.asked and not child.hung and self.desired.stopping:
            self._ending.killed_jobs += killed
        self.on_event("child_exited", {"slot": station.slot, "pid": child.pid, "cause": death.cause, "jobs": killed})

    def _judge(self, station: Station, ended: Exit) -> None:
        verdict, self._record = plan.judge(
            self._record, station.slot, ended, self.desired.workers, self.loop.time(), self._rng
        )
        self.post(station, verdict.event, verdict.until)
        if verdict.event is Event.GIVE_UP:
            self.fail(
                ExitCode.CRASH_LOOP,
                f"crash loop: {len(self._record.bad_exits)} children ended within {plan.CRASH_WINDOW_S:g} s without having done anything",
            )

    def _tell_notices(self) -> None:
        self._last_notices = self.loop.time()
        for scheduler in self._children(Role.SCHEDULER):
            for said in self._ledger.pending:
                scheduler.channel.send("died", notice=said)

    # -- the tick --

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._forgive_lateness()
            now = self.loop.time()
            self._last_tick = now
            self._pet(now)
            self._feel_pulses(now)
            self._reap_strangers()
            if self._ledger.pending and now - self._last_notices > _NOTICES_AGAIN_S:
                self._tell_notices()
            self.wake()

    def _pet(self, now: float) -> None:
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is not None and now - self._last_pet >= watchdog_s / 4:
            self._last_pet = now
            self._notifier.pet()

    def _forgive_lateness(self) -> None:
        """If this process was stopped for a while, that while doesn't count against anyone."""
        now = self.loop.time()
        late_s = now - self._last_tick - TICK_S
        if late_s < LATE_S:
            return
        self._last_tick = now
        self.log.caution(f"the supervisor itself was held up for {late_s:.1f} s; deadlines are moved by as much")
        if self.desired.stop_by is not None:
            self.desired = replace(self.desired, stop_by=self.desired.stop_by + late_s)
        for station in self.stations:
            if station.leave_by is not None:
                station.leave_by += late_s
            if station.life.deadline is not None:
                station.life = replace(station.life, deadline=station.life.deadline + late_s)
                self._set_timer(station)
            if station.child is not None:
                station.child.heart = hangs.forgive(station.child.heart, late_s)

    def _feel_pulses(self, now: float) -> None:
        for station in self.stations:
            child = station.child
            if child is None or child.ready_at is None or station.life.state not in (*slots.SERVING, State.STOPPING):
                continue
            timeout_s = self.settings.hang_timeout_s
            if station.role is Role.SCHEDULER:
                timeout_s = min(timeout_s, SCHEDULER_HANG_S)
            child.heart, pulse = hangs.look(child.heart, child.page.heartbeat, now, timeout_s)
            if pulse is Pulse.HUNG:
                self.post(station, Event.HUNG)
            elif pulse is Pulse.HUNG_ON:
                self.post(station, Event.HUNG_ON)

    def _reap_strangers(self) -> None:
        """Orphans that we adopted, as a subreaper or as PID 1. Not while a child of ours has a pid that we don't know yet."""
        if any(station.child is not None and station.child.pid is None for station in self.stations):
            return
        ours = {
            station.child.pid
            for station in self.stations
            if station.child is not None and station.child.pid is not None
        }
        ours |= {generation.pid for generation in self.generations.values() if generation.phase is not Phase.GONE}
        if self.broker is not None and self.broker.pid is not None:
            ours.add(self.broker.pid)
        process.reap_strangers(ours)

    # -- reconciling --

    def _reconcile(self) -> None:
        self._woken = False
        now = self.loop.time()
        if self._open or self.desired.stopping:
            for step in plan.reconcile(self.desired, [station.view() for station in self.stations], now):
                self._take(step)
        self._check_ready()
        if self.desired.stopping:
            self._check_end(now)
        self.operations.look()
        self._notifier.status(self.one_line())

    def _take(self, step: plan.Step) -> None:
        match step:
            case plan.Add(slot, role, generation):
                # A place without a template to fork from waits for one.
                template = self.generations.get(generation)
                if template is None or template.phase is not Phase.READY:
                    return
                self._ids += 1
                self.stations.append(Station(self._ids, slot, role, generation, Life(since=self.loop.time())))
                self.wake()
            case plan.Drop(place):
                self.stations = [station for station in self.stations if station.id != place]
                self.wake()
            case plan.Leave(place, by):
                for station in self.stations:
                    if station.id == place:
                        station.leave_by = by
                self.wake()
            case plan.Post(place, event, until):
                station = next((station for station in self.stations if station.id == place), None)
                if station is not None and (event is not Event.SPAWN or self._can_fork(station)):
                    self.post(station, event, until)

    def _can_fork(self, station: Station) -> bool:
        template = self.generations.get(station.generation)
        return template is not None and template.phase is Phase.READY

    def _check_ready(self) -> None:
        if self._booted or not self._open or self.desired.stopping:
            return
        scheduler = any(s.role is Role.SCHEDULER and s.life.state is State.READY for s in self.stations)
        if scheduler and self.ready_workers() >= self.desired.workers:
            self._booted = True
            self.log.note(f"ready: {self.one_line()}")
            self._notifier.ready()

    def _check_end(self, now: float) -> None:
        if any(station.role is Role.WORKER for station in self.stations):
            return
        ending = self._ending
        if ending.notices_by is None:
            ending.notices_by = now + LAST_NOTICES_S
        settled = not len(self._ledger) or not self.scheduler_said.connected or now >= ending.notices_by
        if self.desired.scheduler and settled:
            self.edit(scheduler=False)
        if not self.stations:
            self.ended.set()

    # -- views --

    def ready_workers(self) -> int:
        """Slots whose child serves, or is paused because the operator wants it."""
        fine = {State.READY} if self.desired.mode is Mode.RUN else slots.SERVING
        return len(
            {s.slot for s in self.stations if s.role is Role.WORKER and s.leave_by is None and s.life.state in fine}
        )

    def running_jobs(self) -> int:
        return sum(child.page.busy() for child in self._children(Role.WORKER))

    def mode(self) -> str:
        """As `status` shows it."""
        if self.desired.stopping:
            return "stopping"
        if self.desired.mode is Mode.PAUSE:
            return "paused"
        if self.desired.mode is Mode.DRAIN:
            return "drained" if self.drained() else "draining"
        return "running"

    def drained(self) -> bool:
        """Nothing runs and nothing is pending in any worker."""
        return all(
            s.life.state in slots.VACANT or (s.life.state is State.PAUSED and s.life.drained)
            for s in self.stations
            if s.role is Role.WORKER
        )

    def one_line(self) -> str:
        return (
            f"{self.settings.name}: {self.mode()}, {self.ready_workers()}/{self.desired.workers} workers ready,"
            f" generation {self.desired.generation}, {self.running_jobs()} jobs running"
        )

    def _station(self, token: int) -> Station | None:
        return next((s for s in self.stations if s.child is not None and s.child.token == token), None)

    def _children(self, role: Role) -> Iterable[Child]:
        return [
            s.child
            for s in self.stations
            if s.role is role and s.child is not None and s.life.state is not State.EXITED
        ]

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._owned_done)
        return task

    def _owned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of the supervisor itself: it must not supervise on with half its duties done.
            self.loop.call_exception_handler({"message": "the supervisor failed", "exception": error, "task": task})
            self._ending.code = ExitCode.FAILED
            self.ended.set()

    async def _templates_gone(self) -> None:
        for _ in range(100):
            if all(generation.phase is Phase.GONE for generation in self.generations.values()):
                return
            await asyncio.sleep(0.01)
