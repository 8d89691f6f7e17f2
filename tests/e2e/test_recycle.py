"""Children are replaced for their age, their size, or because an operator asked: never with less capacity, never at a job's expense."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.e2e.reloading import Load, all_done, ledger, let_go, make, source, start_hold
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until


def clean(daemon: Daemon, load: Load) -> None:
    """Every job ran exactly once."""
    wait_until(lambda: all_done(daemon, load), 20)
    starts, ends = ledger(daemon)
    assert load.errors == []
    assert (len(starts), set(starts.values()), set(ends.values())) == (load.submitted, {1}, {1})


def last_causes(daemon: Daemon) -> set[str]:
    return {c["last_exit"]["cause"] for c in daemon.status()["children"] if c["role"] == "worker" and c["last_exit"]}


def test_max_jobs_recycles_one_at_a_time() -> None:
    with make(args=("--max-jobs", "40")) as daemon:
        with Load(daemon) as load:
            wait_until(lambda: restarts(daemon) >= 4, 30, "4 children to be recycled")
        clean(daemon, load)
        assert load.least_ready >= 2
        wait_until(lambda: len(daemon.worker_pids()) == 2, 10)
        assert last_causes(daemon) == {"recycled"}
        done = [int(jobs) for jobs in re.findall(r"is recycled after (\d+) jobs", daemon.log())]
        assert len(done) >= 4
        assert min(done) >= 40


def restarts(daemon: Daemon) -> int:
    return sum(child["restarts"] for child in daemon.status()["children"] if child["role"] == "worker")


def test_max_rss_recycles_who_grew() -> None:
    with make(1, args=("--max-rss", "150M")) as daemon:
        pid = daemon.worker_pids()["worker-1"]
        assert daemon.cli("call", "eat", "--kwargs", '{"mebibytes": 160}', "--wait").returncode == 0
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, pid), 15)
        wait_until(lambda: last_causes(daemon) == {"recycled"}, 10)
        assert "MiB" in daemon.log()
        assert restarts(daemon) == 1, "the new one is small"


def test_max_rss_goes_on_while_a_replaced_worker_still_has_a_job() -> None:
    with make(1, args=("--max-rss", "150M")) as daemon:
        start_hold(daemon)
        for times in (1, 2):
            assert daemon.cli("call", "eat", "--kwargs", '{"mebibytes": 160}', "--wait").returncode == 0
            wait_until(lambda: daemon.log().count("is recycled after") == times, 20)  # noqa: B023
            wait_until(lambda: "worker-1" in daemon.worker_pids(), 20)
        leaving = [c for c in daemon.status()["children"] if c["slot"] == "worker-1" and c["in_flight"]]
        assert [child["state"] for child in leaving] == ["DRAINING"]
        let_go(daemon)
        wait_until(lambda: restarts(daemon) == 2, 20)


def test_a_max_rss_below_what_the_service_needs_is_told_and_replaces_nobody() -> None:
    with make(2, args=("--max-rss", "1M")) as daemon:
        before = daemon.worker_pids()
        wait_until(lambda: "before its first job: --max-rss is too small" in daemon.log(), 10)
        looks = daemon.status()["children"][0]["uptime_s"] + 2
        wait_until(lambda: daemon.status()["children"][0]["uptime_s"] > looks, 20, "some more looks at their size")
        assert daemon.worker_pids() == before
        assert daemon.log().count("too small") == 1


def test_restart_goes_one_by_one_under_load() -> None:
    with make(3) as daemon:
        before = daemon.worker_pids()
        with Load(daemon) as load:
            done = daemon.ctl("restart", "--wait")
            assert done.returncode == 0, done.stderr
            one = daemon.worker_pids()
            assert not set(one.values()) & set(before.values())
            assert daemon.ctl("restart", "worker-2", "--wait").returncode == 0
            two = daemon.worker_pids()
        assert {slot for slot in one if one[slot] != two[slot]} == {"worker-2"}
        clean(daemon, load)
        assert load.least_ready >= 3


def test_scaling_under_load_loses_nothing() -> None:
    with make() as daemon:
        with Load(daemon) as load:
            for workers in (4, 1, 3):
                daemon.rpc("scale", workers=workers)
                wait_until(lambda wanted=workers: len(workers_there(daemon)) == wanted, 15)
            daemon.signal(signal.SIGTTIN)
            wait_until(lambda: len(workers_there(daemon)) == 4, 15)
            daemon.signal(signal.SIGTTOU)
            daemon.signal(signal.SIGTTOU)
            # Two of the same signal may be one.
            wait_until(lambda: len(workers_there(daemon)) == daemon.status()["desired_workers"] in (2, 3), 15)
        clean(daemon, load)


def workers_there(daemon: Daemon) -> list[str]:
    return [c["slot"] for c in daemon.status()["children"] if c["role"] == "worker" and c["state"] != "EXITED"]


THREADED = """\
import threading
threading.Thread(target=time.sleep, args=(999,), daemon=True, name="pump").start()
write("start 7777\\n")
"""


def test_a_crash_loop_falls_back_to_the_former_generation() -> None:
    with make() as daemon:
        daemon.rewrite(source(2))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert daemon.status()["generation"] == 2
        # The new code's workers get ready, and die before anything counts as a life.
        wait_until(lambda: kill_workers_of(daemon, 2) == 1, 60, "the fall-back")
        assert "falling back to generation 1" in daemon.log()
        wait_until(lambda: daemon.status()["ready_workers"] == 2, 20)
        assert daemon.cli("call", "version", "--wait", "--timeout", "20").stdout.strip() == "1"
        wait_until(lambda: {c["generation"] for c in daemon.status()["children"] if c["role"] == "template"} == {1}, 15)
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert daemon.status()["generation"] == 3


def kill_workers_of(daemon: Daemon, generation: int) -> int:
    """SIGKILL to those that are ready -> the generation that the daemon wants."""
    status = daemon.status()
    for child in status["children"]:
        if (child["role"], child["generation"], child["state"]) == ("worker", generation, "READY"):
            with suppress(ProcessLookupError):
                os.kill(child["pid"], signal.SIGKILL)
    return status["generation"]


def test_without_preload_each_child_imports_for_itself() -> None:
    """So the service may start threads at import; and reloads, crashes and broken code go as they do otherwise."""
    with make(args=("--no-preload",), extra=THREADED) as daemon:
        assert ledger(daemon)[0][7777] == 4, "to say what the service is, two workers, the scheduler"
        assert not [c for c in daemon.status()["children"] if c["role"] == "template"]
        before = daemon.worker_pids()
        assert daemon.cli("call", "version", "--wait", "--timeout", "20").stdout.strip() == "1"
        os.kill(before["worker-1"], signal.SIGKILL)
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, before["worker-1"]), 20)
        now = daemon.worker_pids()
        good = daemon.service.read_text()
        daemon.rewrite("import nowhere_to_be_found")
        failed = daemon.ctl("reload", "--wait")
        assert failed.returncode == 1
        assert "No module named 'nowhere_to_be_found'" in failed.stderr
        assert daemon.worker_pids() == now
        daemon.rewrite(good.replace("VERSION = 1", "VERSION = 2"))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert daemon.cli("call", "version", "--wait", "--timeout", "20").stdout.strip() == "2"
        commands = " ".join(daemon.left().values())
        assert "secret" not in commands


@pytest.mark.parametrize("ending", ["TERM", "ctl stop"])
@pytest.mark.parametrize("mode", ["pause", "drain"])
def test_a_stop_of_a_paused_or_draining_daemon(mode: str, ending: str) -> None:
    with make() as daemon, ThreadPoolExecutor(1) as pool:
        start_hold(daemon)
        daemon.ctl(mode)
        stop = pool.submit(daemon.stop) if ending == "TERM" else pool.submit(daemon.ctl, "stop")
        wait_until(lambda: daemon.status()["mode"] == "stopping", 10)
        let_go(daemon)
        stopped = stop.result()
        if not isinstance(stopped, int):
            assert stopped.returncode == 0, stopped.stderr
            assert "stopped" in stopped.stdout
        assert daemon.wait() == 0


def test_ctl_stop_tells_which_jobs_were_killed() -> None:
    with make(1, args=("--stop-timeout", "1")) as daemon:
        job_id = daemon.cli("call", "block", "--kwargs", '{"seconds": 60}').stdout.strip()
        wait_until(lambda: any(child["in_flight"] for child in daemon.status()["children"]), 10)
        stopped = daemon.ctl("stop", "--json")
        assert stopped.returncode == 75
        assert '"exit_code":75' in stopped.stdout.replace(" ", "")
        assert job_id in stopped.stdout
        assert daemon.wait() == 75
