"""`upnext ctl` against a scripted daemon: what is asked, printed, and shown by the exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control.fake_daemon import Answer, FakeDaemon
from upnext import config
from upnext.cli import main
from upnext.cli.ctl import watch
from upnext.control import protocol
from upnext.control.protocol import ErrorCode, ErrorResponse, Message, Request, Response

STATUS: dict[str, Any] = {
    "protocol": 1, "version": "0.1.0", "pid": 7, "name": "orders", "service": "/srv/orders.py", "mode": "running",
    "generation": 1, "desired_workers": 1, "ready_workers": 1,
    "children": [
        {
            "slot": "worker-1", "role": "worker", "pid": 8, "state": "READY", "generation": 1, "incarnation": 2, "uptime_s": 75.0,
            "heartbeat_age_s": 0.1, "in_flight": [{"job_id": "ship:n1-0", "task": "ship", "age_s": 0.2}, {"job_id": "ship:n2-0",
            "task": "ship", "age_s": 3.0}], "jobs_done": 5, "jobs_failed": 1, "rss_bytes": 30 << 20, "pss_bytes": None, "restarts": 1,
            "last_exit": {"cause": "signal", "code": None, "signal": "SIGKILL", "at": "2026-01-01T00:00:00Z"},
        }
    ],
    "scheduler": {"leader": True, "epoch": 3},
    "broker": {"url": "unix:///b.sock", "embedded": True, "connected": True},
}  # fmt: skip

Ctl = Callable[..., int]


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "orders.sock"


def ctl(path: Path, *arguments: str) -> int:
    return main.run(["ctl", *arguments, "--socket", str(path)])


def answers(**by_method: list[Message | bytes] | dict[str, Any]) -> Answer:
    """Each method's answer: a result, or a list of what to send, in which `None` ids become the request's."""

    def answer(request: Request) -> list[Message | bytes]:
        given = by_method[request.method]
        if isinstance(given, dict):
            return [Response(request.id, given)]
        return [Response(request.id, one.result) if isinstance(one, Response) else one for one in given]

    return answer


def ended(*, ok: bool = True, text: str = "drained", data: Any = None) -> Response:
    return Response(0, {"op_id": "op-1", "ok": ok, "text": text, "data": data})


def test_status_in_a_pipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(status=STATUS)):
        assert ctl(path, "status") == 0
    headline, columns, worker = capsys.readouterr().out.splitlines()
    assert headline.startswith("orders (pid 7): running · 1 of 1 workers ready")
    assert columns.split()[:3] == ["SLOT", "STATE", "PID"]
    assert worker.split() == [
        "worker-1", "READY", "8", "1", "1m15s", "100ms", "ship", "3.0s", "+1", "5", "1", "30.0M", "1", "signal", "SIGKILL",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["ctl", "--json", "status"], ["--json", "ctl", "status"], ["ctl", "status", "--json"]]
)
def test_status_as_json_is_the_answer_as_it_came(
    path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeDaemon(path, answers(status=STATUS)):
        assert main.run([*arguments, "--socket", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize(
    "change",
    [
        {"ready_workers": 0},
        {"broker": {"url": "redis://x", "embedded": False, "connected": False}},
        {"children": [{**STATUS["children"][0], "state": "HUNG"}]},
    ],
)
def test_a_degraded_daemon_is_exit_4(path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(status={**STATUS, **change})):
        assert ctl(path, "status") == 4
    assert ("NOT CONNECTED" in capsys.readouterr().out) == ("broker" in change)


@pytest.mark.parametrize(
    ("arguments", "method", "params"),
    [
        (["drain"], "drain", {"exit": False}),
        (["drain", "--exit"], "drain", {"exit": True}),
        (["pause"], "pause", {}),
        (["resume"], "resume", {}),
        (["reload"], "reload", {"abort": False}),
        (["scale", "3"], "scale", {"workers": 3}),
        (["restart"], "restart", {"slot": None}),
        (["restart", "worker-1"], "restart", {"slot": "worker-1"}),
        (["stop", "--no-wait"], "stop", {"now": False}),
        (["stop", "--no-wait", "--now"], "stop", {"now": True}),
    ],
)
def test_mutations_are_asked_for_and_not_waited_for(
    path: Path, arguments: list[str], method: str, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeDaemon(path, answers(**{method: {"op_id": "op-1"}})) as daemon:
        assert ctl(path, *arguments) == 0
        assert ctl(path, *arguments, "--json") == 0
    asked = [request for request in daemon.requests if request.method != "hello"]
    assert [(request.method, request.params) for request in asked] == [(method, params)] * 2
    assert protocol.bind(asked[0]) == params
    plain, raw = capsys.readouterr().out.splitlines()
    assert plain
    assert json.loads(raw) == {"op_id": "op-1"}


def test_drain_wait_tells_how_it_goes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts: list[Message | bytes] = [
        protocol.progress("op-1", "2 jobs run"),
        protocol.progress("op-1", "drained", done=True),
        ended(),
    ]
    with FakeDaemon(path, answers(drain={"op_id": "op-1"}, wait=parts)):
        assert ctl(path, "drain", "--wait") == 0
        assert capsys.readouterr().out == "2 jobs run\ndrained\n"
        assert ctl(path, "drain", "--wait", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"op_id": "op-1", "ok": True, "text": "drained", "data": None}


def test_a_wait_that_is_too_long(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(drain={"op_id": "op-1"}, wait=[])):
        assert ctl(path, "drain", "--wait", "--timeout", "0.05") == 75
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "code"), [(None, 1), ("Traceback", 1), ({"exit_code": 75}, 75), ({"exit_code": 5}, 1)]
)
def test_an_operation_that_fails(path: Path, data: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(reload={"op_id": "op-1"}, wait=[ended(ok=False, text="SyntaxError", data=data)])):
        assert ctl(path, "reload", "--wait") == code
    assert capsys.readouterr().err.startswith("upnext: SyntaxError\n")


def test_an_unknown_slot(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        return [ErrorResponse(request.id, ErrorCode.NO_SUCH_SLOT, "no slot 'worker-9'; there are: worker-1")]

    with FakeDaemon(path, answer):
        assert ctl(path, "dump", "worker-9") == 64
        assert ctl(path, "restart", "worker-9") == 64
    assert capsys.readouterr().err == "upnext: no slot 'worker-9'; there are: worker-1\n" * 2


def test_a_refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        return [ErrorResponse(request.id, ErrorCode.CONFLICT, "the daemon is stopping")]

    with FakeDaemon(path, answer):
        assert ctl(path, "scale", "2") == 1
    assert capsys.readouterr().err == "upnext: the daemon is stopping\n"


def test_dump(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(dump={"slot": "worker-1", "pid": 8, "stacks": "File x, line 1\n"})):
        assert ctl(path, "dump", "worker-1") == 0
    assert capsys.readouterr().out == "File x, line 1\n"


def test_events(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "COME_BACK_S", 0.1)
    asked: list[Request] = []

    def answer(request: Request) -> list[Message | bytes]:
        asked.append(request)
        if len(asked) == 2:
            path.unlink()
        happened = protocol.event("child_exited", "2026-01-01T00:00:00Z", slot="worker-1", code=None, signal="SIGKILL")
        return [Response(request.id, {}), happened, b""]

    with FakeDaemon(path, answer) as daemon:
        assert ctl(path, "events") == 3
        assert [request.method for request in daemon.requests] == ["hello", "subscribe"] * 2, "it came back once"
    output = capsys.readouterr()
    assert output.out == "2026-01-01T00:00:00Z  child_exited  slot=worker-1 signal=SIGKILL\n" * 2
    hung_up = "upnext: the daemon hung up; waiting up to 0.1 s for it to come back\n"
    assert output.err == f"{hung_up}{hung_up}upnext: no upnextd is running on {path}\n"


def test_events_as_json(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> list[Message | bytes]:
        path.unlink()
        return [Response(request.id, {}), protocol.event("child_ready", "2026-01-01T00:00:00Z", slot="worker-1"), b""]

    monkeypatch.setattr(watch, "COME_BACK_S", 0.1)
    with FakeDaemon(path, answer):
        assert ctl(path, "events", "--json") == 3
    assert json.loads(capsys.readouterr().out)["slot"] == "worker-1"


def test_top_in_a_pipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(path, answers(status=STATUS)):
        assert ctl(path, "top", "--count", "2", "--interval", "0.1") == 0
        out = capsys.readouterr().out
        assert out.count("worker-1") == 2
        assert out.count("0 jobs/s") == 1
        assert ctl(path, "top", "--count", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.skipif(os.geteuid() != 0, reason="what the units make must be root's")
def test_root_reaches_the_daemon_of_a_unit_by_its_name(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path_factory.mktemp("u")
    (units / "mail").mkdir()
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", units)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(units / "nothing"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with FakeDaemon(units / "mail" / "mail.sock", answers(status=STATUS)):
        assert main.run(["ctl", "status"]) == 0
        assert main.run(["ctl", "status", "--name", "mail"]) == 0
        assert main.run(["ctl", "status", "--name", "orders"]) == 3
    assert "nothing/upnextd/orders.sock" in capsys.readouterr().err


def test_who_can_not_read_a_unit_s_folders_is_told(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path_factory.mktemp("u")
    (units / "mail").mkdir()
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", units)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(units / "nothing"))
    monkeypatch.setenv("TMPDIR", str(units / "nothing"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main.run(["ctl", "status"]) == 3
    assert "not readable are the units mail (use sudo)" in capsys.readouterr().err
    assert main.run(["ctl", "status", "--name", "mail"]) == 1, "it runs: 3 would be false"
    assert "not readable as this user: sudo upnext ctl --name mail" in capsys.readouterr().err
    assert main.run(["ctl", "status", "--name", "orders"]) == 3
    assert "mail" not in capsys.readouterr().err


def test_the_only_daemon_is_found_and_of_several_one_must_be_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    (runtime / "upnextd").mkdir(mode=0o700)
    with FakeDaemon(runtime / "upnextd/orders.sock", answers(status=STATUS)):
        assert main.run(["ctl", "status"]) == 0
        with FakeDaemon(runtime / "upnextd/mail.sock", answers(status={**STATUS, "name": "mail"})):
            capsys.readouterr()
            assert main.run(["ctl", "status"]) == 64
            assert "several daemons are running: mail, orders" in capsys.readouterr().err
            assert main.run(["ctl", "status", "--name", "mail"]) == 0
            monkeypatch.setenv("UPNEXTD_NAME", "mail")
            assert main.run(["ctl", "status"]) == 0
            monkeypatch.setenv("UPNEXTD_SOCKET", str(runtime / "upnextd/orders.sock"))
            assert main.run(["ctl", "status", "--name", "mail"]) == 0
            assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "pid 7" in line] == ["mail"] * 3
