"""What the daemon's log says of a broker that stops answering: one line, and one when it answers again; where its Apis are."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.support.daemon import Daemon
from tests.support.servers import Server, free_port
from tests.support.waiting import wait_until

SERVICE = """
    import asyncio
    import upnext

    worker = upnext.Worker("shop", concurrency=4)

    @worker.task
    async def echo(n: int) -> int:
        return n
"""
AWAY = "the broker does not answer"
BACK = "the broker answers again"


def frozen(server: Server) -> tuple[Callable[[], None], Callable[[], None]]:
    return server.freeze, server.thaw


def gone(server: Server) -> tuple[Callable[[], None], Callable[[], None]]:
    return server.kill, server.restart


@pytest.mark.parametrize("outage", [frozen, gone, None])
def test_an_outage_is_two_lines(
    outage: Callable[[Server], tuple[Callable[[], None], Callable[[], None]]] | None,
) -> None:
    """Of a foreign server, and of the daemon's own (None), which is frozen; meanwhile a worker dies, and none can take its place."""
    foreign: AbstractContextManager[Server | None] = nullcontext() if outage is None else Server()
    with foreign as server:
        url = None if server is None else server.tcp_url
        with Daemon(SERVICE, workers=2, redis_url=url) as daemon:
            if server is None or outage is None:
                broker = daemon.child("broker")["pid"]
                begin, end = (lambda: os.kill(broker, signal.SIGSTOP)), (lambda: os.kill(broker, signal.SIGCONT))
            else:
                begin, end = outage(server)
            wait_until(lambda: " ready: " in daemon.log(), 20, "the scheduler, too")
            assert AWAY not in daemon.log()
            for times in (1, 2):
                begin()
                wait_until(lambda times=times: daemon.log().count(AWAY) == times, 20, "the outage to be logged")
                assert daemon.ctl("status").returncode == 4
                os.kill(daemon.child("worker-1")["pid"], signal.SIGKILL)
                wait_until(lambda: daemon.child("worker-1")["state"] in ("STARTING", "BACKOFF"), 20)
                end()
                wait_until(lambda times=times: daemon.log().count(BACK) == times, 30, "its end to be logged")
                wait_until(lambda: len(daemon.worker_pids()) == 2, 60, "the worker to be replaced")
            assert daemon.log().count(AWAY) == 2
            assert daemon.ctl("status").returncode == 0


def test_the_log_and_the_status_name_where_an_api_is() -> None:
    port = free_port()
    source = (
        f'import upnext\nworker = upnext.Worker("shop")\nfront = upnext.Api("front", port={port}, processes=2)\n'
        '@front.get("/")\nasync def home() -> int:\n    return 1\n'
        "@worker.task\nasync def task() -> int:\n    return 1\n"
    )
    with Daemon(source) as daemon:
        wait_until(lambda: " ready: " in daemon.log(), 30, "the Api, too")
        ready = next(line for line in daemon.log().splitlines() if " ready: " in line)
        assert ready.endswith(f"0 jobs running, front at http://127.0.0.1:{port}")
        shown = daemon.ctl("status")
        assert f"api front at http://127.0.0.1:{port}: 2 of 2 ready" in shown.stdout
        assert shown.returncode == 0
        assert re.search(r"api-front-2 +READY", shown.stdout)
