"""Commands and signals edit one desired state: which of them stands, and what a waiting client gets as answer."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.reloading import let_go, make, start_hold
from tests.support.daemon import Daemon, RpcError
from tests.support.waiting import wait_until


def mode(daemon: Daemon) -> str:
    return daemon.status()["mode"]


def seen_by(daemon: Daemon, number: int) -> None:
    """Send a signal, and see that the daemon has taken it in: signals are taken one after the other."""
    lines = daemon.log().count("SIGTTIN")
    daemon.signal(number)
    daemon.signal(signal.SIGTTIN)
    wait_until(lambda: daemon.log().count("SIGTTIN") > lines, 10)


def test_cont_leaves_a_drain_and_the_exit_is_part_of_what_is_wanted() -> None:
    with make() as daemon:
        start_hold(daemon)
        waiting = daemon.begin_ctl("drain", "--exit", "--wait", "--timeout", "40")
        wait_until(lambda: mode(daemon) == "draining", 10)
        assert daemon.status()["exit_when_drained"]
        seen_by(daemon, signal.SIGCONT)
        assert mode(daemon) == "draining"
        let_go(daemon)
        assert daemon.wait() == 0
        out, err = waiting.communicate(timeout=40)
        assert (waiting.returncode, err) == (0, "")
        assert "drained; the daemon ends" in out


def test_a_lifted_drain_exit_leaves_nothing_behind_for_a_later_drain() -> None:
    with make() as daemon:
        start_hold(daemon)
        waiting = daemon.begin_ctl("drain", "--exit", "--wait", "--timeout", "40")
        wait_until(lambda: mode(daemon) == "draining", 10)
        daemon.rpc("resume")
        _, err = waiting.communicate(timeout=40)
        assert waiting.returncode == 1
        assert "superseded by resume" in err
        let_go(daemon)
        assert daemon.ctl("drain", "--wait").returncode == 0
        assert mode(daemon) == "drained"
        daemon.rpc("resume")
        wait_until(lambda: mode(daemon) == "running", 10)


def test_a_stopped_and_continued_process_stays_drained() -> None:
    with make() as daemon:
        assert daemon.ctl("drain", "--wait").returncode == 0
        os.kill(daemon.pid, signal.SIGSTOP)
        seen_by(daemon, signal.SIGCONT)
        # SIGTTIN made one worker more, which is drained as soon as it is there.
        assert mode(daemon) in ("draining", "drained")
        wait_until(lambda: mode(daemon) == "drained" and daemon.child("worker-3")["state"] == "PAUSED", 20)
        daemon.rpc("pause")
        assert mode(daemon) == "drained"


def test_tstp_and_cont_pause_and_resume() -> None:
    with make() as daemon:
        daemon.signal(signal.SIGTSTP)
        wait_until(lambda: mode(daemon) == "paused", 10)
        daemon.signal(signal.SIGCONT)
        wait_until(lambda: mode(daemon) == "running", 10)


def test_a_stop_supersedes_a_drain_that_still_waits() -> None:
    with make(args=("--stop-timeout", "30")) as daemon:
        start_hold(daemon)
        waiting = daemon.begin_ctl("drain", "--wait", "--timeout", "40")
        wait_until(lambda: mode(daemon) == "draining", 10)
        daemon.signal(signal.SIGTERM)
        _, err = waiting.communicate(timeout=40)
        assert waiting.returncode == 1
        assert "superseded by SIGTERM" in err
        with pytest.raises(RpcError, match="the daemon is stopping"):
            daemon.rpc("resume")
        let_go(daemon)
        assert daemon.wait() == 0


def test_ttou_leaves_the_last_worker_and_scale_0_is_named() -> None:
    with make() as daemon:
        daemon.signal(signal.SIGTTOU)
        wait_until(lambda: daemon.status()["desired_workers"] == 1, 10)
        daemon.signal(signal.SIGTTOU)
        wait_until(lambda: "SIGTTOU changes nothing" in daemon.log(), 10)
        assert daemon.status()["desired_workers"] == 1
        daemon.rpc("scale", workers=0)
        wait_until(lambda: not daemon.worker_pids(), 20)
        shown = daemon.ctl("status")
        assert "scaled to 0: no job runs here" in shown.stdout
        assert "no job runs here until it is scaled up" in daemon.log()


def test_a_restart_of_a_slot_that_backs_off_is_a_fresh_try() -> None:
    extra = "os.register_at_fork(after_in_child=lambda: os.path.exists(LEDGER + '.bad') and os._exit(3))"
    with make(extra=extra) as daemon:
        bad = daemon.directory / "ledger.bad"
        bad.touch()
        os.kill(daemon.worker_pids()["worker-1"], signal.SIGKILL)
        wait_until(lambda: daemon.child("worker-1")["state"] == "BACKOFF", 20)
        bad.unlink()
        done = daemon.ctl("restart", "worker-1", "--wait")
        assert done.returncode == 0, done.stderr
        assert daemon.child("worker-1")["state"] == "READY"


def test_a_reload_of_a_daemon_that_is_about_to_end_is_refused() -> None:
    with make() as daemon:
        start_hold(daemon)
        daemon.rpc("drain", exit=True)
        with pytest.raises(RpcError, match="as soon as it is drained"):
            daemon.rpc("reload")
        assert daemon.exit_code is None
        let_go(daemon)
        assert daemon.wait() == 0
