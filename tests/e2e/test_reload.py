"""New code without losing a job; and broken code without anybody noticing but who asked for it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.reloading import Load, all_done, ledger, ledger_path, let_go, make, source, start_hold
from tests.support.daemon import Daemon
from tests.support.waiting import PATIENCE, wait_until
from upnext.control.client import ControlClient


def version(daemon: Daemon) -> str:
    done = daemon.cli("call", "version", "--wait", "--timeout", "20")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def children(daemon: Daemon) -> dict[str, int]:
    return {c["slot"]: c["pid"] for c in daemon.status()["children"] if c["role"] in ("worker", "scheduler")}


def test_a_reload_takes_in_the_new_code_and_tells_how_it_goes() -> None:
    with make() as daemon:
        before = children(daemon)
        broker = daemon.child("broker")["pid"]
        daemon.rewrite(source(2))
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        reported = done.stdout
        for step in ("importing the service", "its first worker", "its scheduler takes over", "reloaded: generation 2"):
            assert step in reported, reported
        status = daemon.status()
        assert (status["generation"], status["mode"], status["ready_workers"]) == (2, "running", 2)
        assert not set(children(daemon).values()) & set(before.values())
        assert daemon.child("worker-1")["last_exit"]["cause"] == "reloaded"
        assert daemon.child("broker")["pid"] == broker
        assert version(daemon) == "2"
        assert "crash" not in daemon.log()


def test_hup_reloads_and_running_jobs_end_in_the_old_code() -> None:
    with make() as daemon:
        job_id = start_hold(daemon)
        daemon.rewrite(source(2))
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: daemon.status()["generation"] == 2 and daemon.status()["mode"] == "running", 10)
        assert any(child["in_flight"] and child["generation"] == 1 for child in daemon.status()["children"])
        let_go(daemon)
        done = wait_until(
            lambda: output if '"done"' in (output := daemon.cli("job", job_id, "--json").stdout) else "", 15
        )
        assert '"result":1' in done.replace(" ", "")
        wait_until(lambda: all(child["generation"] in (2, None) for child in serving(daemon)), 10)


def serving(daemon: Daemon) -> list[dict[str, Any]]:
    return [child for child in daemon.status()["children"] if child["role"] in ("worker", "scheduler")]


BROKEN = {
    "SyntaxError": ("def broken(:", "SyntaxError"),
    "ImportError": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    "raises": ("def deep():\n    raise KeyError('deep')\ndeep()", "in deep"),
    "segfault": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "exit": ("import os; os._exit(9)", "exit:9"),
    "SystemExit": ("raise SystemExit(3)", "SystemExit"),
    "hang": ("import time; time.sleep(600)", "not done within"),
    "no worker": ("x = 1", "has no Worker"),
    "thread": ("import threading, time; threading.Thread(target=time.sleep, args=(99,), name='pump').start()", "pump"),
}
"""Bad at import: what the error says."""

BAD_CHILDREN = {
    "dies at once": ("os.register_at_fork(after_in_child=lambda: os._exit(7))", "could not be forked|exit:7|ended"),
    "dies when ready": (
        "import signal\nos.register_at_fork(after_in_child=lambda: signal.setitimer(signal.ITIMER_REAL, 2.0))",
        "SIGALRM",
    ),
    "never ready": ("os.register_at_fork(after_in_child=lambda: time.sleep(600))", "before it was ready"),
}
"""Good at import, bad as a child."""


def test_broken_code_leaves_everything_as_it_was() -> None:
    """Nine kinds of broken imports and three of broken children, one after the other, under load."""
    env = {"UPNEXTD_START_TIMEOUT_S": "8", "UPNEXTD_IMPORT_TIMEOUT": "8", "UPNEXTD_CANARY_S": "5"}
    with make(env=env) as daemon:
        before = children(daemon)
        with Load(daemon, per_s=20) as load:
            for name, (code, reported) in BROKEN.items():
                daemon.rewrite(source(2, code) if name == "thread" else code)
                fails(daemon, reported, before)
            for code, reported in BAD_CHILDREN.values():
                daemon.rewrite(source(2, code))
                fails(daemon, reported, before)
            assert version(daemon) == "1"
        assert load.errors == []
        wait_until(lambda: all_done(daemon, load), 20)
        starts, _ = ledger(daemon)
        assert max(starts.values()) <= 1 + len(BAD_CHILDREN), "only what a dying canary had started runs again"
        assert load.least_ready >= 2
        daemon.rewrite(source(3))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert version(daemon) == "3"


def fails(daemon: Daemon, reported: str, before: dict[str, int]) -> None:
    done = daemon.ctl("reload", "--wait")
    assert done.returncode == 1, done.stdout
    assert "reload failed, generation 1 goes on" in done.stderr
    assert re.search(reported, done.stderr), done.stderr
    assert daemon.status()["generation"] == 1
    # A canary may still be on its way out.
    wait_until(lambda: len(serving(daemon)) == 3, 10)
    assert children(daemon) == before


def test_term_during_a_reload_ends_at_once() -> None:
    with make() as daemon:
        daemon.rewrite("import time; time.sleep(600)")
        daemon.ctl("reload")
        wait_until(lambda: daemon.status()["mode"] == "reloading", 5)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 1.0 * PATIENCE


HANGS = "import os, time; open(os.environ['LEDGER'] + '.hangs', 'w').close(); time.sleep(600)"


def generations(daemon: Daemon) -> set[int]:
    return {child["generation"] for child in daemon.status()["children"] if child["generation"] is not None}


def test_a_newer_reload_takes_the_place_of_a_hung_import() -> None:
    with make() as daemon:
        daemon.rewrite(HANGS)
        hung = daemon.begin_ctl("reload", "--wait")
        wait_until(ledger_path(daemon).with_name("ledger.hangs").exists, 10, "the import to hang")
        daemon.rewrite(source(2))
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        _, err = hung.communicate(timeout=40)
        assert hung.returncode == 1
        assert "superseded by a newer reload" in err
        assert daemon.status()["generation"] == 3
        assert version(daemon) == "2"
        wait_until(lambda: 2 not in generations(daemon), 10)
        assert "can't import" not in daemon.log(), "who is no longer wanted has not failed"


def test_a_newer_reload_takes_the_place_of_a_canary() -> None:
    with make(env={"UPNEXTD_CANARY_S": "600"}) as daemon:
        wait_until(lambda: None not in children(daemon).values(), 20, "the scheduler, too")
        before = children(daemon)
        first = daemon.rpc("reload")
        wait_until(lambda: any(c["generation"] == 2 and c["state"] == "READY" for c in serving(daemon)), 20)
        daemon.rpc("reload")
        assert "superseded" in daemon.rpc("wait", **first)["text"]
        wait_until(lambda: any(c["generation"] == 3 and c["state"] == "READY" for c in serving(daemon)), 20)
        wait_until(lambda: 2 not in generations(daemon), 20)
        assert daemon.ctl("reload", "--abort").returncode == 0
        wait_until(lambda: generations(daemon) == {1}, 20)
        assert children(daemon) == before


def test_an_aborted_reload_leaves_the_old_code() -> None:
    with make() as daemon:
        before = children(daemon)
        daemon.rewrite(HANGS)
        hung = daemon.begin_ctl("reload", "--wait")
        wait_until(ledger_path(daemon).with_name("ledger.hangs").exists, 10, "the import to hang")
        done = daemon.ctl("reload", "--abort")
        assert (done.returncode, done.stdout) == (0, "aborted: generation 1 goes on\n")
        _, err = hung.communicate(timeout=40)
        assert hung.returncode == 1
        assert "generation 1 goes on: aborted by an operator" in err
        assert (daemon.status()["mode"], children(daemon)) == ("running", before)
        none = daemon.ctl("reload", "--abort")
        assert none.returncode == 1
        assert "no reload is under way" in none.stderr


def test_while_workers_roll_the_newest_reload_waits() -> None:
    with make(env={"UPNEXTD_CANARY_S": "2"}) as daemon:
        daemon.rewrite(source(2))
        rolling = daemon.rpc("reload")
        template = wait_until(lambda: _template_of_a_ready_canary(daemon), 30)
        # It forks nobody meanwhile: the workers can't be replaced before it goes on.
        os.kill(template, signal.SIGSTOP)
        wait_until(lambda: "the others follow" in daemon.log(), 30)
        second, newest = daemon.rpc("reload"), daemon.rpc("reload")
        ended = daemon.rpc("wait", **second)
        assert (ended["ok"], ended["text"]) == (False, "superseded by a newer reload")
        os.kill(template, signal.SIGCONT)
        assert daemon.rpc("wait", **rolling)["ok"]
        assert daemon.rpc("wait", **newest)["text"] == "reloaded: generation 4"
        assert version(daemon) == "2"


def _template_of_a_ready_canary(daemon: Daemon) -> int:
    if not any(c["generation"] == 2 and c["state"] == "READY" for c in serving(daemon)):
        return 0
    return next(c["pid"] for c in daemon.status()["children"] if c["role"] == "template" and c["generation"] == 2)


def test_an_import_that_hangs_at_the_start_ends_the_daemon_with_its_stack() -> None:
    daemon = make(args=("--import-timeout", "2"))
    daemon.rewrite("import time\n\ndef dawdle():\n    time.sleep(600)\n\ndawdle()")
    try:
        assert daemon.launch().wait() == 78
        assert "in dawdle" in daemon.log()
        assert "the import was not done within 2 s (--import-timeout)" in daemon.log()
    finally:
        daemon.close()


def test_what_a_reload_refuses() -> None:
    with make() as daemon:
        daemon.rewrite("import time; time.sleep(600)")
        daemon.rpc("reload")
        assert daemon.ctl("drain").returncode == 1
        assert "a reload is under way" in daemon.ctl("drain").stderr
        daemon.rpc("pause")
        wait_until(lambda: all(c["state"] == "PAUSED" for c in serving(daemon) if c["role"] == "worker"), 5)
        daemon.rpc("resume")


def test_a_reload_of_a_paused_daemon_stays_paused() -> None:
    with make() as daemon:
        daemon.rpc("pause")
        wait_until(lambda: daemon.status()["mode"] == "paused", 5)
        daemon.rewrite(source(2))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert daemon.status()["mode"] == "paused"
        assert {c["state"] for c in serving(daemon) if c["role"] == "worker"} == {"PAUSED"}
        daemon.rpc("resume")
        assert version(daemon) == "2"


def test_a_wait_that_runs_out_after_the_commit_says_that_the_new_code_is_live() -> None:
    with make() as daemon:
        job_id = daemon.cli("call", "block", "--kwargs", '{"seconds": 600}').stdout.strip()
        wait_until(lambda: any(child["in_flight"] for child in daemon.status()["children"]), 10)
        daemon.rewrite(source(2))
        with ControlClient(daemon.socket_path) as client:
            op_id = client.call("reload")["op_id"]
            wait_until(lambda: "generation 2 serves" in daemon.log(), 60)
            with pytest.raises(TimeoutError) as waited:
                client.wait(op_id, timeout_s=1)
        assert str(waited.value) == (
            "not done within 1 s, it goes on in the daemon: generation 2 serves, the new code is live;"
            f" old children left: 1, waiting for {job_id}"
        )
        assert daemon.ctl("stop", "--now").returncode in (0, 75)
        daemon.wait()


def test_old_children_are_killed_at_the_reload_timeout() -> None:
    with make(args=("--reload-timeout", "1")) as daemon:
        daemon.cli("call", "block", "--kwargs", '{"seconds": 60}')
        wait_until(lambda: any(child["in_flight"] for child in daemon.status()["children"]), 10)
        daemon.rewrite(source(2))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert {child["generation"] for child in serving(daemon)} == {2}
        daemon.signal(signal.SIGQUIT)
        assert daemon.wait() in (0, 75)


CRON = '@worker.cron("* * * * * *")\nasync def {name}() -> None:\n    write("start {number}\\n")\n'


def test_the_newest_code_s_definitions_count_and_a_cron_that_is_gone_stops_at_the_commit() -> None:
    limited = "@worker.task(max_concurrency={limit})\nasync def narrow() -> None: ...\n"
    daemon = make(extra=CRON.format(name="tick", number=1) + limited.format(limit=1), env={"UPNEXTD_CANARY_S": "5"})
    with daemon:
        wait_until(lambda: ledger(daemon)[0][1] >= 1, 10, "the cron to fire")
        # A reload that fails leaves the old definitions alone, though its canary had registered.
        daemon.rewrite(source(2, limited.format(limit=7)))
        daemon.rpc("reload")
        canary = wait_until(
            lambda: [c["pid"] for c in serving(daemon) if (c["generation"], c["state"]) == (2, "READY")]
        )
        os.kill(canary[0], signal.SIGKILL)
        wait_until(lambda: daemon.status()["mode"] == "running", 10)
        assert daemon.status()["generation"] == 1
        assert '"concurrency":1' in tasks(daemon)
        assert "tick" in daemon.cli("cron", "list", "--json").stdout
        daemon.rewrite(source(3, CRON.format(name="tock", number=2) + limited.format(limit=5)))
        assert daemon.ctl("reload", "--wait").returncode == 0
        wait_until(lambda: '"concurrency":5' in tasks(daemon), 5)
        wait_until(lambda: "tick" not in daemon.cli("cron", "list", "--json").stdout, 5)
        stopped_at, going_on = ledger(daemon)[0][1], ledger(daemon)[0][2]
        wait_until(lambda: ledger(daemon)[0][2] >= going_on + 4, 10, "the new cron to fire")
        assert ledger(daemon)[0][1] <= stopped_at + 1


def tasks(daemon: Daemon) -> str:
    return daemon.cli("tasks", "--json").stdout.replace(" ", "")


@pytest.mark.parametrize("times", [int(os.environ.get("UPNEXT_TEST_RELOADS", "4"))])
def test_reloads_under_load_lose_nothing_and_run_nothing_twice(times: int) -> None:
    """UPNEXT_TEST_RELOADS=50 for the whole measure."""
    before = (0, 0, 0)
    with make() as daemon:
        with Load(daemon) as load:
            for number in range(times):
                daemon.rewrite(source(number + 2))
                assert daemon.ctl("reload", "--wait").returncode == 0, daemon.log()
                if number == 1:
                    # By now there is a template to fall back to.
                    before = footprint(daemon)
        wait_until(lambda: all_done(daemon, load), 20)
        assert load.errors == []
        starts, ends = ledger(daemon)
        assert (len(starts), set(starts.values()), set(ends.values())) == (load.submitted, {1}, {1})
        assert load.least_ready >= 2
        wait_until(lambda: footprint(daemon)[0] <= before[0], 5, f"fds as {before}")
        after = footprint(daemon)
        print(
            f"{times} reloads, {load.submitted} jobs, least ready {load.least_ready}, (fds, threads, RSS KiB) {before} -> {after}"
        )
        assert after[1] == 1
        assert after[2] < before[2] + 4096


def footprint(daemon: Daemon) -> tuple[int, int, int]:
    """(open descriptors, threads, RSS in KiB) of the supervisor."""
    output = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    return len(os.listdir(f"/proc/{daemon.pid}/fd")), int(output["Threads"]), int(output["VmRSS"].split()[0])


def test_a_task_that_the_new_code_has_renamed_is_listed_by_its_new_name_alone() -> None:
    """Once no job of the old name is left: neither one that waits, nor a dead letter."""

    def listed() -> set[str]:
        return {row["task"] for row in json.loads(daemon.cli("tasks", "--json").stdout)}

    with make(workers=1, extra="@worker.task\nasync def old_name() -> None: ...\n") as daemon:
        wait_until(lambda: "old_name" in listed(), 30)
        daemon.rewrite(source(2, "@worker.task\nasync def new_name() -> None: ...\n"))
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: "new_name" in (names := listed()) and "old_name" not in names, 60)
        assert "task old_name of service" in daemon.log(), "the log says that it went"
