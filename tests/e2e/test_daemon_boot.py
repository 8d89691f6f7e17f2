"""What can't start says why in one line, with the exit code of the contract."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.servers import Server
from tests.support.waiting import given, wait_until

UPNEXTD = str(Path(sys.executable).parent / "upnextd")
OK = 'import upnext\nworker = upnext.Worker("jobs")\n@worker.task\nasync def hello() -> None: ...\n'


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "has no Worker"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import os; os.closerange(3, 4096)", "importing the service closed descriptors that it had not opened"),
        ("import os; os._exit(9)", "ended with exit:9"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal:SIGSEGV"),
        (
            OK + "import threading, time; threading.Thread(target=time.sleep, args=(60,), name='pump').start()",
            "a thread (pump)",
        ),
        (OK + "import socket; s = socket.create_server(('127.0.0.1', 0))", "network socket (on 127.0.0.1:"),
        (
            OK + "import socket; s = socket.socket(socket.AF_UNIX); s.bind('one.sock'); s.listen()\n"
            "t = socket.socket(socket.AF_UNIX); t.connect('one.sock')",
            "a Unix socket (on one.sock), a Unix socket (to one.sock)",
        ),
    ],
)
def test_a_service_that_cannot_be_imported(source: str, line: str) -> None:
    daemon = Daemon(source, workers=1).launch()
    try:
        assert daemon.wait() == 78, daemon.log()
        reported = [output for output in daemon.log().splitlines() if "can't import" in output]
        assert len(reported) == 1
        assert line in reported[0]
        assert reported[0].count("service.py") == 1
        daemon.assert_nothing_left()
    finally:
        daemon.close()


@pytest.mark.parametrize(
    ("url", "place"),
    [("redis://:hush@127.0.0.1:1/0", "127.0.0.1:1"), ("unix:///nowhere/broker.sock", "/nowhere/broker.sock")],
)
def test_redis_away_at_boot(url: str, place: str) -> None:
    daemon = Daemon(OK, workers=1, redis_url=url).launch()
    try:
        assert daemon.wait(20) == 69, daemon.log()
        assert "error: " in daemon.log()
        assert f"Redis at {place} " in daemon.log()
        assert "hush" not in daemon.log()
        assert "Traceback" not in daemon.log()
    finally:
        daemon.close()


def test_without_a_boot_timeout_a_broker_that_is_away_is_waited_for() -> None:
    server = Server()
    daemon = Daemon(OK, workers=1, redis_url=server.url, args=("--boot-timeout", "0"))
    notified = daemon.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notified))
        systemd.settimeout(given(30))
        daemon._env |= {"NOTIFY_SOCKET": str(notified)}
        daemon.launch()
        try:
            output: list[str] = []
            while not any("waiting for the broker" in word for word in output):
                output.append(systemd.recv(4096).decode())
            while not any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in output):
                output.append(systemd.recv(4096).decode())
            assert daemon.status()["problem"].startswith("service: waiting for the broker")
            server.start()
            daemon.wait_ready(60)
            while "READY=1" not in output:
                output.append(systemd.recv(4096).decode())
            assert daemon.status()["problem"] is None
            assert daemon.log().count("waiting for the broker") == 1, daemon.log()
            assert daemon.stop() == 0
        finally:
            daemon.close()
            server.close()


def test_without_a_boot_timeout_a_wrong_password_ends_the_start() -> None:
    with Server(requirepass="right") as server:
        url = f"redis://:wrong@127.0.0.1:{server.port}/0"
        daemon = Daemon(OK, workers=1, redis_url=url, args=("--boot-timeout", "0")).launch()
        try:
            assert daemon.wait(20) == 69, daemon.log()
        finally:
            daemon.close()


def test_a_crash_loop_is_cut_off() -> None:
    # Every child dies by SIGALRM a moment after it was forked. The process between it and the template lives.
    hook = (
        "import os, signal\nTEMPLATE = os.getpid()\n"
        "os.register_at_fork(after_in_child=lambda: os.getppid() != TEMPLATE and signal.setitimer(signal.ITIMER_REAL, 0.3))\n"
    )
    daemon = Daemon(OK + hook, workers=1).launch()
    try:
        assert daemon.wait(60) == 70, daemon.log()
        assert daemon.log().count("error: crash loop:") == 1
        daemon.assert_nothing_left()
    finally:
        daemon.close()


def test_term_during_the_import_ends_at_once() -> None:
    daemon = Daemon("import time; print('importing', flush=True); time.sleep(60)", workers=1).launch()
    try:
        wait_until(lambda: "importing" in daemon.log(), 10)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(5) == 0
        daemon.assert_nothing_left()
    finally:
        daemon.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["start"],
        ["start", "x.py", "--workers", "many"],
        ["start", "x.py", "--workers", "-1"],
        ["start", "x.py", "--no-such-flag"],
        ["start", "x.py", "--metrics", "nowhere"],
        ["start", "x.py", "--redis-url", "ftp://x"],
        ["nonsense"],
    ],
)
def test_bad_usage(arguments: list[str]) -> None:
    done = subprocess.run([UPNEXTD, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 64
    assert len(done.stderr.strip().splitlines()) == 1


def test_version_and_check(tmp_path: Path) -> None:
    for command in ([UPNEXTD], [sys.executable, "-m", "upnextd"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=100, check=True)
        assert done.stdout == "upnextd 0.1.0\n"
    service = tmp_path / "shop.py"
    service.write_text(OK)
    done = subprocess.run([UPNEXTD, "check", str(service)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "hello()" in done.stdout
    for bad, line in (("import nowhere", "nowhere"), ("import upnext\nworker = upnext.Worker()", "nothing to do")):
        service.write_text(bad)
        done = subprocess.run(
            [UPNEXTD, "check", str(service)], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 78
        assert line in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("at_import", "code", "line"),
    [
        ("import os; os._exit(0)", 78, "ended with exit:0 before it was done"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 78, "ended with signal:SIGKILL"),
        ("import os; os.closerange(3, 4096)", 78, "closed descriptors that it had not opened"),
        (
            "import os; os.closerange(3, 4096); f = [open('/dev/null') for _ in range(9)]; 1 / 0",
            78,
            "closed descriptors",
        ),
        ("import sys; sys.stdout.close(); sys.stderr.close()", 0, ""),
        ("import sys; sys.stdout.close(); sys.stderr.close(); raise SystemExit(0)", 78, "SystemExit: 0"),
    ],
)
def test_check_of_an_import_that_ends_or_silences_its_process(
    tmp_path: Path, at_import: str, code: int, line: str
) -> None:
    service = tmp_path / "shop.py"
    service.write_text(OK + at_import)
    done = subprocess.run([UPNEXTD, "check", str(service)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == (code != 0)
    assert ("hello()" in done.stdout) == (code == 0)


def test_check_into_a_pipe_that_is_closed(tmp_path: Path) -> None:
    service = tmp_path / "shop.py"
    service.write_text(OK)
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [UPNEXTD, "check", str(service)], stdout=writes, stderr=subprocess.PIPE, timeout=100, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("stdout", "code", "line"),
    [(">&-", 0, ""), (">/dev/full", 1, "upnextd: what the service declares can't be written\n")],
    ids=["closed", "full"],
)
def test_check_without_a_place_for_what_it_prints(stdout: str, code: int, line: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(OK)
    command = ["sh", "-c", f'exec "$0" check shop.py {stdout}', UPNEXTD]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--state-dir", "taken"], "taken must be a directory of this user"),
        (["--state-dir", "/proc/upnext"], "/proc/upnext: No such file or directory"),
        (["--state-dir", "odd"], "odd/daemon.id: Is a directory"),
        (["--socket", "/proc/upnext.sock"], "control socket /proc/upnext.sock: "),
        (["--socket", "/proc/upnext/s"], "/proc/upnext: No such file or directory"),
        (["--log-file", "odd"], "--log-file "),
    ],
)
def test_a_folder_or_file_that_can_not_be_used_is_one_line(arguments: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(OK)
    (tmp_path / "taken").touch()
    (tmp_path / "odd" / "daemon.id").mkdir(parents=True)
    (tmp_path / "odd").chmod(0o700)
    options = {"--state-dir": "state", "--socket": "s", **dict([arguments])}
    command = [UPNEXTD, "start", "service.py", "--workers", "1", *(word for pair in options.items() for word in pair)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=given(60), check=False)
    assert done.returncode == 64, done.stderr
    [only] = done.stderr.splitlines()
    assert only.startswith("upnextd: ")
    assert line in only


def test_an_id_that_is_junk_counts_as_none(tmp_path: Path) -> None:
    daemon = Daemon(OK, workers=1)
    daemon.state.mkdir()
    (daemon.state / "daemon.id").write_bytes(b"\x00\xff\n{" * 1000)
    with daemon:
        assert daemon.status()["ready_workers"] == 1


def test_a_socket_in_use_is_refused(tmp_path: Path) -> None:
    first = Daemon(OK, workers=1)
    with first:
        second = Daemon(OK, workers=1)
        second.socket_path = first.socket_path
        second.launch()
        try:
            assert second.wait(10) == 73, second.log()
            assert first.status()["pid"] == first.pid
            assert os.path.exists(first.socket_path)
        finally:
            second.close()
