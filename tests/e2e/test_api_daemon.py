"""Apis under upnextd: one listener through reloads, restarts, kills and upgrades; no request is missed, and all end before workers."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.daemon import Daemon
from tests.support.dashboard import Dashboard
from tests.support.http import Client
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until

QUICK = {"UPNEXTD_CANARY_S": "0.3"}
SERVICE = """
import asyncio, os, time
import upnext

VERSION = {version}
worker = upnext.Worker("shop", concurrency=8)
api = upnext.Api("front", port={port}, processes=2, graceful_timeout=10)

@worker.task
async def version() -> int:
    return VERSION

@worker.task
async def held() -> str:
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    return "held"

@api.get("/version")
async def get_version() -> dict:
    return {{"api": VERSION, "worker": (await version.wait(wait_timeout=30)).value, "pid": os.getpid()}}

@api.get("/held")
async def get_held() -> str:
    open("begun", "w").close()
    return (await held.wait(wait_timeout=60)).value

@api.get("/block")
async def block() -> None:
    time.sleep(60)

{extra}
"""


def source(port: int, version: int = 1, extra: str = "") -> str:
    return SERVICE.format(port=port, version=version, extra=extra)


def make(port: int, *args: str, extra: str = "", env: dict[str, str] | None = None) -> Daemon:
    return Daemon(source(port, 1, extra), workers=2, args=args, env={**QUICK, **(env or {})})


def apis(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """slot -> its child that takes connections."""
    children = daemon.status()["children"]
    return {c["slot"]: c for c in children if c["role"] == "api" and c["state"] == "READY"}


def pids(daemon: Daemon) -> dict[str, int]:
    """slot -> pid of its worker, or of its process of an Api, that serves."""
    return daemon.worker_pids() | {slot: child["pid"] for slot, child in apis(daemon).items()}


def causes(daemon: Daemon) -> list[str]:
    """Why the former processes of the Apis ended, where there were any."""
    return [child["last_exit"]["cause"] for child in apis(daemon).values() if child["last_exit"]]


def asked(port: int) -> Any:
    with Client(port) as client:
        status, body = client.get("/version")
        assert status == 200
        return body


class Requests:
    """Asks for /version without an end, over one connection for all requests and over one for each; a failure is kept."""

    def __init__(self, port: int) -> None:
        self.failures: list[str] = []
        self.answers: list[dict[str, int]] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(keep_alive,)) for keep_alive in (True, True, False, False)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, keep_alive: bool) -> None:
        client = Client(self._port)
        try:
            self._ask_on(client, keep_alive)
        finally:
            client.close()

    def _ask_on(self, client: Client, keep_alive: bool) -> None:
        while not self._stop.wait(0.002):
            try:
                status, body = client.get("/version")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{'kept' if keep_alive else 'new'} connection: {error!r}")
                client.close()
                continue
            if status != 200:
                self.failures.append(f"{status}: {body}")
            else:
                self.answers.append(body)
            if not keep_alive or client.last_headers.get("connection") == "close":
                client.close()

    def some(self, more: int = 20) -> None:
        """Wait for so many more answers."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + more, 30, "answers")


def test_reloads_and_restarts_cut_no_request_off() -> None:
    port = free_port()
    with make(port) as daemon:
        wait_until(lambda: set(apis(daemon)) == {"api-front-1", "api-front-2"}, 30)
        assert daemon.status()["apis"] == [
            {
                "name": "front",
                "url": f"http://127.0.0.1:{port}",
                "listening": True,
                "processes": 2,
                "ready": 2,
                "requests": 0,
                "failed": 0,
            }
        ]
        with Requests(port) as requests:
            requests.some()
            for version in (2, 3):
                daemon.rewrite(source(port, version))
                done = daemon.ctl("reload", "--wait")
                assert done.returncode == 0, done.stderr
                wait_until(lambda version=version: requests.answers[-1]["api"] == version, 20, "the new code to answer")
                requests.some()
            before = pids(daemon)
            assert daemon.ctl("restart", "api-front-1").returncode == 0
            wait_until(lambda: apis(daemon).get("api-front-1", {}).get("pid") not in (None, before["api-front-1"]), 20)
            requests.some()
            before = pids(daemon)
            done = daemon.ctl("restart", "--wait")
            assert done.returncode == 0, done.stderr
            after = pids(daemon)
            assert set(after) == {"worker-1", "worker-2", "api-front-1", "api-front-2"}
            assert not set(before.values()) & set(after.values())
            requests.some()
            os.kill(daemon.pid, signal.SIGUSR2)
            wait_until(lambda: "upgraded to" in daemon.log(), 30, "the upgrade")
            requests.some()
        assert requests.failures == []
        ahead = [one for one in requests.answers if one["api"] > one["worker"]]
        assert ahead == [], "no new code answers while old workers still fetch"
        assert {one["api"] for one in requests.answers} == {1, 2, 3}


def test_processes_that_grew_are_replaced_one_at_a_time_and_no_request_is_cut_off() -> None:
    port = free_port()
    grow = (
        'HELD = []\n\n@api.get("/grow")\nasync def grow() -> int:\n'
        "    HELD.append(bytes(range(256)) * 1_200_000)\n    return os.getpid()\n"
    )
    with make(port, "--max-rss", "280M", extra=grow) as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        first = {child["pid"] for child in apis(daemon).values()}
        with Requests(port) as requests:
            requests.some()
            while first & {child["pid"] for child in apis(daemon).values()}:
                with Client(port) as client:
                    assert client.get("/grow")[0] == 200
            wait_until(lambda: len(apis(daemon)) == 2, 30)
            requests.some()
        assert requests.failures == []
        wait_until(lambda: causes(daemon) == ["recycled", "recycled"], 30, "those that are replaced to end")
        assert daemon.log().count("is recycled after") >= 2


def test_apis_alone_have_no_workers_beside_them_and_reload() -> None:
    port = free_port()
    with make(port, "--only", "front") as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30, "the Api to serve")
        status = daemon.status()
        assert (status["desired_workers"], [c for c in status["children"] if c["role"] == "worker"]) == (0, [])
        before = {child["pid"] for child in apis(daemon).values()}
        reloaded = daemon.ctl("reload", "--wait")
        assert reloaded.returncode == 0, reloaded.stderr
        assert not before & {child["pid"] for child in apis(daemon).values()}
        assert daemon.ctl("stop").returncode == 0


def test_a_killed_process_is_replaced_and_the_other_serves_meanwhile() -> None:
    port = free_port()
    with make(port) as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        victim = apis(daemon)["api-front-1"]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: apis(daemon).get("api-front-1", {}).get("pid") not in (None, victim), 20, "another process")
        assert asked(port)["api"] == 1
        child = daemon.child("api-front-1")
        assert (child["restarts"], child["last_exit"]["signal"]) == (1, "SIGKILL")
        assert daemon.ctl("status").returncode == 0


def test_a_process_whose_loop_is_blocked_is_ended_with_its_stacks() -> None:
    port = free_port()
    with make(port, "--hang-timeout", "1.5") as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        before = {slot: child["pid"] for slot, child in apis(daemon).items()}
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "time.sleep(60)" in daemon.log() or "in block" in daemon.log(), 30, "the stacks")
            wait_until(
                lambda: (
                    {slot: child["pid"] for slot, child in apis(daemon).items()} != before and len(apis(daemon)) == 2
                ),
                30,
                "the blocked one to be replaced",
            )
        assert asked(port)["api"] == 1
        assert causes(daemon) == ["hung"]


@pytest.mark.parametrize("on_a_path", [False, True])
def test_connects_fail_while_no_process_takes_them_and_are_taken_again_afterwards(
    tmp_path: Path, on_a_path: bool
) -> None:
    port, path = free_port(), tmp_path / "front.sock"
    broken = '@api.lifespan\nasync def pool():\n    if os.path.exists("broken"):\n        os.kill(os.getpid(), 9)\n    yield\n'
    args = ("--api-listen", f"front={path}") if on_a_path else ()

    def connects() -> bool:
        try:
            with socket.socket(socket.AF_UNIX if on_a_path else socket.AF_INET) as client:
                client.connect(str(path) if on_a_path else ("127.0.0.1", port))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True

    with make(port, *args, extra=broken) as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        assert connects()
        assert daemon.cli("call", "version", "--wait").returncode == 0, "a worker has shown that it works"
        (daemon.directory / "broken").touch()
        for child in apis(daemon).values():
            os.kill(child["pid"], signal.SIGKILL)
        wait_until(lambda: not connects(), 30, "connects to fail")
        shown = daemon.ctl("status")
        assert shown.returncode == 4
        assert "0 of 2 ready, connections are refused" in shown.stdout
        assert daemon.worker_pids(), "the workers go on"
        os.kill(daemon.pid, signal.SIGUSR2)
        wait_until(lambda: "upgraded to" in daemon.log(), 60, "the upgrade")
        assert not connects()
        (daemon.directory / "broken").unlink()
        wait_until(lambda: len(apis(daemon)) == 2, 60, "the processes to start again")
        assert connects()
        if not on_a_path:
            assert asked(port)["api"] == 1
        assert daemon.status()["apis"][0]["listening"]
        assert daemon.ctl("status").returncode == 0
        assert daemon.log().count("no process has taken connections") == 1


def test_a_stop_lets_requests_end_before_the_workers() -> None:
    port = free_port()
    with make(port, "--stop-timeout", "40") as daemon:
        answers: list[Any] = []

        def ask() -> None:
            with Client(port, 60.0) as client:
                answers.append(client.get("/held"))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until((daemon.directory / "begun").exists, 20, "the request to begin")
        stopping = daemon.begin_ctl("stop")
        wait_until(lambda: _refused(port), 20, "no more connections to be taken")
        assert daemon.exit_code is None
        (shown,) = daemon.status()["apis"]
        assert (shown["url"], shown["listening"]) == (f"http://127.0.0.1:{port}", False)
        (daemon.directory / "go").touch()
        asking.join(given(30))
        assert answers == [(200, "held")]
        _, err = stopping.communicate(timeout=given(30))
        assert stopping.returncode == 0, err
        assert daemon.wait() == 0


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_reload_whose_api_can_not_start_changes_nothing() -> None:
    port = free_port()
    broken = '@api.lifespan\nasync def pool():\n    raise RuntimeError("no database")\n    yield\n'
    with make(port) as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        before = {slot: child["pid"] for slot, child in apis(daemon).items()} | daemon.worker_pids()
        with Requests(port) as requests:
            requests.some()
            daemon.rewrite(source(port, 2, broken))
            done = daemon.ctl("reload", "--wait")
            assert done.returncode == 1
            assert "no database" in done.stderr
            requests.some()
        assert requests.failures == []
        assert {one["api"] for one in requests.answers} == {1}
        assert {slot: child["pid"] for slot, child in apis(daemon).items()} | daemon.worker_pids() == before


def test_a_reload_takes_an_api_in_and_another_away() -> None:
    old, new = free_port(), free_port()
    with make(old) as daemon:
        daemon.rewrite(source(new, 2).replace('"front"', '"back"').replace("processes=2", "processes=1"))
        done = daemon.ctl("reload", "--wait")
        assert done.returncode == 0, done.stderr
        assert asked(new)["api"] == 2
        assert [one["name"] for one in daemon.status()["apis"]] == ["back"]
        wait_until(lambda: set(apis(daemon)) == {"api-back-1"}, 20)
        # The former generation can be fallen back to: its listener goes with the next reload.
        assert daemon.ctl("reload", "--wait").returncode == 0
        wait_until(lambda: _refused(old), 20, "the old address to be free")


@pytest.mark.parametrize("preload", [True, False])
def test_addresses_and_numbers_can_be_given(tmp_path: Path, preload: bool) -> None:
    path = tmp_path / "front.sock"
    args = ("--api-listen", f"front={path}", "--api-processes", "front=1", *([] if preload else ["--no-preload"]))
    with make(free_port(), *args) as daemon:
        wait_until(lambda: set(apis(daemon)) == {"api-front-1"}, 30)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        ((), 69, "api 'front': 127.0.0.1:{port} is in use"),
        (("--api-listen", "fornt=127.0.0.1:1"), 78, "--api-listen: no api is named 'fornt'; there are: front"),
        (("--api-listen", "front"), 64, "--api-listen front: write NAME=HOST:PORT or NAME=/path.sock"),
        (("--api-processes", "front=0"), 64, "--api-processes front=0: write NAME=N, N from 1 to 100"),
    ],
)
def test_what_can_not_be_is_one_line(args: tuple[str, ...], code: int, line: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = make(port, *args)
        try:
            daemon.launch()
            assert daemon.wait(30) == code
            assert line.format(port=port) in daemon.log()
            assert "Traceback" not in daemon.log()
            daemon.assert_nothing_left()
        finally:
            daemon.close()


def test_the_dashboard_shows_where_an_api_listens() -> None:
    port = free_port()
    with make(port) as daemon, Dashboard(daemon) as dashboard:
        rows = wait_until(
            lambda: [one for one in dashboard.get("/apis").json if one["ready"] == 2], 30, "two processes"
        )
        assert rows[0]["name"] == "front"
        assert rows[0]["url"] == f"http://127.0.0.1:{port}"
        assert [slot["slot"] for slot in rows[0]["slots"]] == ["api-front-1", "api-front-2"]
        page = dashboard.get("/apis", accept="text/html").text
        assert f"http://127.0.0.1:{port}" in page
        assert "api-front-2" in page


def test_requests_are_counted_by_route_and_status() -> None:
    port, metrics_port = free_port(), free_port()
    extra = '@api.get("/orders/{number}")\nasync def order(number: int) -> int:\n    return 10 // number\n'
    with make(port, "--metrics", f"127.0.0.1:{metrics_port}", extra=extra) as daemon:
        wait_until(lambda: len(apis(daemon)) == 2, 30)
        for path, status in (
            ("/orders/2", 200),
            ("/orders/5", 200),
            ("/orders/0", 500),
            ("/orders/x", 422),
            ("/no", 404),
        ):
            with Client(port) as client:
                assert client.get(path, raw=True)[0] == status

        def metrics() -> str:
            try:
                with Client(metrics_port) as client:
                    return client.get("/metrics", raw=True)[1].decode()
            except OSError:
                return ""

        def count(route: str, status: str) -> str:
            return f'upnext_api_requests_total{{api="front",daemon="service",route="{route}",status="{status}"}}'

        order = "GET /orders/{number}"
        wait_until(lambda: f"{count(order, '2xx')} 2.0" in metrics(), 30, "the requests to be counted")
        shown = metrics()
        assert f"{count(order, '5xx')} 1.0" in shown
        assert f"{count(order, '4xx')} 1.0" in shown
        assert f"{count('other', '4xx')} 1.0" in shown
        assert f'upnext_api_request_duration_seconds_count{{api="front",daemon="service",route="{order}"}} 4.0' in shown
        front = daemon.status()["apis"][0]
        assert (front["requests"], front["failed"]) == (5, 1)
        for child in apis(daemon).values():
            os.kill(child["pid"], signal.SIGKILL)
        wait_until(lambda: len(apis(daemon)) == 2, 30, "other processes")
        wait_until(lambda: f"{count(order, '2xx')} 2.0" in metrics(), 30, "the counters to outlive the processes")
