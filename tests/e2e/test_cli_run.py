"""`upnext run`: services in one process, as a developer runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import processes_in
from tests.support.program import UPNEXT, Program
from tests.support.waiting import wait_until

SERVICE = """
    import asyncio, os
    import upnext

    first = upnext.Worker("first")
    second = upnext.Worker("second")

    @first.task
    def double(number: int) -> int:
        return 2 * number

    @second.task
    async def sleepy() -> str:
        # Runs until the test lets it end.
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)
        return "slept"
"""


Start = Callable[..., Program]


@pytest.fixture
def environment(redis_url: str, namespace: str) -> dict[str, str]:
    return {**os.environ, "UPNEXT_REDIS_URL": redis_url, "UPNEXT_NAMESPACE": namespace}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    programs: list[Program] = []

    def begin(*arguments: str, **more: str) -> Program:
        programs.append(Program(tmp_path, arguments, {**environment, **more}))
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.poll() is None:
            program.end()


@pytest.fixture
def service(tmp_path: Path) -> Path:
    path = tmp_path / "shop.py"
    path.write_text(textwrap.dedent(SERVICE))
    return path


@pytest.fixture
def upnext(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [UPNEXT, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


Upnext = Callable[..., subprocess.CompletedProcess[str]]


def test_it_runs_jobs_and_ends_clean(start: Start, service: Path, upnext: Upnext) -> None:
    program = start("run", str(service))
    program.ready()
    done = upnext("call", "double", "--kwargs", '{"number": 21}', "--wait", "--timeout", "20")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert program.end(signal.SIGINT) == 0
    assert "Traceback" not in program.log()


def test_a_running_job_ends_before_the_process_does(start: Start, service: Path, upnext: Upnext) -> None:
    program = start("run", str(service))
    program.ready()
    job_id = upnext("call", "sleepy").stdout.strip()
    wait_until(lambda: json.loads(upnext("job", job_id, "--json").stdout)["status"] == "running", 10, "the job to run")
    program.process.send_signal(signal.SIGTERM)
    assert json.loads(upnext("job", job_id, "--json").stdout)["status"] == "running", "it is waited for"
    (service.parent / "go").touch()
    assert program.process.wait(100) == 0
    assert json.loads(upnext("job", job_id, "--json").stdout)["result"] == "slept"


def test_a_second_interrupt_ends_it_at_once(start: Start, service: Path, upnext: Upnext) -> None:
    program = start("run", str(service))
    program.ready()
    job_id = upnext("call", "sleepy").stdout.strip()
    wait_until(lambda: json.loads(upnext("job", job_id, "--json").stdout)["status"] == "running", 10, "the job to run")
    program.process.send_signal(signal.SIGTERM)
    # Meanwhile the first has been heeded: of two that are pending the kernel delivers the other one first.
    assert json.loads(upnext("job", job_id, "--json").stdout)["status"] == "running"
    assert program.end(signal.SIGINT) == 75
    assert "will run again" in program.log()
    assert "Traceback" not in program.log()


def test_only(start: Start, service: Path, upnext: Upnext) -> None:
    program = start("run", str(service), "--only", "second")
    program.ready()
    assert [one["task"] for one in json.loads(upnext("list", "--json").stdout)] == ["sleepy"]
    unknown = upnext("run", str(service), "--only", "third")
    assert (unknown.returncode, unknown.stderr) == (
        64,
        "upnext: no worker is named 'third'; there are: first, second\n",
    )


@pytest.mark.parametrize(
    ("source", "code", "text"),
    [
        (None, 64, "broken.py"),
        ("x = 1", 64, "has no Worker"),
        ("import upnext\nw = upnext.Worker()\n@w.cron('61 * * * *')\ndef c(): ...", 78, "61 * * * *"),
        ("import no_such_module_at_all", 78, "No module named 'no_such_module_at_all'"),
        ("def f(:", 78, "SyntaxError"),
        ("import upnext\nw = upnext.Worker()\n@w.task\ndef a(): ...\n@w.task(name='a')\ndef b(): ...", 78, "'a'"),
    ],
)
def test_a_service_that_can_not_be_used_is_one_line(
    tmp_path: Path, upnext: Upnext, source: str | None, code: int, text: str
) -> None:
    path = tmp_path / "broken.py"
    if source is not None:
        path.write_text(source)
    ended = upnext("run", str(path))
    assert (ended.returncode, ended.stderr.count("\n")) == (code, 1), ended.stderr
    assert text in ended.stderr


def test_a_broker_that_is_away(service: Path, upnext: Upnext) -> None:
    ended = upnext("run", str(service), "--redis-url", "unix:///nowhere/broker.sock")
    assert (ended.returncode, ended.stderr.count("\n")) == (69, 1), ended.stderr


def test_reload_runs_the_new_code(start: Start, service: Path, upnext: Upnext) -> None:
    program = start("run", str(service), "--reload")
    program.ready()
    service.write_text(service.read_text().replace("2 * number", "3 * number"))
    program.ready(2)
    done = upnext("call", "double", "--kwargs", '{"number": 2}', "--wait", "--timeout", "20")
    assert done.stdout == "6\n", done.stderr
    service.write_text("def broken(:")
    wait_until(lambda: "SyntaxError" in program.log(), 20, "the error to be logged")
    wait_until(lambda: "the former code goes on" in program.log(), 20, "word of the former code")
    done = upnext("call", "double", "--kwargs", '{"number": 2}', "--wait", "--timeout", "20")
    assert done.stdout == "6\n", done.stderr
    service.write_text(textwrap.dedent(SERVICE))
    program.ready(3)
    assert program.end() == 0
    assert "Traceback" not in program.log()


def test_reload_leaves_nothing_behind_when_it_is_killed(start: Start, service: Path) -> None:
    program = start("run", str(service), "--reload")
    program.ready()
    wait_until(lambda: len(processes_in(service.parent)) == 3, 20, "a spare process beside the child")
    program.process.kill()
    program.process.wait(60)
    wait_until(lambda: not processes_in(service.parent), 20, "both to end")


def test_a_spare_process_runs_the_next_code_and_reads_the_settings_that_are_new(
    start: Start, service: Path, upnext: Upnext
) -> None:
    (service.parent / "pyproject.toml").touch()
    program = start("run", str(service), "--reload")
    program.ready()
    wait_until(lambda: len(processes_in(service.parent)) == 3, 20, "a spare process beside the child")
    before = processes_in(service.parent)
    (service.parent / ".env").write_text("UPNEXT_SERVICE=renamed\n")
    service.write_text(service.read_text().replace("2 * number", "os.getpid()"))
    program.ready(2)
    done = upnext("call", "double", "--kwargs", '{"number": 2}', "--wait", "--timeout", "20")
    assert int(done.stdout) in before
    assert "renamed: 2 tasks, ready" in program.log()
    assert program.end() == 0


def test_a_reload_takes_jobs_at_once_while_the_old_code_ends_its_own(
    start: Start, service: Path, upnext: Upnext
) -> None:
    program = start("run", str(service), "--reload")
    program.ready()
    old = upnext("call", "sleepy").stdout.strip()
    wait_until(lambda: json.loads(upnext("job", old, "--json").stdout)["status"] == "running", 10, "the job to run")
    old_process = json.loads(upnext("job", old, "--json").stdout)["place"]["pid"]
    service.write_text(service.read_text().replace("2 * number", "3 * number"))
    program.ready(2)
    done = upnext("call", "double", "--kwargs", '{"number": 2}', "--wait", "--timeout", "20")
    assert done.stdout == "6\n", done.stderr
    assert json.loads(upnext("job", old, "--json").stdout)["status"] == "running"
    (service.parent / "go").touch()
    wait_until(lambda: json.loads(upnext("job", old, "--json").stdout)["status"] == "done", 20, "the old job to end")
    assert json.loads(upnext("job", old, "--json").stdout)["attempt"] == 1
    wait_until(lambda: old_process not in processes_in(service.parent), 20, "the old process to end")
    assert {one["task"] for one in json.loads(upnext("list", "--json").stdout)} == {"double", "sleepy"}
    assert program.end() == 0
