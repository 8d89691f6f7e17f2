"""SIGUSR2: this process becomes a fresh upnextd, in place, by execve. The pid, the lock, the control socket and every child are kept.

The state goes to the new program as JSON in a memfd, named in the environment; descriptors are inherited by number. Nothing is handed
over while something is half done (a fork, the end of a child, a reload, an operation): the upgrade waits for that. Signals are blocked from
before the exec until the new program has its handlers. A throw-away process tries first whether the new code imports and reads this
version of the state; when not, everything goes on as it was. Connections to the control socket are kept.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from upnextd.rules.slots import State
from upnextd.shared import messages, process, scoreboard
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.supervisor.companions import Companions
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.generations import Phase
from upnextd.supervisor.spawning import Spawner
from upnextd.supervisor.templates import Templates

STATE_VERSION = 7
_READS = f"{STATE_VERSION}.{scoreboard.LAYOUT:x}.{messages.PROTOCOL}"
"""What a program must read to take this daemon over: its state, the pages of its children, and what they and the templates send."""
_OTHER_VERSION = 117
"""What the throw-away process ends with when this code runs, and does not read that."""
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
    """As `ControlServer.to_state` wrote it."""
    descriptors: int | None
    """RLIMIT_NOFILE as it was at the first start."""
    directory: str | None = None
    """The working directory by its name at the first start: a link in it may have been moved."""


def take_over(env: MutableMapping[str, str]) -> Inherited | None:
    """The state that this process was exec'd with; None when it was started afresh."""
    raw = env.pop(VARIABLE, "")
    if not raw.isdigit():
        return None
    try:
        with os.fdopen(int(raw), "rb") as file:
            file.seek(0)
            handed = orjson.loads(file.read())
    except (OSError, ValueError):
        # Not ours: a variable that another program set.
        return None
    if handed.get("pid") != os.getpid() or handed.get("version") != STATE_VERSION:
        return None
    for fd in handed["fds"]:
        os.set_inheritable(fd, False)
    return Inherited(
        handed["state"], handed["lock_fd"], handed["control"], handed.get("descriptors"), handed.get("directory")
    )


def probe() -> None:
    """Entry of the throw-away process: exits 0 when this code runs and reads the state, the pages and the messages of version argv[1]."""
    __import__("upnextd.main")
    sys.exit(0 if sys.argv[1] == _READS else _OTHER_VERSION)


class Server(Protocol):
    """The control socket, as far as an upgrade is concerned."""

    @property
    def settled(self) -> bool: ...
    def to_state(self, fds: list[int]) -> Json: ...


class _Notice:
    """Log what an upgrade waits for, once it has waited for a while."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._begun = clock()
        self._last: str | None = None

    def waits(self, waits_for: str) -> None:
        if waits_for != self._last and self._clock() - self._begun > _NOTICE_AFTER_S:
            self._last = waits_for
            self._log.note(f"the upgrade waits for {waits_for}")


class Upgrades:
    """Wait for the moment, then exec."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        companions: Companions,
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        server: Server,
        orphans: set[int],
        child_env: Mapping[str, str],
        directory: str,
        lock_fd: int,
        before_exec: Callable[[], None],
    ) -> None:
        """`orphans` gets the pids of processes that are reaped here; `before_exec` writes out what is not logged yet."""
        self._fleet = fleet
        self._duties = duties
        self._companions = companions
        self._kernel = kernel
        self._loop = loop
        self._log = log
        self._orphans = orphans
        self._child_env = child_env
        self._directory = directory
        self._server = server
        self._lock_fd = lock_fd
        self._before_exec = before_exec
        self._under_way = False

    def ask(self) -> None:
        """Upgrade as soon as nothing is half done."""
        if self._under_way or self._fleet.desired.stopping:
            return
        self._under_way = True
        self._log.note("asked to upgrade in place")
        self._duties.own(self._upgrade())

    async def _upgrade(self) -> None:
        try:
            refusal = await self._probed()
            if refusal is not None:
                self._log.fault(f"can't upgrade in place: {refusal}; the daemon goes on as it was")
                return
            notice = _Notice(self._log, self._loop.time)
            while not self._fleet.desired.stopping:
                waits_for = self._half_done()
                if waits_for is not None:
                    notice.waits(waits_for)
                    await asyncio.sleep(_SETTLE_S)
                    continue
                signal.pthread_sigmask(signal.SIG_BLOCK, OUR_SIGNALS)
                try:
                    await asyncio.sleep(_SETTLE_S)
                    if self._half_done() is None and not self._fleet.desired.stopping:
                        self._exec()
                        return
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, OUR_SIGNALS)
        finally:
            self._under_way = False

    def _half_done(self) -> str | None:
        server = None if self._server.settled else "a client that reads its answer slowly"
        return half_done(self._fleet) or server

    async def _probed(self) -> str | None:
        """-> why the new code can't take over; None when it can."""
        argv = process.python_argv("upnextd.supervisor.upgrade:probe", _READS)
        try:
            pid = process.spawn(argv, self._child_env, {2: 2})
        except OSError as error:
            return f"the new code can't be tried: {process.why(error)}"
        self._orphans.add(pid)
        pidfd = os.pidfd_open(pid)
        try:
            deadline = self._loop.time() + _PROBE_S
            while (status := process.reap(pidfd)) is None:
                if self._loop.time() > deadline:
                    process.send_signal(pidfd, signal.SIGKILL)
                await asyncio.sleep(_SETTLE_S)
            if status.code == _OTHER_VERSION:
                return "the upnextd that is installed now is of another version and can't take this daemon over (a restart takes it in)"
            return None if status.code == 0 else f"the new code does not start ({status})"
        finally:
            self._orphans.discard(pid)
            os.close(pidfd)

    def _exec(self) -> None:
        """Does not return, unless it fails: then nothing has changed."""
        fds: list[int] = []
        state = to_state(self._fleet, fds)
        control = self._server.to_state(fds)
        fds.append(self._lock_fd)
        handed = {
            "version": STATE_VERSION,
            "pid": os.getpid(),
            "fds": fds,
            "lock_fd": self._lock_fd,
            "control": control,
            "descriptors": process.given_descriptor_limit(),
            "directory": self._directory,
            "state": state,
        }
        memfd = os.memfd_create("upnextd-state", os.MFD_CLOEXEC)
        with os.fdopen(memfd, "wb", buffering=0, closefd=False) as file:
            file.write(orjson.dumps(handed))
        self._companions.kill_beside()
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
            self._log.fault(f"can't upgrade: {process.why(error)}")


def half_done(fleet: Fleet) -> str | None:
    """What an upgrade has to wait for, in a few words; None: every pid is known, every end is handled, no operation is under way."""
    if not fleet.booted:
        return "the start"
    if fleet.rollouts.under_way:
        return "the reload"
    if fleet.operations.under_way:
        return "an operation that is under way"
    for generation in fleet.generations.values():
        if generation.phase is Phase.IMPORTING:
            return f"the template of generation {generation.number}"
    for instance in fleet.instances:
        if instance.life.state in (State.SPAWNING, State.KILLED, State.EXITED):
            return f"{instance.slot}, which is {instance.life.state.name}"
        if instance.child is not None and not instance.child.settled:
            return f"{instance.slot}, which has not taken in everything that it was sent"
    if fleet.broker is not None and not fleet.broker.up:
        return "the broker, which is down"
    return None


# -- to JSON, and back --


def to_state(fleet: Fleet, fds: list[int]) -> Json:
    """The daemon as JSON; `fds` gets the descriptors that go with it."""
    state = fleet.to_state()
    for instance, one in zip(fleet.instances, state["instances"], strict=True):
        one["child"] = None if instance.child is None else instance.child.to_state(fds)
    return state | {
        "generations": [generation.to_state(fds) for generation in fleet.generations.values()],
        "broker": None if fleet.broker is None else fleet.broker.to_state(fds),
        "listeners": fleet.listeners.to_state(fds),
    }


def from_state(
    state: Mapping[str, Any], fleet: Fleet, templates: Templates, spawner: Spawner, companions: Companions
) -> None:
    """Fill a fresh fleet with what `to_state` wrote, and watch everything again."""
    fleet.from_state(state)
    for one in state["generations"]:
        templates.resume(one)
    companions.resume_broker(state["broker"])
    fleet.listeners.resume(state["listeners"])
    for instance, one in zip(fleet.instances, state["instances"], strict=True):
        if one["child"] is not None:
            spawner.resume(instance, one["child"])
