"""One real life of a daemon that a seed disturbs: operators' commands, signals, reloads of good and broken code, kills of any process.

What must hold: no accepted job is lost, none ends more often than kills of workers can explain, every operation ends with an answer,
nothing is a zombie or belongs to no slot, wish and reality meet once nothing disturbs, and a stop ends in time. `plan` decides by the seed
alone what happens when; the kernel decides the rest, so a seed that fails need not fail again: its steps and the daemon's log say what was.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from tests.e2e.reloading import Load, all_done, ledger, make, source
from tests.support.daemon import Daemon, RpcError
from tests.support.waiting import given, wait_until
from upnext.control.client import ControlClient

WORKERS = 3
CONCURRENCY = 4
STOP_TIMEOUT_S = 10.0
SETTLED_S = 60.0
"""How long wish and reality may differ once nothing disturbs."""
STOP_MARGIN_S = 5.0
"""What a stop may take beyond its own time: the end of the scheduler, the templates and the broker."""
_YOUNG_MOST = 4
"""So many workers may be killed before they ran a job: more than nine in a minute are a crash loop, which ends the daemon."""
_LONG_S = 90.0
_REQUEST_S = 30.0
_pause = threading.Event().wait
"""Nothing is waited for: the moment is what the seed chooses."""

COMMANDS: dict[str, dict[str, Any]] = {
    "scale": {},
    "restart": {},
    "reload": {},
    "reload-broken": {},
    "reload-abort": {},
    "pause": {},
    "drain": {},
    "resume": {},
    "status": {},
    "dump": {},
}
SIGNALS = (
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTSTP,
    signal.SIGCONT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
BROKEN = ("raise RuntimeError('broken')", "def broken(:", "import os; os._exit(3)")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens, so many seconds after the step before. `number` chooses among what is there then."""

    after_s: float
    what: str
    number: int

    def __str__(self) -> str:
        return f"+{self.after_s:.2f} {self.what}({self.number})"


@dataclass(frozen=True, slots=True)
class Report:
    """What a life was."""

    seed: int
    steps: int
    jobs: int
    kills: int
    repeated: int
    stop_s: float

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.steps} steps, {self.kills} kills, {self.jobs} jobs, 0 lost, {self.repeated} ended again after a kill,"
            f" stopped in {self.stop_s:.2f} s"
        )


def plan(seed: int, seconds: float) -> list[Step]:
    """Decide what happens in a life of so many seconds."""
    rng = random.Random(seed)
    kinds = [*COMMANDS, "signal", "signal", "kill-worker", "kill-worker", "kill-any", "freeze"]
    steps: list[Step] = []
    at = 0.0
    while at < seconds:
        after_s = rng.choice((0.0, 0.01, rng.uniform(0.02, 0.2), rng.uniform(0.2, 1.5)))
        at += after_s
        steps.append(Step(after_s, rng.choice(kinds), rng.randrange(1000)))
    return steps


class Life:
    """One daemon from its start to its stop. Raises AssertionError with the steps and the log when something does not hold."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed = seed
        self.steps = plan(seed, seconds)
        self.kills = 0
        self._young = 0
        self._version = 1
        self._operations: list[tuple[str, str]] = []
        self._daemon = make(WORKERS, args=("--stop-timeout", str(STOP_TIMEOUT_S), "--import-timeout", "20"))

    def run(self) -> Report:
        done: list[Step] = []
        try:
            with self._daemon as daemon:
                with Load(daemon, per_s=60, seconds=0.02) as load:
                    for step in self.steps:
                        _pause(step.after_s)
                        done.append(step)
                        self._take(daemon, step)
                        assert daemon.exit_code is None, f"the daemon ended with {daemon.exit_code}"
                    self._settle(daemon)
                return self._judge(daemon, load)
        except BaseException as error:
            error.add_note(f"seed {self.seed}, its steps: {' '.join(map(str, done))}")
            raise

    # -- what happens --

    def _take(self, daemon: Daemon, step: Step) -> None:
        match step.what:
            case "signal":
                os.kill(daemon.pid, SIGNALS[step.number % len(SIGNALS)])
            case "kill-worker" | "kill-any":
                self._kill(daemon, step)
            case "freeze":
                self._freeze(daemon, step.number)
            case _:
                self._ask(daemon, step)

    def _ask(self, daemon: Daemon, step: Step) -> None:
        method, params = step.what, dict[str, Any]()
        match step.what:
            case "scale":
                params = {"workers": step.number % 5}
            case "restart" if step.number % 2:
                params = {"slot": f"worker-{1 + step.number % WORKERS}"}
            case "reload":
                self._version += 1
                daemon.rewrite(source(self._version))
            case "reload-broken":
                method = "reload"
                daemon.rewrite(BROKEN[step.number % len(BROKEN)])
            case "reload-abort":
                method, params = "reload", {"abort": True}
            case "dump":
                params = {"slot": "worker-1"}
            case _:
                pass
        # While it execs itself, and when a slot is not there, the daemon refuses.
        with contextlib.suppress(OSError, RpcError):
            answer = daemon.rpc(method, **params)
            if "op_id" in answer:
                self._operations.append((str(step), answer["op_id"]))
        if step.what == "reload-broken":
            # What is on disk at any later moment may be loaded: a template that ended is replaced by its like only.
            daemon.rewrite(source(self._version))

    def _children(self, daemon: Daemon) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            return [child for child in daemon.status()["children"] if child["pid"] is not None]
        return []

    def _kill(self, daemon: Daemon, step: Step) -> None:
        roles = ("worker",) if step.what == "kill-worker" else ("worker", "scheduler", "template")
        children = [child for child in self._children(daemon) if child["role"] in roles]
        if not children:
            return
        victim = children[step.number % len(children)]
        young = victim["role"] != "template" and not victim["jobs_done"]
        if young and self._young == _YOUNG_MOST:
            return
        self._young += young
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim["pid"], signal.SIGKILL)
            self.kills += 1

    def _freeze(self, daemon: Daemon, number: int) -> None:
        """Stop a process for a moment, the supervisor, too."""
        pids = [child["pid"] for child in self._children(daemon) if child["role"] != "broker"] + [daemon.pid]
        pid = pids[number % len(pids)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                _pause(0.05 + number % 10 / 10)
            finally:
                os.kill(pid, signal.SIGCONT)

    # -- what must hold --

    def _settle(self, daemon: Daemon) -> None:
        """Want what was wanted at the start; then all must be as it was."""
        daemon.rewrite(source(self._version))
        self._insist(daemon, "resume")
        self._insist(daemon, "scale", workers=WORKERS)
        try:
            wait_until(lambda: not self._wrong(daemon) or self._wants_reload(daemon), SETTLED_S, "all to be as it was")
            if self._wrong(daemon):
                self._insist(daemon, "reload")
                wait_until(lambda: not self._wrong(daemon), SETTLED_S, "all to be as it was at the start, by a reload")
        except AssertionError as error:
            error.add_note(self._wrong(daemon))
            raise

    def _wants_reload(self, daemon: Daemon) -> bool:
        """The template ended when the code on disk was another already: a reload is what the status then asks for."""
        with contextlib.suppress(OSError):
            return "`upnext ctl reload`" in (daemon.status()["problem"] or "")
        return False

    def _insist(self, daemon: Daemon, method: str, **params: Any) -> None:
        def answered() -> bool:
            with contextlib.suppress(OSError):
                self._operations.append((method, daemon.rpc(method, **params)["op_id"]))
                return True
            return False

        wait_until(answered, SETTLED_S, f"{method} to be answered")

    def _wrong(self, daemon: Daemon) -> str:
        """What is not as it was at the start; "" when all is."""
        try:
            status = daemon.status()
        except OSError as error:
            return f"no status: {error}"
        serving = {c["slot"]: c["state"] for c in status["children"] if c["role"] in ("worker", "scheduler")}
        serving.pop("quarantine-1", None)
        wanted = {**{f"worker-{n}": "READY" for n in range(1, WORKERS + 1)}, "scheduler": "READY"}
        if status["mode"] != "running" or serving != wanted or status["ready_workers"] != WORKERS:
            return f"{status['mode']}, {serving}, {status['ready_workers']} ready, {status['problem']}"
        known = {child["pid"] for child in status["children"]} | {daemon.pid}
        if others := set(daemon.left()) - known:
            return f"processes of no slot: {sorted(others)}"
        zombies = [one.pid for one in psutil.Process(daemon.pid).children() if one.status() == psutil.STATUS_ZOMBIE]
        return f"zombies: {zombies}" if zombies else ""

    def _judge(self, daemon: Daemon, load: Load) -> Report:
        assert load.errors == []
        self._follow(daemon)
        wait_until(lambda: all_done(daemon, load), SETTLED_S, f"every one of {load.submitted} jobs to end")
        _, ends = ledger(daemon)
        repeated = sum(ends.values()) - len(ends)
        assert repeated <= CONCURRENCY * self.kills, f"{repeated} jobs ended again, {self.kills} processes were killed"
        begun = time.monotonic()
        code = daemon.stop()
        stop_s = time.monotonic() - begun
        assert code == 0
        assert stop_s <= given(STOP_TIMEOUT_S + STOP_MARGIN_S), f"the stop took {stop_s:.1f} s"
        daemon.assert_nothing_left()
        return Report(self.seed, len(self.steps), load.submitted, self.kills, repeated, stop_s)

    def _follow(self, daemon: Daemon) -> None:
        """Every operation has ended, with an answer that says how. The oldest may be forgotten by now."""
        with ControlClient(daemon.socket_path, timeout_s=_REQUEST_S) as client:
            for what, op_id in self._operations[-20:]:
                ended = client.wait(op_id, timeout_s=_LONG_S)
                assert ended.text, f"{what} ended without a word"


def play(seeds: Sequence[int], seconds: float) -> list[Report]:
    """Play each seed once. Raises AssertionError at the first that does not hold."""
    return [Life(seed, seconds).run() for seed in seeds]
