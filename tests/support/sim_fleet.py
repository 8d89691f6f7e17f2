"""One simulated life of a daemon: the real supervisor on a simulated kernel, operators from a seed, and what must hold.

A seed decides everything: the order of what happens at once, what processes do wrong, what operators want. The same seed gives the same
trace to the letter. `report` plays one; a failure comes with its trace, and with the operators' steps that are left when those that don't
matter are dropped.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from tests.support.sim_kernel import Life, Process, SimKernel, SimLoop
from tests.support.sim_programs import Child, Code, World
from upnext.control import protocol
from upnext.control.exits import ExitCode
from upnext.control.slot_names import api_of, api_slots
from upnextd import main as daemon
from upnextd.control.server import CommandError
from upnextd.rules import slots
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import State
from upnextd.settings import Settings
from upnextd.shared import scoreboard
from upnextd.shared.logs import Log
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.listeners import address_of
from upnextd.supervisor.operations import Operation
from upnextd.supervisor.supervisor import Supervisor
from upnextd.supervisor.systemd import Notifier

STOP_TIMEOUT_S = 4.0
IMPORT_TIMEOUT_S = 6.0
START_TIMEOUT_S = 8.0
HANG_TIMEOUT_S = 4.0
RELOAD_TIMEOUT_S = 20.0
SETTLED_S = 120.0
"""How long wish and reality may differ once nothing disturbs: back-off (30 s), a hung template (15 s), imports, starts, a reload."""
NOW_S = 9.0
"""A stop at once: a child's end may wait 5 s for its parent's, a scheduler 2 s for what is reported, templates have 1 s."""
ZOMBIE_S = 25.0
"""A child that can't be buried for want of descriptors may be a zombie for 20 s."""
UNKILLABLE_S = 12.0
"""What SIGKILL doesn't end is left behind after 10 s."""
_TRACE_LINES = 400


class BrokenError(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that an operator or an adversary does, so many seconds after the step before."""

    after_s: float
    what: str
    number: int
    code: Code

    def __str__(self) -> str:
        return f"+{self.after_s:.3f} s {self.what} {self.number} {self.code}"


@dataclass(frozen=True, slots=True)
class Script:
    """What a seed decides before anything runs."""

    kind: str
    workers: int
    preload: bool
    roughness: float
    code: Code
    steps: tuple[Step, ...]
    end: str


def script(seed: int) -> Script:
    """Most seeds do anything at all; some do one kind of thing, which anything at all seldom comes to."""
    rng = random.Random(f"{seed}: script")
    kind = rng.choices(("anything", "reloads", "modes", "hung", "loops"), (70, 10, 8, 7, 5))[0]
    maker = {"anything": _anything, "reloads": _reloads, "modes": _modes, "hung": _hung, "loops": _loops}[kind]
    steps = tuple(maker(rng))
    first = Code(1, "works", rng.choice((0.1, 1.0)))
    if rng.random() < _HAVE_APIS:
        first = _with_apis(rng, first)
        steps = tuple(replace(step, code=_with_apis(rng, step.code, first)) for step in steps)
    roughness = 0.0 if kind in ("reloads", "loops") else rng.choice((0.0, 0.5, 1.0, 3.0))
    end = "settle" if kind == "loops" else rng.choice(("settle", "settle", "stop", "now"))
    preload = rng.random() < (0.3 if kind == "loops" else 0.85)
    return Script(kind, rng.randint(1, 4), preload, roughness, first, steps, end)


def _code(rng: random.Random, version: int) -> Code:
    return Code(
        version,
        rng.choices(("works", "fails", "hangs", "dies"), (12, 2, 3, 1))[0],
        rng.choice((0.1, 0.5, 3.0)),
        rng.choices(("works", "dies", "never", "fails"), (12, 1, 1, 1))[0],
    )


def _with_apis(rng: random.Random, code: Code, former: Code | None = None) -> Code:
    """The same with Apis: those of `former` mostly; sometimes without Workers."""
    if former is not None and rng.random() < 0.7:
        return replace(code, apis=former.apis, has_workers=former.has_workers)
    apis = rng.choice(((("front", 1),), (("front", 2),), (("front", 1), ("back", 1)), (("back", 2),)))
    return replace(code, apis=apis, has_workers=rng.random() < 0.85)


def _after_s(rng: random.Random) -> float:
    return rng.choice((0.0, rng.random() * 0.01, rng.random(), rng.uniform(0.0, 4.0), rng.uniform(0.0, 12.0)))


def _anything(rng: random.Random) -> Iterator[Step]:
    for version in range(2, 2 + rng.randint(2, 10)):
        yield Step(_after_s(rng), rng.choice(_WHATS), rng.randrange(1000), _code(rng, version))


def _reloads(rng: random.Random) -> Iterator[Step]:
    """Reloads, of code that works or doesn't, and restarts: no worker and no process of an Api may be missed meanwhile."""
    for version in range(2, 2 + rng.randint(1, 3)):
        yield Step(rng.uniform(1.0, 15.0), rng.choice(("reload", "hup")), 0, _code(rng, version))
        if rng.random() < 0.3:
            yield Step(rng.uniform(0.0, 10.0), "restart", 0, Code(version))


def _modes(rng: random.Random) -> Iterator[Step]:
    for _ in range(rng.randint(2, 6)):
        what = rng.choice(("pause", "drain", "drain", "drain_exit", "resume", "tstp", "cont", "cont"))
        yield Step(_after_s(rng) / 2, what, 0, Code(1))


def _hung(rng: random.Random) -> Iterator[Step]:
    """A template that answers nothing while a child is wanted of it."""
    yield Step(rng.uniform(1.0, 4.0), "stop_template", 0, Code(1))
    for what in rng.choice((("scale",), ("kill_worker",), ("restart",), ("kill_worker", "scale"))):
        yield Step(rng.random(), what, rng.randrange(1000), Code(1))
    yield Step(rng.choice((0.0, rng.random(), rng.uniform(0.0, 8.0))), "status", 0, Code(1))


def _loops(rng: random.Random) -> Iterator[Step]:
    """Code that doesn't start, taken in by a worker that is replaced while others work."""
    yield Step(rng.uniform(8.0, 12.0), "write_code", 0, Code(2, rng.choice(("fails", "dies")), 0.1, "dies"))
    yield Step(0.1, "kill_worker", rng.randrange(1000), Code(2))
    yield Step(rng.uniform(20.0, 45.0), "status", 0, Code(2))


_HAVE_APIS = 0.4
"""Of the seeds, so many have services with Apis."""
_SIGNALS = {
    "ttin": signal.SIGTTIN,
    "ttou": signal.SIGTTOU,
    "tstp": signal.SIGTSTP,
    "cont": signal.SIGCONT,
    "hup": signal.SIGHUP,
}
_MODES: dict[str, tuple[str, dict[str, Any], Mode]] = {
    "pause": ("pause", {}, Mode.PAUSE),
    "drain": ("drain", {"exit": False}, Mode.DRAIN),
    "drain_exit": ("drain", {"exit": True}, Mode.DRAIN_EXIT),
    "resume": ("resume", {}, Mode.RUN),
}
_SLOTS = ("worker-1", "worker-2", "scheduler", "api-front-1", "api-front-2")
_RANK = (Mode.RUN, Mode.PAUSE, Mode.DRAIN, Mode.DRAIN_EXIT)
_COMMANDS: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "scale": lambda number: ("scale", {"workers": number % 5}),
    "reload": lambda number: ("reload", {"abort": False}),
    "abort": lambda number: ("reload", {"abort": True}),
    "restart": lambda number: ("restart", {"slot": None}),
    "restart_one": lambda number: ("restart", {"slot": _SLOTS[number % len(_SLOTS)]}),
    "dump": lambda number: ("dump", {"slot": "worker-1"}),
    "status": lambda number: ("status", {}),
}
_OPERATOR = (*_COMMANDS, *_MODES, *_SIGNALS)
_ADVERSARY = (
    "kill_worker", "kill_worker", "term_worker", "stop_worker", "kill_scheduler", "kill_template", "stop_template", "cut_worker",
    "kill_middle", "scarce", "plenty", "write_code", "unkillable", "kill_api", "stop_api", "cut_api", "kill_apis",
)  # fmt: skip
_WHATS = (*_OPERATOR, *_OPERATOR, *_ADVERSARY)


@dataclass
class Asked:
    """An operation that an operator waits for."""

    what: str
    step: Step
    operation: Operation
    begun_at: float
    generation: int


@dataclass
class Run:
    """One life. `main` plays it."""

    seed: int
    skipped: frozenset[int] = frozenset()
    plan: Script | None = None
    """In the place of the seed's; dice are the seed's all the same."""
    lines: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.script = self.plan or script(self.seed)
        self.loop = SimLoop(random.Random(f"{self.seed}: loop"), self._quiet)
        self.kernel = SimKernel(self.loop, random.Random(f"{self.seed}: kernel"), self._program, self.trace)
        self.world = World(self.kernel, random.Random(f"{self.seed}: world"), self.script.roughness)
        self.world.code = self.script.code
        self.world.broken = self._break
        self.world.accepted = self._check_accepted
        self.asked: list[Asked] = []
        self.failure: str | None = None
        self.ordered_end_by: float | None = None
        self.apis_served: dict[str, int] = {}
        """Name of an Api -> the most of its wanted processes that were ready at once."""
        self.stopped_workers: set[int] = set()
        """Instances of workers that served when an ordinary stop was asked for."""
        self.wish = Mode.RUN
        """What the operators want, by the rank of modes, kept apart from the daemon's own table."""

    # -- telling --

    def trace(self, text: str) -> None:
        self.lines.append(f"{self.loop.time():12.6f}  {text}")

    def write(self, line: bytes) -> None:
        """The daemon's log."""
        text = line.decode().rstrip("\n")
        self.trace(f"log: {text}")
        if "should not happen" in text:
            self._break(text)
        if "crash loop:" in text and "the others go on" not in text and "falling back" not in text:
            self._check_nothing_works(text)

    def _break(self, what: str) -> None:
        if self.failure is None:
            self.failure = what
            self.trace(f"BROKEN: {what}")

    def _raise(self) -> None:
        if self.failure is not None:
            raise BrokenError(self.failure)

    def _program(self, process: Process, argv: Any) -> None:
        self.world.program(process, argv)

    # -- the run --

    async def main(self) -> None:
        loop = self.loop
        loop.set_exception_handler(self._loop_failed)
        self.supervisor = Supervisor(
            _settings(self.script),
            "0123456789abcdef",
            Log(cast("Any", self), as_json=False, timestamps=False),
            Notifier({}),
            self.kernel,
        )
        self.commands = daemon.commands_of(self.supervisor)
        daemon.watch_signals(loop, self.supervisor, cast("Any", SimpleNamespace(ask=lambda: None)))
        life = loop.create_task(self.supervisor.run())
        story = loop.create_task(self._story())
        await asyncio.wait((life, story), return_when=asyncio.FIRST_COMPLETED)
        if not life.done():
            await story
            await asyncio.wait((life,), timeout=2.0)
        self._raise()
        if not life.done():
            raise BrokenError(f"the daemon has not ended: {self._picture()}")
        story.cancel()
        self.trace(f"the daemon ended with {life.result()}")
        self._check_end(life.result())
        self._raise()

    def _loop_failed(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._break(f"{context['message']}: {error!r}")
        if error is not None and error.__traceback__ is not None:
            frame = error.__traceback__
            while frame.tb_next is not None:
                frame = frame.tb_next
            self.trace(f"at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}")

    async def _story(self) -> None:
        for number, step in enumerate(self.script.steps):
            if number in self.skipped:
                continue
            await asyncio.sleep(step.after_s)
            self._raise()
            self.trace(f"step {number}: {step}")
            self._do(step)
        self._raise()
        if self.script.end == "settle":
            await self._settle()
        elif self.script.end == "stop":
            await self._order_end("stop", {"now": False}, STOP_TIMEOUT_S + NOW_S)
            return
        await self._order_end("stop", {"now": True}, NOW_S)

    async def _order_end(self, method: str, params: dict[str, Any], within_s: float) -> None:
        if any(process.unkillable_s for process in self.kernel.processes.values()):
            within_s += UNKILLABLE_S
        self.trace(f"{method} {params}")
        # Without a descriptor, every burial waits for one: bounded, but not by this deadline.
        self.kernel.scarce = False
        self.ordered_end_by = self.loop.time() + within_s
        self.stopped_workers = {
            i.id
            for i in self.supervisor.fleet.instances
            if i.role is Role.WORKER and i.leave_by is None and i.life.state in (State.READY, State.PAUSED)
        }
        self._ask(Step(0, method, 0, self.world.code), method, params)
        await asyncio.sleep(within_s)

    # -- steps --

    def _do(self, step: Step) -> None:
        for do in (self._operate, self._disturb):
            if do(step):
                return
        raise AssertionError(step.what)

    def _operate(self, step: Step) -> bool:
        """-> whether it is an operator's step."""
        if step.what in _SIGNALS:
            self._send_signal(step)
        elif step.what in _MODES:
            self._change_mode(step)
        elif step.what in _COMMANDS:
            if step.what == "reload":
                self.world.code = step.code
            method, params = _COMMANDS[step.what](step.number)
            self._ask(step, method, params)
        else:
            return False
        return True

    def _send_signal(self, step: Step) -> None:
        if step.what == "hup":
            self.world.code = step.code
        elif step.what == "tstp" and self.wish is Mode.RUN:
            self.wish = Mode.PAUSE
        elif step.what == "cont" and self.wish is Mode.PAUSE:
            self.wish = Mode.RUN
        self.loop.signal_handlers[_SIGNALS[step.what]]()

    def _change_mode(self, step: Step) -> None:
        method, params, wish = _MODES[step.what]
        if self._ask(step, method, params) and (wish is Mode.RUN or _RANK.index(wish) > _RANK.index(self.wish)):
            self.wish = wish

    def _ask(self, step: Step, method: str, params: dict[str, Any]) -> bool:
        """-> whether it was taken."""
        request = protocol.Request(1, method, params)
        try:
            answer = self.commands.answer(request, params, cast("Any", None))
        except CommandError as error:
            self.trace(f"{method} refused: {error}")
            return False
        if not isinstance(answer, dict):
            self.loop.create_task(self._quietly(answer))
            return True
        if "op_id" in answer:
            operation = self.supervisor.fleet.operations.find(answer["op_id"])
            assert operation is not None
            asked = Asked(step.what, step, operation, self.loop.time(), self.supervisor.fleet.desired.generation)
            self.asked.append(asked)
            operation.watchers.add(lambda changed: self._progress(asked, changed))
        return True

    async def _quietly(self, answer: Any) -> None:
        try:
            await answer
        except CommandError as error:
            self.trace(f"refused: {error}")

    def _disturb(self, step: Step) -> bool:
        """-> whether it is an adversary's step."""
        if step.what not in _ADVERSARY:
            return False
        match step.what:
            case "scarce" | "plenty":
                self.kernel.scarce = step.what == "scarce"
            case "write_code":
                self.world.code = step.code
            case "kill_template" | "stop_template":
                self._hit([t.process for t in self.world.templates], step)
            case "kill_middle":
                self._hit([p for p in self.kernel.processes.values() if p.name == "middle"], step)
            case _:
                self._hurt(step)
        return True

    def _hit(self, among: Sequence[Process], step: Step) -> None:
        living = [process for process in among if process.alive]
        if living:
            number = signal.SIGSTOP if step.what.startswith("stop") else signal.SIGKILL
            living[step.number % len(living)].deliver(number)

    def _hurt(self, step: Step) -> None:
        """Something happens to a child, or to all of a role."""
        _, _, role = step.what.rpartition("_")
        role = role if role in ("scheduler", "api") else "api" if role == "apis" else "worker"
        living = [c for c in self.world.children if c.process.alive and c.role == role]
        if not living:
            return
        victim = living[step.number % len(living)]
        victim.asked = True
        match step.what:
            case "kill_apis":
                for one in living:
                    one.asked = True
                    one.process.deliver(signal.SIGKILL)
            case "unkillable":
                victim.process.unkillable_s = (step.number % 150) / 10
            case "cut_worker" | "cut_api":
                victim.lose_channel()
            case "term_worker":
                victim.process.deliver(signal.SIGTERM)
            case _:
                self._hit([victim.process], step)

    # -- calm --

    async def _settle(self) -> None:
        """Nothing disturbs any more: wish and reality meet, and everything that was asked for ends."""
        self.world.roughness = 0.0
        self.kernel.scarce = False
        for process in tuple(self.kernel.processes.values()):
            process.unkillable_s = 0.0
            if process.state is Life.STOPPED and not process.name.startswith("template"):
                process.deliver(signal.SIGCONT)
        for child in self.world.children:
            child.calm_down()
        self.world.code = Code(100_000, apis=self.script.code.apis, has_workers=self.script.code.has_workers)
        self.trace("calm")
        if self.wish is Mode.DRAIN_EXIT:
            self.ordered_end_by = self.loop.time() + SETTLED_S
            await self._within(SETTLED_S, lambda: "a drain that ends the daemon has not ended it")
            return
        if self._expects_end():
            return
        await self._within(SETTLED_S, self._unsteered)
        self._ask(Step(0, "reload", 0, self.world.code), "reload", {"abort": False})
        await self._within(SETTLED_S, self._unsettled)
        if self.wish is not Mode.RUN:
            self.wish = Mode.RUN
            self._ask(Step(0, "resume", 0, self.world.code), "resume", {})
            await self._within(SETTLED_S, self._unsettled)
        for asked in self.asked:
            if not asked.operation.ended.is_set():
                raise BrokenError(f"{asked.what} has not ended: {asked.operation.progress}")

    def _expects_end(self) -> bool:
        return self.supervisor.fleet.desired.stopping

    async def _within(self, seconds: float, differs: Callable[[], str | None]) -> None:
        by = self.loop.time() + seconds
        while (what := differs()) is not None:
            self._raise()
            if self.loop.time() > by:
                raise BrokenError(f"{what} after {seconds:g} s: {self._picture()}")
            await asyncio.sleep(0.5)

    def _unsettled(self) -> str | None:
        """What is not as wanted, by the daemon's word and by what really runs."""
        supervisor = self.supervisor
        desired = supervisor.fleet.desired
        if desired.stopping:
            return None
        if desired.mode is not self.wish:
            self._break(f"the operators want {self.wish}, the daemon {desired.mode}")
        serving = [c for c in self.world.children if c.process.alive and c.ready_at is not None and not c.stopping]
        workers = [c for c in serving if c.role == "worker"]
        wanted = desired.workers if self.world.code.has_workers else 0
        if len(workers) != wanted or supervisor.fleet.ready_workers() != wanted:
            return f"{wanted} workers are wanted, {len(workers)} serve, {supervisor.fleet.ready_workers()} are counted"
        if len([c for c in serving if c.scheduler]) != 1:
            return "there is not one scheduler"
        if (what := next(filter(None, map(self._child_differs, serving)), None)) is not None:
            return what
        if (what := self._apis_differ(serving)) is not None:
            return what
        if len(supervisor.fleet.instances) != wanted + 1 + sum(number for _, number in self.world.code.apis):
            return "there are other places than those that are wanted"
        if len(supervisor.fleet.pending_notices):
            return "deaths are not reported"
        if strays := self._strays():
            return f"there are others: {strays}"
        if any(not asked.operation.ended.is_set() for asked in self.asked):
            return "an operation is under way"
        return None

    def _apis_differ(self, serving: Sequence[Child]) -> str | None:
        for api in self.world.code.declared:
            there = {c.assignment.slot for c in serving if c.api == api.name and c.accepting}
            if there != set(api_slots([(api.name, api.processes)])):
                return f"{api.processes} processes of {api.name} are wanted, {sorted(there)} take connections"
            if self.supervisor.fleet.listeners.refuses(address_of(api)):
                return f"connects to {api.name} are refused"
        return None

    def _child_differs(self, child: Child) -> str | None:
        if not child.obeys or "channel" not in child.process.files:
            return f"{child.process} can't be steered"
        if child.code.version != self.world.code.version:
            return f"{child.process} runs version {child.code.version}"
        if child.role == "worker" and child.paused != (self.wish is not Mode.RUN):
            return f"{child.process} is paused: {child.paused}, and {self.wish} is wanted"
        return None

    def _unsteered(self) -> str | None:
        """A child that counts and can't be reached, though it could be replaced."""
        if self.supervisor.fleet.template_problem() is not None:
            return None
        counting = {child.pid for child in self._children() if child.ready_at is not None and not child.asked}
        for child in self.world.children:
            if child.process.alive and child.process.pid in counting and "channel" not in child.process.files:
                return f"{child.process} counts, and has no channel"
        return None

    def _strays(self) -> list[Process]:
        """Processes that belong to nothing."""
        known = {child.pid for child in self._children()} | {
            g.pid for g in self.supervisor.fleet.generations.values() if g.living
        }
        left = [p for p in self.kernel.processes.values() if p.pid not in known and p.name != "leftover"]
        # A template that is stopped reaps nothing; it is replaced when something is wanted of it.
        left = [p for p in left if p.parent is None or p.parent.state is not Life.STOPPED]
        # One whose pid was lost with the process that forked it, and that has closed its channel, can't be found before the daemon's end.
        lost = {c.process for c in self.world.children if not c.reported and "channel" not in c.process.files}
        left = [p for p in left if p not in lost]
        return left + [p for p in self.kernel.processes.values() if p.name == "leftover" and p.state is Life.ZOMBIE]

    def _children(self) -> Iterator[Any]:
        for instance in self.supervisor.fleet.instances:
            if instance.child is not None:
                yield instance.child

    # -- what must hold --

    def _quiet(self) -> None:
        """At every moment at which nothing is ready."""
        if self.failure is not None:
            raise BrokenError(self.failure)
        now = self.loop.time()
        if self.ordered_end_by is not None and now > self.ordered_end_by + 1.0:
            raise BrokenError(f"the daemon has not ended in time: {self._picture()}")
        if not self.kernel.scarce:
            # A burial without a descriptor takes 20 s, and may be followed by another's.
            self._check_zombies(ZOMBIE_S)
        if self.script.kind == "reloads":
            self._check_reload_keeps_up()
        self._check_stop_begins_with_apis()

    def _check_reload_keeps_up(self) -> None:
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None or not supervisor.fleet.booted or supervisor.fleet.desired.stopping:
            return
        ready = len(
            {
                c.assignment.slot
                for c in self.world.children
                if c.ready_at is not None and c.process.alive and not c.stopping and c.role == "worker"
            }
        )
        if ready < self._kept_workers():
            raise BrokenError(f"{ready} of {supervisor.fleet.desired.workers} workers serve during a reload")
        self._check_apis_keep_up(supervisor.fleet)

    def _check_apis_keep_up(self, fleet: Fleet) -> None:
        """Of each wanted Api, no fewer processes serve than did before; new ones may still come."""
        for name, processes in fleet.desired.apis:
            ready = [i for i in fleet.instances if i.life.state is State.READY and i.leave_by is None]
            serve = len({i.slot for i in ready if i.role is Role.API and api_of(i.slot) == name})
            most = min(processes, max(serve, self.apis_served.get(name, 0)))
            if serve < most:
                raise BrokenError(f"{serve} of {most} processes of {name} serve during a reload")
            self.apis_served[name] = most
        wanted = dict(fleet.desired.apis)
        self.apis_served = {name: most for name, most in self.apis_served.items() if name in wanted}

    def _kept_workers(self) -> int:
        """How many must serve: none where the code has none, or had none until a reload that is under way."""
        fleet = self.supervisor.fleet
        numbers = {fleet.desired.generation, fleet.rollouts.current.former if fleet.rollouts.current else 0}
        return fleet.desired.workers if all(fleet.has_workers(number) for number in numbers) else 0

    def _check_accepted(self, child: Child) -> None:
        """A process of an Api takes connections: no worker of older code may fetch what its requests submit."""
        generation = child.assignment.generation
        older = [c for c in self.world.children if c.fetches and c.assignment.generation < generation]
        if older:
            self._break(f"{child.process} takes connections, and {older[0].process} of older code fetches")

    def _check_stop_begins_with_apis(self) -> None:
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None or supervisor.fleet.desired.mode is not Mode.STOP:
            return
        apis = [i for i in supervisor.fleet.instances if i.role is Role.API and i.life.state not in slots.VACANT]
        asked = [
            i for i in supervisor.fleet.instances if i.id in self.stopped_workers and i.life.state is State.STOPPING
        ]
        if apis and asked:
            raise BrokenError(f"{asked[0].slot} was asked to stop before {apis[0].slot} had ended")

    def _progress(self, asked: Asked, operation: Operation) -> None:
        progress = operation.progress
        self.trace(f"{asked.what}: {progress.text}")
        if not progress.done or not progress.ok or self.supervisor.fleet.desired.stopping:
            return
        supervisor = self.supervisor
        running = [
            c
            for c in self.world.children
            if c.running and c.process.state is Life.RUNNING and c.obeys and not c.process.to_die
        ]
        match asked.what:
            case "scale" if supervisor.fleet.ready_workers() != self._scaled_to(asked.step):
                self._break(f"scaled, it says, with {supervisor.fleet.ready_workers()} ready")
            case "drain" | "drain_exit" if running:
                self._break(f"drained, it says, and {running[0].process} runs jobs")
            case "reload" if (
                progress.data is not None and progress.data.get("generation") != supervisor.fleet.desired.generation
            ):
                self._break(
                    f"reloaded, it says: {progress.data}, and generation {supervisor.fleet.desired.generation} is wanted"
                )
            case _:
                return

    def _scaled_to(self, step: Step) -> int:
        return step.number % 5 if self.supervisor.fleet.desired.has_workers else 0

    def _check_nothing_works(self, line: str) -> None:
        """A crash loop ends the daemon only when no worker works; and no process of an Api, but where workers loop."""
        generation = self.supervisor.fleet.desired.generation
        spared = ("worker",) if " workers ended" in line else ("worker", "api")
        for child in self.world.children:
            if (
                child.role not in spared
                or not child.works
                or child.process.state is not Life.RUNNING
                or child.process.to_die
            ):
                continue
            if (
                child.assignment.generation == generation
                and child.ready_at is not None
                and self.loop.time() - child.ready_at > 6.0
            ):
                self._break(f"{child.process} works, and the daemon ends: {line}")

    def _check_end(self, code: int) -> None:
        allowed = (
            {ExitCode.OK, ExitCode.TIMEOUT}
            if self.ordered_end_by is not None or self.wish is Mode.DRAIN_EXIT
            else set[int]()
        )
        text = "\n".join(self.lines)
        if code not in allowed and code not in (ExitCode.CRASH_LOOP, ExitCode.CONFIG, ExitCode.UNAVAILABLE):
            raise BrokenError(f"the daemon ended with {code} without an order")
        if code not in allowed and self.supervisor.fleet.booted and code != ExitCode.CRASH_LOOP:
            raise BrokenError(f"the daemon ended with {code} after it had been ready")
        if code == ExitCode.CRASH_LOOP and "crash loop:" not in text and self.supervisor.fleet.booted:
            raise BrokenError("the daemon ended as by a crash loop")
        left = [process for process in self.kernel.processes.values() if process.alive]
        if left:
            raise BrokenError(f"they live on: {left}")
        self._check_zombies(10.0)
        for asked in self.asked:
            if not asked.operation.ended.is_set() and asked.what != "reload":
                raise BrokenError(f"{asked.what} has not ended: {asked.operation.progress}")

    def _check_zombies(self, older_than_s: float) -> None:
        before = self.loop.time() - older_than_s
        zombies = [p for p in self.kernel.supervisor.children if p.state is Life.ZOMBIE and p.waits_since < before]
        if zombies:
            raise BrokenError(f"zombies are left: {zombies}")

    def _picture(self) -> str:
        supervisor = self.supervisor
        lives = [
            f"{i.slot} g{i.generation} {i.life.state.name} pid {i.child.pid if i.child else None}"
            for i in supervisor.fleet.instances
        ]
        living = [f"{p!r} {p.state.value} of {p.parent!r}" for p in self.kernel.processes.values()]
        return f"{supervisor.fleet.desired}; {lives}; {living}; {supervisor.fleet.template_problem()}"


def _settings(script: Script) -> Settings:
    return Settings(
        service="s.py", name="sim", redis_url="redis://sim", namespace="default", socket=Path("/sim/ctl"), state_dir=Path("/sim"),
        runtime_dir=Path("/sim"), workers=script.workers, only=(), stop_timeout_s=STOP_TIMEOUT_S, hang_timeout_s=HANG_TIMEOUT_S,
        reload_timeout_s=RELOAD_TIMEOUT_S, import_timeout_s=IMPORT_TIMEOUT_S, boot_timeout_s=5.0, warnings=(), metrics=None,
        max_jobs=None, max_rss_bytes=None,
        preload=script.preload, canary_s=1.0, start_timeout_s=START_TIMEOUT_S, log_format="text", log_file=None, child_env={},
    )  # fmt: skip


def play(seed: int, skipped: frozenset[int] = frozenset(), plan: Script | None = None) -> Run:
    """Play one life to its end. `Run.failure` says what did not hold, `Run.lines` is the trace."""
    run = Run(seed, skipped, plan)
    loop = run.loop
    asyncio.set_event_loop(loop)
    try:
        with mock.patch.object(scoreboard, "_monotonic", loop.time):
            loop.run_until_complete(run.main())
    except AssertionError as failed:
        run.failure = run.failure or str(failed)
    finally:
        asyncio.set_event_loop(None)
        _abandon(loop)
    return run


def _abandon(loop: SimLoop) -> None:
    loop.quiet = None
    for task in asyncio.all_tasks(loop):
        task.cancel()
        cast("Any", task)._log_destroy_pending = False
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()


def shrink(seed: int) -> frozenset[int]:
    """The steps that can be left out, one after the other, so that the seed still fails."""
    skipped = frozenset[int]()
    for number in reversed(range(len(script(seed).steps))):
        if play(seed, skipped | {number}).failure is not None:
            skipped |= {number}
    return skipped


def report(seed: int) -> str | None:
    """None when everything holds; else what doesn't, the steps that it takes, and the trace."""
    if play(seed).failure is None:
        return None
    skipped = shrink(seed)
    run = play(seed, skipped)
    steps = [f"  {number}: {step}" for number, step in enumerate(run.script.steps) if number not in skipped]
    head = f"seed {seed}: {run.failure}\n{run.script.workers} workers, preload {run.script.preload}, roughness {run.script.roughness}"
    return "\n".join((head, f"end: {run.script.end}", "steps:", *steps, "trace:", *run.lines[-_TRACE_LINES:]))


PARTS, A_PART = 40, 50
"""What the tests play: 2,000 seeds."""


def check(seeds: Iterable[int]) -> None:
    """Play them; `UPNEXT_TEST_SIM_SEED=N` plays that one instead. Raises AssertionError with a report of the first that fails."""
    only = os.environ.get("UPNEXT_TEST_SIM_SEED")
    for seed in seeds if only is None else [int(only)]:
        failed = report(seed)
        if failed is not None:
            raise AssertionError(failed)
