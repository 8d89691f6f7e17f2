"""What becomes of a daemon whose template dies, hangs, or would load something else; and of a child that can't be steered."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.e2e.reloading import let_go, make, start_hold
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until


def template(daemon: Daemon, generation: int = 1) -> dict[str, Any]:
    return next(c for c in daemon.status()["children"] if c["role"] == "template" and c["generation"] == generation)


def workers(daemon: Daemon) -> list[dict[str, Any]]:
    return [child for child in daemon.status()["children"] if child["role"] == "worker"]


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_hung_template_is_replaced() -> None:
    hook = "os.register_at_fork(before=lambda: os.path.exists(LEDGER + '.hang') and time.sleep(600))"
    with make(extra=hook) as daemon:
        hang = daemon.directory / "ledger.hang"
        hang.touch()
        hung = template(daemon)["pid"]
        kill(daemon.worker_pids()["worker-1"])
        wait_until(lambda: "has answered no order to fork" in daemon.log(), 40)
        hang.unlink()
        wait_until(lambda: template(daemon)["state"] == "READY" and template(daemon)["pid"] != hung, 30)
        wait_until(lambda: len(daemon.worker_pids()) == 2, 60)


def test_a_child_whose_channel_is_closed_is_replaced() -> None:
    cut = (
        "import socket\n"
        "from upnextd import channel\n"
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
        assert "closed its channel and can't be steered" in daemon.log()
        let_go(daemon)
        wait_until(lambda: len(workers(daemon)) == 1, 20, "the old one to end by a signal, once its job is done")
        assert daemon.ctl("drain", "--wait").returncode == 0
        assert "crash" not in daemon.log()


def test_a_service_with_nothing_to_do_is_named() -> None:
    daemon = make()
    daemon.rewrite("import upnext\nworker = upnext.Worker('idle')\n")
    with daemon:
        assert daemon.log().count("declares no task, cron or event handler") == 1
