"""Apis beside workers in one process: real requests over real sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http import Client
from tests.support.processes import dies_with_us
from tests.support.waiting import wait_until

UPNEXT = str(Path(sys.executable).parent / "upnext")

SERVICE = """
import asyncio, os
import upnext

worker = upnext.Worker("shop")
api = upnext.Api("front", port={port}, graceful_timeout={graceful}, secrets=[{secrets}])
orders = api.group("/orders", tags=["orders"])


@worker.task
async def double(number: int) -> int:
    return 2 * number


@api.lifespan
async def pool(owner):
    yield {{"pool": "open"}}
    print("pool closed", flush=True)


@worker.lifespan
async def other():
    yield
    print("worker left", flush=True)


@orders.get("/{{number}}")
async def order(number: int) -> int:
    return (await double.wait(number)).value


@api.get("/state")
async def state(request: upnext.api.Request) -> str:
    return request.state.pool + api.state["pool"]


@api.get("/slow")
async def slow() -> str:
    open("begun", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    return "slow " + str((await double.wait(4)).value)


@api.get("/stream")
async def stream() -> StreamingResponse:
    async def endless():
        while True:
            yield "tick "
            await asyncio.sleep(0.05)

    return StreamingResponse(endless())


@api.get("/plain/{{number}}")
def plain(number: int) -> int:
    return double.submit_sync(number).value_sync()


@api.websocket("/echo")
async def echo(socket: upnext.api.WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Program:
    """`upnext ARGS`, with its log."""

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str, program: str = UPNEXT) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                dies_with_us([program, *arguments]),
                cwd=folder,
                env=env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> None:
        def look() -> bool:
            assert self.process.poll() is None, self.log()
            return "ready (Ctrl-C ends it)" in self.log()

        wait_until(look, 30, "upnext run to be ready")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def env(redis_url: str, namespace: str) -> dict[str, str]:
    import os

    return {**os.environ, "UPNEXT_REDIS_URL": redis_url, "UPNEXT_NAMESPACE": namespace}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def service(tmp_path: Path, port: int) -> Path:
    return write_service(tmp_path, port)


def run_to_end(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """`upnext run ARGS`, of what is refused."""
    return subprocess.run([UPNEXT, "run", *args], env=env, capture_output=True, text=True, timeout=60, check=False)


def write_service(folder: Path, port: int, graceful: float = 30.0, secrets: str = "") -> Path:
    path = folder / "shop.py"
    imports = "from fastapi import Request, WebSocket\nfrom fastapi.responses import StreamingResponse\n"
    path.write_text(imports + SERVICE.format(port=port, graceful=graceful, secrets=secrets).replace("upnext.api.", ""))
    return path


@pytest.fixture
def running(tmp_path: Path, service: Path, env: dict[str, str]) -> Iterator[Program]:
    program = Program(tmp_path, env, "run", str(service))
    program.ready()
    yield program
    if program.process.poll() is None:
        program.process.kill()
        program.process.wait()


def test_requests_submit_and_wait_for_jobs(running: Program, port: int, env: dict[str, str]) -> None:
    assert f"http://127.0.0.1:{port}, ready" in running.log()
    with Client(port) as client:
        assert client.get("/orders/21") == (200, 42)
        assert client.get("/plain/4") == (200, 8)
        assert client.get("/state") == (200, "openopen")
        assert client.get("/docs", raw=True)[0] == 200
        assert "/orders/{number}" in client.get("/openapi.json")[1]["paths"]
    listed = subprocess.run([UPNEXT, "jobs", "--json"], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert {one["via"] for one in json.loads(listed.stdout)} == {"GET /orders/{number}", "GET /plain/{number}"}
    assert running.end() == 0
    assert running.log().index("pool closed") < running.log().index("worker left")


def test_a_request_under_way_ends_first_and_its_job_runs(running: Program, port: int, tmp_path: Path) -> None:
    with Client(port) as client, Client(port) as idle:
        assert idle.get("/state")[0] == 200
        client.send("/slow")
        wait_until((tmp_path / "begun").exists, 20, "the request to be under way")
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: not accepts(port), 20, "the listener to be closed")
        assert idle.get("/state") == (200, "openopen")  # a keep-alive connection is answered, and closed after that
        assert idle.last_headers["connection"] == "close"
        (tmp_path / "go").touch()
        assert client.receive() == (200, "slow 8")
    assert running.process.wait(30) == 0
    assert "Traceback" not in running.log()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_websocket_is_asked_to_come_back(running: Program, port: int) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/echo") as link:
        link.send("tea")
        assert link.recv(10) == "tea"
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert running.process.wait(30) == 0


def test_a_stream_that_does_not_end_is_cut_at_the_graceful_timeout(
    tmp_path: Path, env: dict[str, str], port: int
) -> None:
    program = Program(tmp_path, env, "run", str(write_service(tmp_path, port, graceful=0.5)))
    program.ready()
    with socket.create_connection(("127.0.0.1", port), 20) as link:
        link.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"tick" in link.recv(4096) + link.recv(4096)
        assert program.end() == 0
    assert "1 requests did not end in time and are cancelled" in program.log()
    assert "pool closed" in program.log()


def test_a_second_ctrl_c_waits_for_no_request(tmp_path: Path, env: dict[str, str], port: int) -> None:
    program = Program(tmp_path, env, "run", str(write_service(tmp_path, port, graceful=600)))
    program.ready()
    with Client(port) as client:
        client.send("/slow")
        wait_until((tmp_path / "begun").exists, 20, "the request to be under way")
        program.process.send_signal(signal.SIGINT)
        wait_until(lambda: not accepts(port), 20, "the listener to be closed")
        program.end(signal.SIGINT)
    assert "pool closed" in program.log()


def test_an_end_while_a_lifespan_is_entered_waits_for_nothing(tmp_path: Path, env: dict[str, str], port: int) -> None:
    path = tmp_path / "shop.py"
    path.write_text(
        textwrap.dedent(f"""
        import asyncio, upnext
        api = upnext.Api("front", port={port})
        @api.lifespan
        async def life():
            open("begun", "w").close()
            await asyncio.sleep(600)
            yield
        """)
    )
    program = Program(tmp_path, env, "run", str(path))
    wait_until((tmp_path / "begun").exists, 20, "the lifespan to be entered")
    assert program.end() == 0, program.log()
    assert "Traceback" not in program.log()


def test_it_listens_where_it_is_told_to(tmp_path: Path, service: Path, env: dict[str, str], port: int) -> None:
    program = Program(tmp_path, env, "run", str(service), "--api-listen", f"front={tmp_path}/front.sock")
    try:
        program.ready()
        assert f"unix:{tmp_path}/front.sock, ready" in program.log()
        assert (tmp_path / "front.sock").stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(f"{tmp_path}/front.sock")
            link.sendall(b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n")
            assert link.recv(4096).startswith(b"HTTP/1.1 200")
        assert not accepts(port)
    finally:
        assert program.end() == 0
    assert not (tmp_path / "front.sock").exists()


def test_an_address_that_cannot_be_meant_is_one_line(service: Path, env: dict[str, str]) -> None:
    ended = run_to_end(env, str(service), "--api-listen", "back=127.0.0.1:0")
    assert (ended.returncode, ended.stderr) == (
        64,
        "upnext: --api-listen: no api is named 'back'; there are: front\n",
    )


def test_requests_get_the_secrets_of_their_api(tmp_path: Path, env: dict[str, str], port: int) -> None:
    source = write_service(tmp_path, port, secrets="'signing_key'")
    with source.open("a") as file:
        file.write(
            "\n@api.get('/secret')\nasync def secret() -> int:\n    return len(upnext.secret('signing_key').value)\n"
        )
    program = Program(tmp_path, {**env, "UPNEXT_SECRET_SIGNING_KEY": "0123456789"}, "run", str(source))
    try:
        program.ready()
        with Client(port) as client:
            assert client.get("/secret") == (200, 10)
    finally:
        assert program.end() == 0
    ended = run_to_end(env, str(source))
    assert ended.returncode == 1
    assert "secret 'signing_key' is missing" in ended.stderr.splitlines()[-1]


def test_only_takes_apis_by_name(tmp_path: Path, service: Path, env: dict[str, str], port: int) -> None:
    program = Program(tmp_path, env, "run", str(service), "--only", "front")
    try:
        program.ready()
        with Client(port) as client:
            assert client.get("/state") == (200, "openopen")
    finally:
        assert program.end() == 0
    refused = run_to_end(env, str(service), "--only", "back")
    assert (refused.returncode, refused.stderr) == (
        64,
        "upnext: no worker or api is named 'back'; there are: shop, front\n",
    )


def test_a_port_in_use_is_one_line_and_69(service: Path, env: dict[str, str], port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        ended = run_to_end(env, str(service))
    assert ended.returncode == 69, ended.stderr
    assert f"upnext: api 'front': 127.0.0.1:{port} is in use" in ended.stderr.splitlines()


def test_what_cannot_be_meant_is_one_line(tmp_path: Path, env: dict[str, str]) -> None:
    path = tmp_path / "shop.py"
    path.write_text("import upnext\na = upnext.Api('x')\nb = upnext.Api('x', port=8001)\n")
    ended = run_to_end(env, str(path))
    assert (ended.returncode, ended.stderr) == (78, "upnext: two apis are named 'x'\n")


def test_a_lifespan_that_fails_ends_it_with_one_line(tmp_path: Path, env: dict[str, str], port: int) -> None:
    path = tmp_path / "shop.py"
    path.write_text(
        textwrap.dedent(f"""
        import upnext
        api = upnext.Api("front", port={port})
        @api.lifespan
        async def life():
            raise OSError("no database")
            yield
        """)
    )
    ended = run_to_end(env, str(path))
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        1,
        "upnext: api 'front': its lifespan failed: OSError: no database",
    )


def test_a_script_runs_both(tmp_path: Path, env: dict[str, str], port: int, service: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text("import upnext\nimport shop\nupnext.run(shop.worker, shop.api, api_timeout=5)\n")
    program = Program(tmp_path, env, str(script), program=sys.executable)
    try:
        wait_until(lambda: accepts(port), 30, "it to listen")
        with Client(port) as client:
            assert client.get("/orders/4") == (200, 8)
    finally:
        assert program.end() == 0, program.log()


def test_applications_that_exist_keep_their_own_lifespan(tmp_path: Path, env: dict[str, str]) -> None:
    first, second = free_port(), free_port()
    path = tmp_path / "shop.py"
    path.write_text(
        textwrap.dedent(f"""
        from contextlib import asynccontextmanager
        import fastapi, upnext
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        @asynccontextmanager
        async def theirs(app):
            yield {{"theirs": 1}}

        app = fastapi.FastAPI(lifespan=theirs)

        @app.get("/")
        async def home(request: fastapi.Request):
            return [request.state.theirs, request.state.ours]

        made = upnext.Api.from_fastapi(app, name="made", port={first})

        @made.lifespan
        async def ours():
            yield {{"ours": 2}}

        @made.get("/more")
        async def more():
            return made.state

        async def hello(request):
            return JSONResponse(request.state.theirs)

        other = upnext.Api.from_asgi(Starlette(routes=[Route("/", hello)], lifespan=theirs), name="other", port={second})
        """)
    )
    program = Program(tmp_path, env, "run", str(path))
    try:
        program.ready()
        with Client(first) as client:
            assert client.get("/") == (200, [1, 2])
            assert client.get("/more") == (200, {"ours": 2})
        with Client(second) as client:
            assert client.get("/") == (200, 1)
    finally:
        assert program.end() == 0, program.log()
