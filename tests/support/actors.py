"""What the actors are built from in unit tests: a fleet of plain values, recorded duties, children without processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, cast

from upnext.address import Address
from upnext.control.exits import ExitCode
from upnextd.rules.hangs import Heart
from upnextd.rules.plan import Desired, Role
from upnextd.rules.slots import Event, Life, State
from upnextd.shared.meters import Meters
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import RunningJob, WorkerShape
from upnextd.supervisor.boot_wait import BootWait
from upnextd.supervisor.children import Child
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.generations import Generation, ImportFailure, Phase
from upnextd.supervisor.instances import Instance
from upnextd.supervisor.listeners import Listeners, address_of

NOW = 1000.0


class FakeDuties:
    """Records what an actor has done; edits of the desired state take effect."""

    def __init__(self, fleet: Fleet) -> None:
        self.posted: list[tuple[str, Event]] = []
        self.edits: list[dict[str, Any]] = []
        self.failures: list[tuple[ExitCode, str]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.owned: list[Coroutine[Any, Any, Any]] = []
        self.wakes = 0
        self._fleet = fleet

    def post(self, instance: Instance, event: Event, until: float | None = None) -> None:
        self.posted.append((instance.slot, event))

    def wake(self) -> None:
        self.wakes += 1

    def edit(self, **changes: Any) -> None:
        self.edits.append(changes)
        self._fleet.desired = replace(self._fleet.desired, **changes)

    def fail(self, code: ExitCode, line: str) -> None:
        self.failures.append((code, line))

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        self.events.append((kind, fields))

    def own(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.owned.append(work)

    async def run_owned(self) -> None:
        """Run what was handed over, to its end."""
        while self.owned:
            await self.owned.pop(0)


class FakeTimer:
    """A timer of `FakeLoop`."""

    def __init__(self, loop: FakeLoop, when: float, callback: Callable[[], object]) -> None:
        self.callback = callback
        self._loop = loop
        self._when = when

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self._loop.timers.remove(self)


class FakeLoop:
    """A loop that keeps what is to be called; `advance` calls what is due by then."""

    def __init__(self) -> None:
        self.now = NOW
        self.timers: list[FakeTimer] = []
        self.watched: list[int] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        timer = FakeTimer(self, when, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        return self.call_at(self.now + delay_s, callback, *args)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> FakeTimer:
        return self.call_at(self.now, callback, *args)

    def advance(self, seconds: float = 0.0) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when() <= end]:
            first = min(due, key=FakeTimer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when())
            first.callback()
        self.now = end


class FakeLog:
    """Keeps lines by their kind."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.cautions: list[str] = []
        self.faults: list[str] = []
        self.lines: list[tuple[str, int | None, str]] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def caution(self, line: str) -> None:
        self.cautions.append(line)

    def fault(self, line: str) -> None:
        self.faults.append(line)

    def line(self, who: str, pid: int | None, line: str) -> None:
        self.lines.append((who, pid, line))

    child_line = line


class FakePage:
    """A child's page of memory."""

    def __init__(self) -> None:
        self.heartbeat = 1
        self.ran_job = False
        self.done = 0
        self.failed = 0
        self.jobs: list[RunningJob] = []
        self.over: list[RunningJob] = []
        self.names = ["consumer-1"]

    @property
    def attempts(self) -> int:
        return self.done + self.failed

    def busy(self) -> int:
        return len(self.jobs)

    def running(self, _now: float) -> list[list[RunningJob]]:
        return [self.jobs]

    def ended(self, _now: float) -> list[list[RunningJob]]:
        return [self.over]

    def consumers(self) -> list[str]:
        return self.names

    def meters(self) -> Meters:
        return {}


class FakeChannel:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.closed = False
        self.unsent = False

    def send(self, message: object) -> None:
        self.sent.append(message)

    def pump(self) -> None:
        return


class FakeChild:
    """A child without a process."""

    def __init__(self, token: int, slot: str, generation: int, *, ready_at: float | None = NOW) -> None:
        self.token = token
        self.slot = slot
        self.generation = generation
        self.incarnation = 1
        self.pid: int | None = 100 + token
        self.pidfd = 10 + token
        self.born_at = NOW
        self.ready_at = ready_at
        self.heart = Heart(1, NOW)
        self.page = FakePage()
        self.channel = FakeChannel()
        self.abandoned: list[str] = []
        self.boot_failure: tuple[int, str] | None = None
        self.broker_away = False
        self.lifespan_failed = False
        self.secrets: dict[str, str] = {}
        self.asked = False
        self.hung = False
        self.killed = False
        self.died_in_fork = False
        self.drain_number = 0
        self.fetches = True
        self.stack_waiters: dict[int, Any] = {}
        self.stacks = ""
        self.written_stacks: list[str] = []
        self.catches = True
        self.signals: list[str] = []
        self.closed = False
        self.settled = True

    def signal(self, number: Any) -> None:
        self.signals.append(number.name)

    def write_stacks(self) -> bool:
        if self.catches:
            self.signals.append("SIGUSR2")
        return self.catches

    def new_stacks(self) -> str:
        return self.written_stacks.pop(0) if self.written_stacks else ""

    def unwatch(self) -> None:
        return

    def close(self, *, writers_gone: bool) -> None:
        self.closed = True

    def to_state(self, fds: list[int]) -> dict[str, Any]:
        fds.append(self.pidfd)
        return {"token": self.token}


@dataclass
class FakeGeneration:
    """A template without a process."""

    number: int = 1
    phase: Phase = Phase.READY
    retired: bool = False
    preload: bool = True
    living: bool = True
    pid: int = 50
    pidfd: int = 5
    content: str = "digest"
    redis_urls: tuple[str | None, ...] = ("redis://there",)
    apis: tuple[Any, ...] = ()
    shapes: tuple[Any, ...] = (WorkerShape("work", 2, ("task",)),)
    warnings: list[str] = field(default_factory=list[str])
    tail: list[str] = field(default_factory=list[str])
    failure: ImportFailure | None = None
    started_at: float = NOW
    due_at: float = NOW + 60.0
    made_ms: int = 1
    stall_s: float = 0.0
    takes_orders: bool = True
    service_name: str = "shop"
    declared: Any = "what it declares"
    orders: list[Any] = field(default_factory=list[Any])
    killed: bool = False

    def retire(self) -> None:
        self.retired = True
        self.kill()

    def kill(self) -> None:
        self.killed = True

    def forgive(self, late_s: float) -> None:
        self.due_at += late_s

    def stalled_s(self, _now: float) -> float:
        return self.stall_s

    def fork(self, assignment: Any, _fds: Any) -> bool:
        if self.takes_orders:
            self.orders.append(assignment)
        return self.takes_orders

    def to_state(self, _fds: list[int]) -> dict[str, Any]:
        return {"number": self.number}


class FakeKernel:
    """What actors ask of the kernel, as plain values."""

    def __init__(self) -> None:
        self.killed: list[int] = []
        self.signals: list[tuple[int, str]] = []
        self.sizes: dict[int, int] = {}
        self.status: ExitStatus | None = ExitStatus(0, None)
        self.reap_error = False
        self.kills: int | None = 0
        self.stored: list[str] = []
        self.listening: dict[int, Address] = {}
        self.refusing: set[int] = set()
        self.taken = False
        """Another process has come to listen where we did."""

    def listen(self, _what: str, address: Address) -> int:
        fd = 500 + len(self.listening)
        self.listening[fd] = address
        return fd

    def listens_at(self, fd: int) -> Address:
        return self.listening[fd]

    def refuse(self, fd: int) -> None:
        self.refusing.add(fd)

    def listen_again(self, fd: int) -> None:
        if self.taken:
            raise OSError(98, "Address already in use")
        self.refusing.remove(fd)

    def refuses(self, fd: int) -> bool:
        return fd in self.refusing

    def pid(self) -> int:
        return 1

    def wall_ms(self) -> int:
        return 5_000

    def random(self) -> random.Random:
        return random.Random(1)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)

    def signal(self, pidfd: int, number: Any) -> None:
        self.signals.append((pidfd, number.name))

    def kill_session(self, _pid: int) -> int:
        return 0

    def reap(self, _pidfd: int) -> ExitStatus | None:
        if self.reap_error:
            raise ChildProcessError
        return self.status

    def is_reaped(self, _pidfd: int) -> bool:
        return self.reap_error

    def rss_bytes(self, pid: int) -> int:
        return self.sizes.get(pid, 0)

    def oom_kills(self) -> int | None:
        return self.kills

    def store_id(self, _state_dir: Any, daemon_id: str) -> None:
        self.stored.append(daemon_id)


class FakeNotifier:
    """Keeps what the service manager is asked."""

    def __init__(self) -> None:
        self.extended: list[float] = []

    def extend_start(self, seconds: float) -> None:
        self.extended.append(seconds)


class World:
    """A fleet that serves generation 1, and all that an actor may take beside it."""

    def __init__(self, workers: int = 1) -> None:
        self.kernel: Any = FakeKernel()
        self.fleet = Fleet(
            "shop", "d1", "d1", Desired(workers, 1, 1), 1, NOW,
            listeners=Listeners(self.kernel), is_open=True, opened_at=NOW, booted=True,
        )  # fmt: skip
        self.duties = FakeDuties(self.fleet)
        self.loop: Any = FakeLoop()
        self.log: Any = FakeLog()
        self.notifier: Any = FakeNotifier()
        self.boot_wait = BootWait(self.fleet, self.notifier, self.log, self.loop.time, boot_timeout_s=5.0)
        self.template(1)
        for number in range(1, workers + 1):
            self.instance(f"worker-{number}")

    def template(self, number: int, **facts: Any) -> FakeGeneration:
        """Put a template into the fleet."""
        made = FakeGeneration(number, **facts)
        self.fleet.generations[number] = cast("Generation", made)
        return made

    def instance(
        self,
        slot: str,
        state: State = State.READY,
        *,
        role: Role = Role.WORKER,
        generation: int = 1,
        with_child: bool = True,
    ) -> Instance:
        """Put an instance into the fleet."""
        made = Instance(self.fleet.next_id(), slot, role, generation, Life(state, NOW))
        if role is Role.API and (api := self.fleet.api(generation, slot)) is not None:
            made.address = address_of(api)
        if with_child:
            made.child = cast("Child", FakeChild(self.fleet.next_id(), slot, generation))
        self.fleet.instances.append(made)
        return made

    def scheduler(self, **facts: Any) -> Instance:
        return self.instance("scheduler", role=Role.SCHEDULER, **facts)


def child_of(instance: Instance) -> FakeChild:
    """The fake child of an instance."""
    return cast("FakeChild", instance.child)
