"""The supervisor is killed at every line of a fork, a reload and a self-upgrade; so are the processes that a fork is made by.

The lines are found by a first run that notes them (`tests/support/stepping`), so a line that is added is killed at, too. By default a
sample of them is; UPNEXT_TEST_STEPS=1 takes every line, UPNEXT_TEST_STEPS=n every n-th.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.test_supervisor_killed import jobs_could_run
from tests.e2e.reloading import make
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

STRIDE = int(os.environ.get("UPNEXT_TEST_STEPS", "16"))
STEPPING = Path(__file__).parents[1] / "support" / "stepping"

FORKING = "template.py:fork_child,_middle,_settle child.py:run,_move_in process.py:await_adoption,block_signals"
ORDERING = (
    "spawning.py:fork,forked,watch children.py:_open,ordered,watch generations.py:fork,_launch,_obey process.py:spawn"
)
IMPORTING = "template.py:main,load messages.py:decode_order process.py:die_with_parent,default_signals"
RELOADING = (
    "reloads.py:begin,_next,_import,imported,look,_post,_commit,_roll_back,_broke,child_ended"
    " generations.py:_launch,_obey,retire,kill,_ended"
)
UPGRADING = (
    "upgrade.py:ask,_upgrade,_probed,_exec,to_state,_instance_to_state,take_over,from_state,_instance_from_state supervisor.py:take_over"
    " main.py:start,_start,_supervise children.py:to_state,from_state,rewatch server.py:start"
)


class Walk:
    """A daemon whose steps are noted, and which is killed at one of them."""

    def __init__(self, of: str, *, whom: str = "supervisor") -> None:
        self.daemon = make(2)
        self._of = of
        self._folder = self.daemon.directory / "steps"
        self._folder.mkdir()
        self.daemon._env |= {
            "PYTHONPATH": str(STEPPING),
            "STEPS_DIR": str(self._folder),
            "STEPS_OF": of,
            "STEP_WHOM": whom,
        }
        self._step = ""

    def set(self, step: str = "") -> None:
        """`arm` is going to mean this step; none: steps are noted only."""
        self._step = step
        for name in ("armed", "reached", "killed"):
            (self._folder / name).unlink(missing_ok=True)

    def arm(self) -> None:
        unfinished = self._folder / "unfinished"
        unfinished.write_text(self._step)
        unfinished.rename(self._folder / "armed")

    @property
    def killed(self) -> bool:
        return (self._folder / "killed").exists()

    def reached(self) -> list[str]:
        """In order, each line once."""
        lines = (self._folder / "reached").read_text().splitlines()
        files = {part.partition(":")[0] for part in self._of.split()}
        assert {line.partition(":")[0] for line in lines} == files, "every file has steps"
        return list(dict.fromkeys(lines))


def at_boot(walk: Walk) -> None:
    walk.arm()
    walk.daemon.launch()


def at_reload(walk: Walk) -> None:
    walk.daemon.start(90)
    walk.arm()
    walk.daemon.signal(signal.SIGHUP)


def at_broken_reload(walk: Walk) -> None:
    walk.daemon.start(90)
    good = walk.daemon.service.read_text()
    walk.daemon.rewrite(good + "\nos._exit(3)\n")
    walk.arm()
    walk.daemon.signal(signal.SIGHUP)
    wait_until(lambda: walk.killed or "reload failed" in walk.daemon.log(), 20, "the reload's end")
    walk.daemon.rewrite(good)


def at_upgrade(walk: Walk) -> None:
    walk.daemon.start(90)
    walk.arm()
    walk.daemon.signal(signal.SIGUSR2)


def booted(daemon: Daemon) -> bool:
    return " ready: " in daemon.log()


def reloaded(daemon: Daemon) -> bool:
    return "reload: generation 2 serves" in daemon.log()


def rolled_back(daemon: Daemon) -> bool:
    return "reload failed" in daemon.log()


def upgraded(daemon: Daemon) -> bool:
    return "in place: " in daemon.log()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("of", "begin", "done"),
    [
        pytest.param(f"{IMPORTING} {ORDERING} {FORKING}", at_boot, booted, id="fork"),
        pytest.param(RELOADING, at_reload, reloaded, id="reload"),
        pytest.param(RELOADING, at_broken_reload, rolled_back, id="broken-reload"),
        pytest.param(UPGRADING, at_upgrade, upgraded, id="upgrade"),
    ],
)
def test_a_supervisor_killed_at_any_step_leaves_nobody(
    of: str, begin: Callable[[Walk], None], done: Callable[[Daemon], bool]
) -> None:
    walk = Walk(of)
    daemon = walk.daemon
    slowest_s = 0.0
    try:
        walk.set()
        begin(walk)
        wait_until(lambda: done(daemon), 60, "the first run, without a kill")
        daemon.wait_ready(90)
        steps = walk.reached()
        daemon.kill()
        daemon.assert_nothing_left()
        for step in steps[::STRIDE]:
            daemon.log_path.unlink()
            walk.set(step)
            begin(walk)
            wait_until(lambda: walk.killed or done(daemon), 60, f"{step} to be reached")
            if not walk.killed:
                # Which lines are reached depends a little on who is faster.
                daemon.kill()
            begun = time.monotonic()
            daemon.wait(20)
            wait_until(lambda: not jobs_could_run(daemon.left()), 5, f"{step}: orphans {daemon.left()}")
            slowest_s = max(slowest_s, time.monotonic() - begun)
            daemon.assert_nothing_left()
        print(f"{len(steps[::STRIDE])} of {len(steps)} steps, 0 orphans, slowest end {slowest_s * 1000:.0f} ms")
        walk.set()
        daemon.start(90)
        assert daemon.stop() == 0
    finally:
        daemon.close()


@pytest.mark.timeout(1500)
def test_whatever_dies_amid_a_fork_is_made_up_for() -> None:
    """The template, the middle process or the child is killed at each step of a fork: all get ready, and nobody else is there."""
    walk = Walk(FORKING, whom="self")
    daemon = walk.daemon

    def complete() -> bool:
        children = daemon.status()["children"]
        known = {child["pid"] for child in children} | {daemon.pid}
        return [child["state"] for child in children] == ["READY"] * 5 and set(daemon.left()) == known

    try:
        walk.set()
        at_boot(walk)
        daemon.wait_ready(90)
        wait_until(complete, 20, "two workers, their scheduler, template and broker")
        steps = walk.reached()
        for step in steps[::STRIDE]:
            assert daemon.stop() == 0
            daemon.assert_nothing_left()
            walk.set(step)
            at_boot(walk)
            wait_until(lambda: walk.killed, 20, f"{step} to be reached")
            daemon.wait_ready(90)
            wait_until(complete, 20, f"{step}: all to be well; left: {daemon.left()}")
        print(f"{len(steps[::STRIDE])} of {len(steps)} steps")
    finally:
        daemon.close()
