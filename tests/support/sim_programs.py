"""What runs in a simulated kernel's processes: templates, the processes between, children; each with faults that a seed draws."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from tests.support.sim_kernel import End, File, Life, Listening, MemoryFile, Process, SimKernel
from upnextd.shared import api_meters, messages, scoreboard
from upnextd.shared.messages import (
    Assignment,
    DeclaredApi,
    DeclaredWorker,
    ExecOrder,
    FromChild,
    FromTemplate,
    Imported,
    ImportFailed,
    TemplateOrder,
)
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import WorkerShape, Writer

SHAPE = WorkerShape("work", 2, ("task",))
BEAT_S = 1.0
_REPORTED = 113
_ADOPTION_S = 1.0
_FDS = ("channel", "page", "dump", "output")
_API_FDS = (*_FDS, "listener")
GRACEFUL_S = 2.0
"""How long a process of an Api may take for requests that run when it is to end."""


@dataclass(frozen=True, slots=True)
class Code:
    """What is on disk: a version of the service, and how it behaves."""

    version: int
    importing: str = "works"
    """works, fails, hangs, dies"""
    import_s: float = 0.5
    starting: str = "works"
    """works, dies, never, fails: what its children do before they are ready"""
    apis: tuple[tuple[str, int], ...] = ()
    """Names of its Apis, and in how many processes each is served. Each name has an address of its own."""
    has_workers: bool = True

    @property
    def declared(self) -> tuple[DeclaredApi, ...]:
        return tuple(
            DeclaredApi(
                name=name,
                host="127.0.0.1",
                port=sum(name.encode()),
                path=None,
                processes=processes,
                graceful_timeout_s=GRACEFUL_S,
            )
            for name, processes in self.apis
        )


class World:
    """What the programs share: the code on disk, dice, and what really happened, for the invariants."""

    def __init__(self, kernel: SimKernel, rng: random.Random, roughness: float) -> None:
        self.kernel = kernel
        self.rng = rng
        self.roughness = roughness
        """0: nothing goes wrong by itself."""
        self.code = Code(1)
        self.children: list[Child] = []
        """All that ever began, in order."""
        self.templates: list[Template] = []
        self.reaped: dict[str, int] = {}
        """consumer -> how many times a scheduler has reaped it."""
        self.broken: Callable[[str], None] = lambda what: None
        self.accepted: Callable[[Child], None] = lambda child: None
        """A process of an Api takes connections from now on."""

    def program(self, process: Process, argv: Sequence[str]) -> None:
        """Make a spawned process what its command line says."""
        if "upnextd.forked.template:main" in argv[3] or "upnextd.forked.template" in argv[3]:
            order = messages.decode_order(TemplateOrder, argv[-1])
            self.templates.append(Template(self, process, order))
            return
        assert "exec_child" in argv[3]
        raw = bytes(cast("MemoryFile", process.files["0"]).memory)
        order = messages.decode_order(ExecOrder, raw)
        process.files["channel"] = process.files.pop("3")
        process.files["page"] = process.files.pop("4")
        if order.assignment.api:
            process.files["listener"] = process.files.pop("6")
        process.name = order.assignment.slot
        code = self.code
        child = Child(self, process, order.assignment, code)
        child.reported = True
        match code.importing:
            case "works":
                process.later(code.import_s, child.begin)
            case "hangs":
                return
            case "dies":
                process.later(code.import_s, process.exit, ExitStatus(None, "SIGSEGV"))
            case _:
                process.later(code.import_s, child.boot_failed, 78)

    def by_chance(self, probability: float) -> bool:
        """A fault happens. A draw is taken in any case, so that a calm world goes the same way otherwise."""
        return self.rng.random() < probability * self.roughness

    def short_s(self) -> float:
        """What a step takes: mostly next to nothing, sometimes a while."""
        return self.rng.random() * (0.002 if self.rng.random() < 0.8 else 0.3)


class Template:
    """Imports, then forks in two steps, one order after the other."""

    def __init__(self, world: World, process: Process, order: TemplateOrder) -> None:
        self.world, self.process, self.order = world, process, order
        self.code = world.code
        process.name = f"template-g{order.generation}-v{self.code.version}"
        process.dies_with_parent = True
        process.files["control"] = process.files.pop("3")
        process.on_signal = self._signalled
        process.on_child_end = self._child_ended
        self._busy = True
        self._imported = False
        self._token = 0
        if self.code.importing != "hangs":
            process.later(self.code.import_s, self._import)

    def _signalled(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR2 and not self._imported:
            self._output(b"stack of the import\n")
        else:
            self.process.exit(ExitStatus(None, number.name))

    def _output(self, line: bytes) -> None:
        try:
            self.process.end("1").put(line)
        except OSError:
            return

    def _import(self) -> None:
        if self.code.importing == "dies":
            self.process.exit(ExitStatus(None, "SIGSEGV"))
            return
        if self.code.importing == "fails":
            self.say(ImportFailed(line="ValueError: broken", traceback="Traceback\nValueError: broken"))
            self.process.exit(ExitStatus(78, None))
            return
        self._imported = True
        worker = DeclaredWorker(name=SHAPE.name, concurrency=SHAPE.concurrency, tasks=SHAPE.tasks, redis_url=None)
        self.say(
            Imported(
                layout=scoreboard.LAYOUT,
                name="sim",
                workers=(worker,) if self.code.has_workers else (),
                warnings=(),
                content=f"v{self.code.version}",
                apis=self.code.declared,
            )
        )
        if not self.order.preload:
            self.process.exit(ExitStatus(0, None))
            return
        self.process.end("control").on_readable = self._wake
        self._next()

    def say(self, message: FromTemplate) -> None:
        try:
            self.process.end("control").put(messages.encode(message))
        except OSError:
            self.process.exit(ExitStatus(0, None))

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self.process.later(self.world.short_s(), self._take)

    def _next(self) -> None:
        self._busy = False
        if self.process.end("control").readable:
            self._wake()

    def _take(self) -> None:
        try:
            data, files = self.process.end("control").take(1 << 16)
        except BlockingIOError:
            self._busy = False
            return
        if not data:
            self.process.exit(ExitStatus(0, None))
            return
        assignment = messages.decode_order(Assignment, data)
        self._token = assignment.token
        self.process.files.update(zip(_API_FDS if assignment.api else _FDS, files, strict=True))
        if self.world.by_chance(0.01):
            self.world.kernel.trace(f"{self.process} hangs in a fork hook")
            return
        self.process.later(self.world.short_s(), self._fork, assignment)

    def _fork(self, assignment: Assignment) -> None:
        own = _API_FDS if assignment.api else _FDS
        files: dict[str, File] = {name: self.process.files[name] for name in (*own, "control")}
        refused = self.world.by_chance(0.02)
        middle = None
        if not refused:
            try:
                middle = self.world.kernel.fork(self.process, "middle", files)
            except BlockingIOError:
                refused = True
        for name in own:
            self.process.close(name)
        if middle is None:
            self.say(messages.ForkFailed(token=assignment.token, error="Resource temporarily unavailable"))
            self._next()
            return
        middle.dies_with_parent = True
        Middle(self.world, self, middle, assignment)

    def _child_ended(self, middle: Process) -> None:
        self.process.later(0.0, self._collect, middle)

    def _collect(self, middle: Process) -> None:
        self.world.kernel.wait_for(middle)
        if middle.status != ExitStatus(_REPORTED, None):
            error = f"the forked process ended at once ({middle.status})"
            self.say(messages.ForkFailed(token=self._token, error=error, blameless=False))
        if self.process.alive:
            self._next()


class Middle:
    """Between template and child: forks the child, reports its pid, and ends, at once or after a while."""

    def __init__(self, world: World, template: Template, process: Process, assignment: Assignment) -> None:
        self.world, self.template, self.process, self.assignment = world, template, process, assignment
        process.later(world.short_s(), self._fork)

    def _fork(self) -> None:
        world = self.world
        if world.by_chance(0.02):
            self.process.exit(ExitStatus(1, None))
            return
        files = {name: self.process.files[name] for name in (_API_FDS if self.assignment.api else _FDS)}
        newborn = world.kernel.fork(self.process, self.assignment.slot, files)
        child = Child(world, newborn, self.assignment, self.template.code)
        newborn.on_adopted = child.adopted
        newborn.later(_ADOPTION_S, child.not_adopted)
        if world.by_chance(0.01):
            self.process.exit(ExitStatus(None, "SIGKILL"))
            return
        try:
            self.process.end("control").put(
                messages.encode(messages.Forked(token=self.assignment.token, pid=newborn.pid))
            )
        except OSError:
            self.process.exit(ExitStatus(0, None))
            return
        child.reported = True
        linger_s = world.short_s()
        if world.by_chance(0.1):
            linger_s = world.rng.uniform(0.0, 3.0)
        self.process.later(linger_s, self.process.exit, ExitStatus(_REPORTED, None))


class Child:
    """A worker, a process of an Api, or a scheduler. Faults are drawn when it begins, and happen only while the world is rough."""

    def __init__(self, world: World, process: Process, assignment: Assignment, code: Code) -> None:
        self.world, self.process, self.assignment, self.code = world, process, assignment, code
        self.role = assignment.role
        self.scheduler = self.role == "scheduler"
        self.api = assignment.api
        """Of which Api it is a process; empty for others."""
        self.accepting = False
        self.requests = 0
        """That it answers now."""
        self.begun = False
        self.reported = False
        """The supervisor has been given its pid, or will be."""
        self.ready_at: float | None = None
        self.consumer = ""
        self.paused = assignment.paused
        self.stopping = False
        self.asked = False
        """It was asked to end, by the supervisor or by the adversary."""
        self.obeys = True
        self.running: dict[int, float] = {}
        """cell -> when its job ends by itself."""
        self._beat_on = False
        """It beats, though it doesn't obey."""
        self._drain: int | None = None
        self._unread = b""
        self._alive_known = False
        self._number = 0
        world.children.append(self)

    @property
    def now(self) -> float:
        return self.world.kernel.loop.time()

    @property
    def works(self) -> bool:
        """It is ready and can be steered, and was not asked to end."""
        return (
            self.process.alive
            and self.ready_at is not None
            and not self.asked
            and self.obeys
            and "channel" in self.process.files
        )

    @property
    def fetches(self) -> bool:
        """It is a worker that takes jobs, by its own will."""
        return (
            self.role == "worker"
            and self.process.state is Life.RUNNING
            and not self.process.to_die
            and self.ready_at is not None
            and self.obeys
            and not self.paused
            and not self.stopping
        )

    # -- its start --

    def not_adopted(self) -> None:
        if not self.begun:
            self.process.exit(ExitStatus(0, None))

    def adopted(self) -> None:
        self.process.later(0.0, self.begin)

    def begin(self) -> None:
        """As a process of its own session."""
        if self.begun:
            return
        if "channel" not in self.process.files:
            self.process.exit(ExitStatus(1, None))
            return
        self.begun = True
        process, world = self.process, self.world
        process.session = process.pid
        process.marked = True
        process.dies_with_parent = True
        process.on_signal = self._signalled
        process.end("channel").on_readable = self._wake
        if process.end("channel").readable:
            self._wake()
        starting = self.code.starting if not self.scheduler else "works"
        if world.by_chance(0.06):
            starting = world.rng.choice(("dies", "never", "fails", "cut"))
        boot_s = world.rng.uniform(0.01, 0.6)
        match starting:
            case "dies":
                process.later(boot_s, process.exit, ExitStatus(None, "SIGSEGV"))
            case "fails":
                process.later(boot_s, self.boot_failed, world.rng.choice((1, 69, 78)))
            case "never":
                return
            case "cut":
                process.later(boot_s, process.close, "channel")
            case _:
                process.later(boot_s, self._boot)

    def boot_failed(self, code: int) -> None:
        """It can't start."""
        self.say(messages.BootFailed(code=code, line="it can't start", away=code == 69))
        self.process.exit(ExitStatus(code, None))

    def _boot(self) -> None:
        if self.scheduler and not self._alive_known:
            self.process.later(0.05, self._boot)
            return
        if self.stopping:
            self.process.exit(ExitStatus(0, None))
            return
        page = cast("MemoryFile", self.process.files["page"]).memory
        self.writer = Writer(page, [api_meters.shape(self.api, ())] if self.api else [SHAPE])
        if not self.api:
            self.cells = self.writer.host_of(0)
        if self.role == "worker":
            self.consumer = f"{self.assignment.slot}.{self.assignment.token}"
            self.writer.consumer(0, self.consumer)
            self.say(messages.ConsumerNamed(worker=0, consumer=self.consumer))
        self.ready_at = self.now
        self.say(messages.Ready(paused=self.paused if not self.scheduler else False))
        if self.scheduler:
            self.say(messages.SchedulerReport(leader=True, epoch=1, connected=True, suspects=False))
        elif self.api:
            self._accept_once_resumed()
        else:
            self.process.later(self.world.rng.uniform(0.0, 3.0), self._fetch)
        self._beat()
        self._draw_faults()

    def _draw_faults(self) -> None:
        world = self.world
        if not world.by_chance(0.12):
            return
        fault = world.rng.choice(
            (self._crash, self._crash, self._hang, self._cut, self._disobey, self._stick, self._leave)
        )
        self.process.later(world.rng.uniform(0.0, 12.0), self._fault, fault)

    def _fault(self, fault: Callable[[], None]) -> None:
        if self.world.roughness > 0 and not self.stopping:
            self.world.kernel.trace(f"{self.process}: {fault.__name__}")
            fault()

    def _crash(self) -> None:
        self.asked = True
        self.process.exit(ExitStatus(None, "SIGSEGV"))

    def _hang(self) -> None:
        """Its loop stands: no beat, no answer; TERM does nothing."""
        self.obeys = False
        self.asked = True

    def _cut(self) -> None:
        self.asked = True
        self.lose_channel()

    def lose_channel(self) -> None:
        """Its end of the line is closed, by a job that closes every descriptor, say; it goes on."""
        if "channel" in self.process.files:
            self.process.end("channel").on_readable = None
            self.process.close("channel")

    def _disobey(self) -> None:
        """It beats, but ends by SIGKILL only."""
        self.asked = True
        self.obeys = False
        self._beat_on = True

    def calm_down(self) -> None:
        """One that beats and does nothing else is not the supervisor's to end: it obeys again, and what it ran is over."""
        if self._beat_on and self.process.alive:
            self._beat_on, self.obeys = False, True
            for cell in tuple(self.running):
                self._end_job(cell)
            self._wake()
            if self.role == "worker":
                self._fetch()

    def _stick(self) -> None:
        self.asked = True
        self.say(messages.Stuck(job_id="task:n1-1", reason="C code"))

    def _leave(self) -> None:
        """A job starts processes: one in the child's session, one in its own."""
        for own in (False, True):
            output = self.process.files.get("output")
            try:
                left = self.world.kernel.fork(self.process, "leftover", {} if output is None else {"output": output})
            except BlockingIOError:
                return
            if own:
                left.session = left.pid

    def _beat(self) -> None:
        if self.obeys or self._beat_on:
            self.writer.beat()
            self.process.later(BEAT_S, self._beat)

    # -- what it is sent --

    def _signalled(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR2:
            memory = self.process.files.get("dump")
            if memory is not None:
                cast("MemoryFile", memory).memory.extend(b"a stack\n")
            return
        if number is signal.SIGABRT:
            self.process.exit(ExitStatus(None, "SIGABRT"))
            return
        self.asked = True
        if self.obeys:
            self._stop(self.assignment.stop_timeout_s)

    def _wake(self) -> None:
        self.process.later(self.world.short_s(), self._read)

    def _read(self) -> None:
        while self.process.alive and "channel" in self.process.files and self.obeys:
            try:
                data, _ = self.process.end("channel").take(1 << 16)
            except BlockingIOError:
                return
            if not data:
                self.process.exit(ExitStatus(1, None))
                return
            self._unread += data
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                self._obey(messages.decode(line))

    def _obey(self, message: messages.Message) -> None:
        match message:
            case messages.Pause() if not self.api:
                self.paused, self._drain = True, None
            case messages.Resume():
                self.paused, self._drain = False, None
                self._accept_once_resumed()
            case messages.Drain():
                self.paused, self._drain = True, message.number
                self.process.later(self.world.short_s(), self._quiet, message.number)
                self._check_drained()
            case messages.Stop():
                self.asked = True
                self._stop(message.grace_s)
            case messages.DescribeTasks():
                self.say(messages.TasksDescribed(number=message.number, text="tasks"))
            case messages.Alive():
                self._alive_known = True
            case messages.Died():
                self.process.later(self.world.short_s() + 0.01, self._reap, message.consumer)
            case _:
                return

    def _reap(self, consumer: str) -> None:
        dead = next((child for child in self.world.children if child.consumer == consumer), None)
        if dead is None or (dead.process.alive and not dead.process.to_die):
            self.world.broken(f"{consumer} is reported dead and lives")
        self.world.reaped[consumer] = self.world.reaped.get(consumer, 0) + 1
        self.say(messages.Reaped(consumer=consumer))

    def say(self, message: FromChild) -> None:
        channel = self.process.files.get("channel")
        if channel is None:
            return
        try:
            cast("End", channel).put(messages.encode(message) + b"\n")
        except BlockingIOError:
            return
        except OSError:
            self.process.exit(ExitStatus(1, None))

    # -- requests --

    def _accept_once_resumed(self) -> None:
        if self.api and not self.paused and self.ready_at is not None and not self.accepting and not self.stopping:
            self.process.later(self.world.short_s(), self._accept)

    def _accept(self) -> None:
        if self.stopping or self.accepting or not self.obeys:
            return
        listener = cast("Listening", self.process.files["listener"])
        listener.open = True
        listener.on_refuse.append(self._refused)
        self.accepting = True
        self.world.kernel.trace(f"{self.process} accepts")
        self.world.accepted(self)
        self._request()

    def _refused(self) -> None:
        """Its socket is shut: an event loop closes a server for that."""
        if self.accepting and self.process.state is Life.RUNNING and not self.process.to_die and self.obeys:
            self.world.broken(f"{self.process} accepts, and connects are refused")
        self.accepting = False

    def _request(self) -> None:
        if not self.accepting or not self.obeys:
            return
        self.requests += 1
        self.process.later(self.world.rng.uniform(0.01, 3.0), self._answered)
        self.process.later(self.world.rng.uniform(0.5, 6.0), self._request)

    def _answered(self) -> None:
        self.requests -= 1
        self.writer.count(True)
        if self.stopping and not self.requests:
            self._end([])

    def _drain_requests(self, grace_s: float) -> None:
        self.accepting = False
        if self.requests:
            self.process.later(min(grace_s, GRACEFUL_S), self._end, [])
        else:
            self.process.later(self.world.short_s(), self._end, [])

    # -- jobs --

    def _quiet(self, number: int) -> None:
        """Its last fetch is over."""
        if self.paused and self.obeys and not self.stopping:
            self.say(messages.DrainBegun(number=number))

    def _fetch(self) -> None:
        if self.stopping or not self.obeys:
            return
        if not self.paused:
            cell = next((number for number in range(SHAPE.concurrency) if number not in self.running), None)
            if cell is not None:
                self._number += 1
                long = self.world.rng.random() < 0.1
                lasts_s = self.world.rng.uniform(4.0, 12.0) if long else self.world.rng.uniform(0.01, 1.0)
                self.cells.started(
                    cell,
                    0,
                    ord("b"),
                    self._number,
                    self.assignment.token,
                    ord("n"),
                    self._number,
                    self.assignment.token,
                )
                self.running[cell] = self.now + lasts_s
                self.process.later(lasts_s, self._end_job, cell)
        self.process.later(self.world.rng.uniform(0.5, 6.0), self._fetch)

    def _end_job(self, cell: int) -> None:
        if cell not in self.running or not self.obeys:
            return
        del self.running[cell]
        self.cells.ended(cell, True)
        self._check_drained()
        if self.stopping and not self.running:
            self._end([])

    def _check_drained(self) -> None:
        if self._drain is not None and not self.running:
            self.say(messages.Drained(number=self._drain))
            self._drain = None

    def _stop(self, grace_s: float) -> None:
        if self.scheduler or self.ready_at is None:
            self.stopping = True
            self.process.later(self.world.short_s(), self.process.exit, ExitStatus(0, None))
            return
        self.stopping = True
        if self.api:
            self._drain_requests(grace_s)
        elif not self.running:
            self._end([])
        else:
            self.process.later(grace_s, self._give_up)

    def _give_up(self) -> None:
        self._end([f"task:n{cell}" for cell in self.running])

    def _end(self, abandoned: list[str]) -> None:
        for cell in tuple(self.running):
            del self.running[cell]
            self.cells.ended(cell, False)
        self.say(messages.Stopped(abandoned=tuple(abandoned)))
        self.process.later(self.world.short_s(), self.process.exit, ExitStatus(0, None))
