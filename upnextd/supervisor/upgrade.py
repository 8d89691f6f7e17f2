"""SIGUSR2: this process becomes a fresh upnextd, in place, by execve. The pid, the lock, the control socket and every child are kept.

The state goes to the new program as JSON in a memfd, named in the environment; descriptors are inherited by number. Nothing is handed
over while something is half done (a fork, a burial, a reload, an operation): the upgrade waits for that. Signals are blocked from
before the exec until the new program has its handlers. A throw-away process tries first whether the new code imports and reads this
version of the state; when not, everything goes on as it was. Connections to the control socket are kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from upnext.core import secret_names
from upnextd.broker.embedded import EmbeddedBroker
from upnextd.metrics.counters import Counters
from upnextd.rules import plan, slots
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import Life, State
from upnextd.shared import leftovers, messages, process, scoreboard
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import LastExit
from upnextd.supervisor.generations import Generation, Phase
from upnextd.supervisor.instances import Instance, SchedulerStatus, SlotHistory
from upnextd.supervisor.operations import Operations

if TYPE_CHECKING:
    from upnextd.control.server import ControlServer
    from upnextd.supervisor.supervisor import Supervisor

STATE_VERSION = 5
_READS = f"{STATE_VERSION}.{scoreboard.LAYOUT:x}.{messages.PROTOCOL}"
"""What a program must read to take this daemon over: its state, the pages of its children, and what they and the templates send."""
VARIABLE = "UPNEXTD_UPGRADE_FD"
OUR_SIGNALS = frozenset(
    {
        signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP,
        signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2,
    }
)  # fmt: skip
_PROBE_S = 15.0
_NOTICE_AFTER_S = 0.5
_SETTLE_S = 0.02
"""Signals that were caught before they were blocked get so long to reach the loop."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the program before us left: the state, and the descriptors that are not a child's."""

    state: Json
    lock_fd: int
    control: Json
    """What `ControlServer.to_state` said."""
    descriptors: int | None
    """RLIMIT_NOFILE as it was at the first start."""


def take_over(env: MutableMapping[str, str]) -> Inherited | None:
    """The state that this process was exec'd with; None when it was started afresh."""
    raw = env.pop(VARIABLE, "")
    if not raw.isdigit():
        return None
    try:
        with os.fdopen(int(raw), "rb") as file:
            file.seek(0)
            said = orjson.loads(file.read())
    except (OSError, ValueError):
        # Not ours: somebody else's variable.
        return None
    if said.get("pid") != os.getpid() or said.get("version") != STATE_VERSION:
        return None
    for fd in said["fds"]:
        os.set_inheritable(fd, False)
    return Inherited(said["state"], said["lock_fd"], said["control"], said.get("descriptors"))


def probe() -> None:
    """Entry of the throw-away process: exits 0 when this code runs and reads the state, the pages and the messages of version argv[1]."""
    __import__("upnextd.main")
    sys.exit(0 if sys.argv[1] == _READS else 1)


class _Notice:
    """Writes into the log what an upgrade waits for, once it has waited for a while."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._begun = supervisor.loop.time()
        self._last: str | None = None

    def waits(self, waits_for: str) -> None:
        if waits_for != self._last and self._supervisor.loop.time() - self._begun > _NOTICE_AFTER_S:
            self._last = waits_for
            self._supervisor.log.note(f"the upgrade waits for {waits_for}")


class Upgrades:
    """Waits for the moment, then execs."""

    def __init__(
        self, supervisor: Supervisor, server: ControlServer, lock_fd: int, before_exec: Callable[[], None]
    ) -> None:
        self._supervisor = supervisor
        self._server = server
        self._lock_fd = lock_fd
        self._before_exec = before_exec
        self._under_way = False

    def ask(self) -> None:
        """Upgrade as soon as nothing is half done."""
        supervisor = self._supervisor
        if self._under_way or supervisor.desired.stopping:
            return
        self._under_way = True
        supervisor.log.note("asked to upgrade in place")
        supervisor.own(self._upgrade())

    async def _upgrade(self) -> None:
        supervisor = self._supervisor
        try:
            if not await self._probed():
                supervisor.log.fault(
                    "the new code does not start, or can't take this daemon over: it goes on as it was"
                )
                return
            notice = _Notice(supervisor)
            while not supervisor.desired.stopping:
                waits_for = self._half_done()
                if waits_for is not None:
                    notice.waits(waits_for)
                    await asyncio.sleep(_SETTLE_S)
                    continue
                signal.pthread_sigmask(signal.SIG_BLOCK, OUR_SIGNALS)
                try:
                    await asyncio.sleep(_SETTLE_S)
                    if self._half_done() is None and not supervisor.desired.stopping:
                        self._exec()
                        return
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, OUR_SIGNALS)
        finally:
            self._under_way = False

    def _half_done(self) -> str | None:
        server = None if self._server.settled else "a client that reads its answer slowly"
        return half_done(self._supervisor) or server

    async def _probed(self) -> bool:
        supervisor = self._supervisor
        argv = process.python_argv("upnextd.supervisor.upgrade:probe", _READS)
        try:
            pid = process.spawn(argv, supervisor.settings.child_env, {2: 2})
        except OSError as error:
            supervisor.log.fault(f"can't try the new code: {error.strerror or error}")
            return False
        supervisor.orphans.add(pid)
        pidfd = os.pidfd_open(pid)
        try:
            deadline = supervisor.loop.time() + _PROBE_S
            while (status := process.reap(pidfd)) is None:
                if supervisor.loop.time() > deadline:
                    process.send_signal(pidfd, signal.SIGKILL)
                await asyncio.sleep(_SETTLE_S)
            return status.code == 0
        finally:
            supervisor.orphans.discard(pid)
            os.close(pidfd)

    def _exec(self) -> None:
        """Does not return, unless it fails: then nothing has changed."""
        supervisor = self._supervisor
        fds: list[int] = []
        state = to_state(supervisor, fds)
        control = self._server.to_state(fds)
        fds.append(self._lock_fd)
        said = {
            "version": STATE_VERSION,
            "pid": os.getpid(),
            "fds": fds,
            "lock_fd": self._lock_fd,
            "control": control,
            "descriptors": process.given_descriptor_limit(),
            "state": state,
        }
        memfd = os.memfd_create("upnextd-state", os.MFD_CLOEXEC)
        with os.fdopen(memfd, "wb", buffering=0, closefd=False) as file:
            file.write(orjson.dumps(said))
        for companion in (supervisor.exporter, supervisor.dashboard):
            if companion is not None:
                # It isn't handed over: the new program starts its own, on the same address.
                companion.kill()
        self._before_exec()
        for fd in (*fds, memfd):
            os.set_inheritable(fd, True)
        try:
            argv = [sys.executable, *sys.orig_argv[1:]]
            os.execve(sys.executable, argv, {**os.environ, VARIABLE: str(memfd)})  # noqa: S606 - no shell is wanted
        except OSError as error:
            for fd in fds:
                os.set_inheritable(fd, False)
            os.close(memfd)
            supervisor.log.fault(f"can't upgrade: {error.strerror or error}")


def half_done(supervisor: Supervisor) -> str | None:
    """What an upgrade has to wait for, in a few words; None: every pid is known, every grave is closed, no operation is under way."""
    if not supervisor.booted:
        return "the start"
    if supervisor.reloads.under_way:
        return "the reload"
    if supervisor.operations.under_way:
        return "an operation that is under way"
    for generation in supervisor.generations.values():
        if generation.phase is Phase.IMPORTING:
            return f"the template of generation {generation.number}"
    for instance in supervisor.instances:
        if instance.life.state in (State.SPAWNING, State.KILLED, State.EXITED):
            return f"{instance.slot}, which is {instance.life.state.name}"
        if instance.child is not None and not instance.child.settled:
            return f"{instance.slot}, which has not taken everything in that it was told"
    if supervisor.broker is not None and not supervisor.broker.up:
        return "the broker, which is down"
    return None


# -- to JSON --


def to_state(supervisor: Supervisor, fds: list[int]) -> Json:
    """The daemon as JSON; `fds` gets the descriptors that go with it."""
    desired = dataclasses.asdict(supervisor.desired) | {"mode": supervisor.desired.mode.value}
    return {
        "desired": desired,
        "daemon_id": supervisor.daemon_id,
        "since_ms": supervisor.since_ms,
        "since_s": supervisor.since_s,
        "mark": supervisor.child_env[leftovers.VARIABLE],
        "ids": supervisor.next_id(),
        "instances": [_instance_to_state(instance, fds) for instance in supervisor.instances],
        "history": {
            slot: {
                "incarnations": one.incarnations,
                "restarts": one.restarts,
                "last_exit": None if one.last_exit is None else one.last_exit.as_json(),
            }
            for slot, one in supervisor.history.items()
        },
        "generations": [generation.to_state(fds) for generation in supervisor.generations.values()],
        "broker": None if supervisor.broker is None else supervisor.broker.to_state(fds),
        "scheduler_status": dataclasses.asdict(supervisor.scheduler_status),
        "notices": [messages.as_json(death) for death in supervisor.messages.pending_notices.pending],
        "operations": supervisor.operations.to_state(),
        "tally": supervisor.counters.to_state(),
        "record": dataclasses.asdict(supervisor.exits.record),
        "contents": list(supervisor.templates.contents.items()),
        "former": supervisor.reloads.former,
        "last_number": supervisor.reloads.last_number,
    }


def _instance_to_state(instance: Instance, fds: list[int]) -> Json:
    life = instance.life
    return {
        "id": instance.id,
        "slot": instance.slot,
        "role": instance.role.value,
        "generation": instance.generation,
        "life": [life.state.name, life.since, life.deadline, life.drained],
        "outdated": instance.outdated,
        "leave_s": instance.leave_s,
        "leave_by": instance.leave_by,
        "reason": instance.reason,
        "child": None if instance.child is None else instance.child.to_state(fds),
    }


# -- and back --


def from_state(supervisor: Supervisor, state: Mapping[str, Any]) -> None:
    """Fill a fresh supervisor with what `to_state` wrote, and watch everything again."""
    said: Json = dict(state["desired"])
    mode = Mode(said.pop("mode"))
    renewed = tuple((slot, newest) for slot, newest in said.pop("renewed"))
    supervisor.desired = plan.Desired(**said, mode=mode, renewed=renewed)
    supervisor.since_ms, supervisor.since_s = state["since_ms"], state["since_s"]
    supervisor.child_env[leftovers.VARIABLE] = state["mark"]
    supervisor.resume_ids(state["ids"])
    for slot, one in state["history"].items():
        last = None if one["last_exit"] is None else LastExit(**one["last_exit"])
        supervisor.history[slot] = SlotHistory(one["incarnations"], one["restarts"], last)
    for one in state["generations"]:
        generation = Generation.from_state(
            one, supervisor.child_env, supervisor.loop, supervisor, supervisor.template_line, supervisor.kernel
        )
        supervisor.generations[generation.number] = generation
    if state["broker"] is not None:
        supervisor.broker = EmbeddedBroker.from_state(
            state["broker"],
            supervisor.settings.state_dir,
            secret_names.without(supervisor.settings.child_env),
            supervisor.log,
            supervisor.wake,
            supervisor.kernel,
        )
    supervisor.scheduler_status = SchedulerStatus(**state["scheduler_status"])
    for notice in state["notices"]:
        supervisor.messages.pending_notices.add(messages.from_json(messages.Died, notice))
    record = state["record"]
    supervisor.exits.record = plan.Record(
        tuple((slot, streak) for slot, streak in record["streaks"]),
        tuple((budget, at) for budget, at in record["bad_exits"]),
    )
    supervisor.operations = Operations.from_state(state["operations"])
    supervisor.counters = Counters.from_state(state["tally"])
    supervisor.templates.contents = dict(state["contents"])
    supervisor.reloads.former = state["former"]
    supervisor.reloads.last_number = state["last_number"]
    for one in state["instances"]:
        _instance_from_state(supervisor, one)


def _instance_from_state(supervisor: Supervisor, said: Json) -> None:
    name, since, deadline, drained = said["life"]
    instance = Instance(
        said["id"],
        said["slot"],
        Role(said["role"]),
        said["generation"],
        Life(slots.State[name], since, deadline, drained),
        outdated=said["outdated"],
        leave_s=said["leave_s"],
        leave_by=said["leave_by"],
        reason=said["reason"],
    )
    supervisor.instances.append(instance)
    if said["child"] is not None:
        instance.child = Child.from_state(
            said["child"],
            supervisor.loop,
            supervisor.messages.on_message,
            supervisor.messages.on_output,
            supervisor.kernel,
        )
        supervisor.spawner.watch_again(instance.child)
    supervisor.set_timer(instance)
