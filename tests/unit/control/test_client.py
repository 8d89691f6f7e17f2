"""The blocking client, against a scripted daemon on a real socket."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.control.fake_daemon import FakeDaemon
from upnext.control import protocol
from upnext.control.client import ControlClient
from upnext.control.protocol import ErrorCode, ErrorResponse, Message, Notification, Request, Response
from upnext.errors import ControlError, DaemonGoneError, DaemonNotRunningError


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "d.sock"


def test_it_says_hello_and_asks(path: Path) -> None:
    with (
        FakeDaemon(path, lambda request: [Response(request.id, {"mode": "running"})]) as daemon,
        ControlClient(path) as client,
    ):
        assert client.hello["name"] == "orders"
        assert client.call("status") == {"mode": "running"}
        assert [request.method for request in daemon.requests] == ["hello", "status"]


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(DaemonNotRunningError, match="no upnextd is running"):
        ControlClient(path)
    path.touch()
    with pytest.raises(DaemonNotRunningError):
        ControlClient(path)
    with pytest.raises(DaemonNotRunningError, match="too long"):
        ControlClient("/tmp/" + "x" * 200)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect anywhere")
def test_another_users_daemon(path: Path) -> None:
    with FakeDaemon(path, lambda _: []):
        path.chmod(stat.S_IRUSR)
        with pytest.raises(ControlError, match="another user"):
            ControlClient(path)


NOBODY = 65534


def _serve_as_nobody(path: Path) -> subprocess.Popen[bytes]:
    """A server of another user: what it is asked, it prints."""
    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666);"
        f"os.chown(sys.argv[1], {NOBODY}, {NOBODY}); os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "s.listen(8); print('up', flush=True); c, _ = s.accept(); print(c.recv(99) or 'nothing', flush=True)"
    )
    server = subprocess.Popen([sys.executable, "-S", "-c", program, str(path)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"up\n"
    return server


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a server of another user")
def test_a_server_of_another_user_is_not_spoken_to(path: Path) -> None:
    with _serve_as_nobody(path) as server:
        with pytest.raises(ControlError, match=rf"{path} is a process of uid {NOBODY}"):
            ControlClient(path)
        assert server.stdout is not None
        assert server.stdout.read() == b"nothing\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a server of another user")
@pytest.mark.parametrize("servers", [None, {NOBODY}])
def test_a_server_of_another_user_is_spoken_to_where_it_is_meant(path: Path, servers: set[int] | None) -> None:
    with _serve_as_nobody(path) as server:
        with pytest.raises(DaemonGoneError):
            ControlClient(path, servers=servers)
        assert server.stdout is not None
        assert b"hello" in server.stdout.read()


def test_another_protocol(path: Path) -> None:
    with (
        FakeDaemon(path, lambda _: [], hello={"protocol": 99}),
        pytest.raises(ControlError, match="speaks control protocol 99"),
    ):
        ControlClient(path)


def test_an_error_answer_carries_code_and_data(path: Path) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        return [ErrorResponse(request.id, ErrorCode.NO_SUCH_SLOT, "no slot worker-9", ["worker-1"])]

    with (
        FakeDaemon(path, answer),
        ControlClient(path) as client,
        pytest.raises(ControlError, match="no slot worker-9") as caught,
    ):
        client.call("dump", slot="worker-9")
    assert (caught.value.code, caught.value.data) == (ErrorCode.NO_SUCH_SLOT, ["worker-1"])


def test_an_error_about_the_connection_itself(path: Path) -> None:
    def answer(_: Request) -> list[Message | bytes]:
        return [ErrorResponse(None, ErrorCode.TOO_MANY_CLIENTS, "16 clients already"), b""]

    with FakeDaemon(path, answer), ControlClient(path) as client, pytest.raises(ControlError, match="16 clients"):
        client.call("status")


def test_a_silent_daemon(path: Path) -> None:
    with FakeDaemon(path, lambda _: []), ControlClient(path) as client, pytest.raises(TimeoutError, match="no answer"):
        client.call("status", timeout_s=0.05)


def test_late_answers_of_abandoned_requests_are_passed_over(path: Path) -> None:
    late: list[Message | bytes] = []

    def answer(request: Request) -> list[Message | bytes]:
        late.append(Response(request.id, {"to": request.method}))
        return late if request.method == "status" else []

    with FakeDaemon(path, answer), ControlClient(path) as client:
        with pytest.raises(TimeoutError):
            client.call("dump", timeout_s=0.05, slot="worker-1")
        assert client.call("status") == {"to": "status"}


def test_it_hangs_up(path: Path) -> None:
    with FakeDaemon(path, lambda _: [b""]), ControlClient(path) as client, pytest.raises(DaemonGoneError):
        client.call("status")


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400\r\n\r\n", b"x" * (protocol.FRAME_CAP_BYTES + 1)])
def test_something_else_listens(path: Path, junk: bytes) -> None:
    with (
        FakeDaemon(path, lambda _: [junk]),
        ControlClient(path) as client,
        pytest.raises(ControlError, match="what listens on"),
    ):
        client.call("status")


def test_wait_follows_one_operation_to_its_end(path: Path) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        op_id = str(request.params["op_id"])
        return [
            protocol.progress(op_id, "2 jobs run"),
            protocol.progress("another", "not ours"),
            protocol.event("child_ready", "2026-01-01T00:00:00Z", slot="worker-1"),
            protocol.progress(op_id, "drained", done=True),
            Response(request.id, {"op_id": op_id, "ok": True, "text": "drained", "data": None}),
        ]

    reported: list[str] = []
    with FakeDaemon(path, answer), ControlClient(path) as client:
        ended = client.wait("op-1", timeout_s=5, on_progress=reported.append)
    assert reported == ["2 jobs run"]
    assert (ended.ok, ended.text, ended.raw["op_id"]) == (True, "drained", "op-1")


def test_wait_ends_in_time(path: Path) -> None:
    with (
        FakeDaemon(path, lambda _: []),
        ControlClient(path) as client,
        pytest.raises(TimeoutError, match="goes on in the daemon"),
    ):
        client.wait("op-1", timeout_s=0.05)


def test_events_are_yielded_until_it_hangs_up_also_those_before_the_answer(path: Path) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        return [
            protocol.event("mode", "2026-01-01T00:00:00Z", mode="paused"),
            Response(request.id, {}),
            protocol.event("child_exited", "2026-01-01T00:00:01Z", slot="worker-2"),
            Notification("other", {}),
            b"",
        ]

    with FakeDaemon(path, answer), ControlClient(path) as client:
        assert [event["kind"] for event in client.events()] == ["mode", "child_exited"]


def test_wait_gone_waits_for_the_process_itself(path: Path) -> None:
    # The peer is this very process: it hangs up, but does not end.
    with FakeDaemon(path, lambda _: [b""]), ControlClient(path) as client:
        with pytest.raises(DaemonGoneError):
            client.call("stop")
        with pytest.raises(TimeoutError, match="still there"):
            client.wait_gone(0.05)
