"""The control socket in bad company: it streams on through respawns, and what is thrown at it harms nobody."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.daemon import BIN, Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.control.client import ControlClient

RESPAWNS = int(os.environ.get("UPNEXT_TEST_RESPAWNS", "100"))
"""1,000 by hand."""
OWN_BAR_KIB = 20 << 10

SERVICE = """
    import asyncio, os
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    async def fail() -> None:
        raise ValueError("no\\nsecond line")

    @worker.task(max_crashes=1)
    async def leave() -> None:
        os._exit(3)

    @worker.task
    async def nap() -> None:
        # Runs until the test lets it end.
        while not os.path.exists("go"):
            await asyncio.sleep(0.1)
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=2) as one:
        yield one


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def own_kib(pid: int) -> int:
    """What it has in memory, without the files that it maps: how much of those is there depends on the machine."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0])


def connect(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    try:
        connection.connect(str(daemon.socket_path))
    except OSError:
        connection.close()
        raise
    return connection


def settled(daemon: Daemon, want: int) -> None:
    wait_until(lambda: fds(daemon.pid) <= want, 10, f"{want} descriptors, there are {fds(daemon.pid)}")


class Follower:
    """`upnext ctl events --json`, read as it comes."""

    def __init__(self, daemon: Daemon) -> None:
        command = [str(BIN / "upnext"), "ctl", "events", "--json", "--socket", str(daemon.socket_path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=daemon.environment)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._unread = b""
        self.events: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            self._unread += os.read(self._process.stdout.fileno(), 1 << 20)
        *lines, self._unread = self._unread.split(b"\n")
        self.events += [json.loads(line) for line in lines]
        return self.events

    def close(self) -> int:
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


def test_events_are_followed(daemon: Daemon) -> None:
    follower = Follower(daemon)
    try:
        with Queue(daemon) as queue:

            def heard_a_failure() -> dict[str, Any] | None:
                queue.ended(queue.submit("fail"))
                return next((event for event in follower.look() if event["kind"] == "job_failed"), None)

            failure = wait_until(heard_a_failure, 20) or {}
        assert failure["task"] == "fail"
        assert failure["job_id"].startswith("fail:")
        assert failure["slot"].startswith("worker-")
        assert failure["error"] == "ValueError: no"
        pid = daemon.worker_pids()["worker-1"]
        os.kill(pid, signal.SIGKILL)

        def heard_the_rest() -> bool:
            kinds = [event["kind"] for event in follower.look() if event.get("slot") == "worker-1"]
            return kinds[-3:] == ["child_exited", "child_started", "child_ready"]

        wait_until(heard_the_rest, 10)
        exited = next(event for event in follower.events if event["kind"] == "child_exited")
        assert (exited["pid"], exited["cause"]) == (pid, "signal:SIGKILL")
        assert all(event["at"].endswith("Z") for event in follower.events)
    finally:
        assert follower.close() == 130


def test_top_fills_the_screen_of_a_terminal(daemon: Daemon) -> None:
    with Queue(daemon) as queue:
        queue.submit("nap")
        ours, theirs = pty.openpty()
        environment = {**daemon.environment, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
        command = [
            str(BIN / "upnext"),
            "ctl",
            "top",
            "--count",
            "2",
            "--interval",
            "0.3",
            "--socket",
            str(daemon.socket_path),
        ]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            screen = b""
            while select.select([ours], [], [], 60)[0]:
                try:
                    data = os.read(ours, 1 << 16)
                except OSError:
                    break
                if not data:
                    break
                screen += data
            assert process.wait(60) == 0
        os.close(ours)
    (daemon.directory / "go").touch()
    text = screen.decode()
    assert "\x1b[?1049h" in text, "the alternate screen"
    for reported in ("service (pid", "worker-1", "READY", "JOBS/S", "PSS", "nap:n", "QUEUED", "fail", "%"):
        assert reported in text, reported


def test_top_on_a_small_terminal_sees_a_restart_and_leaves_it_clean() -> None:
    ours, theirs = pty.openpty()
    screen = bytearray()

    def shows(text: bytes) -> bool:
        while select.select([ours], [], [], 0)[0]:
            try:
                screen.extend(os.read(ours, 1 << 16))
            except OSError:
                break
        return text in screen

    with Daemon(SERVICE, workers=1) as daemon:
        environment = {**daemon.environment, "TERM": "xterm", "COLUMNS": "24", "LINES": "5"}
        command = [str(BIN / "upnext"), "ctl", "top", "--interval", "0.2", "--socket", str(daemon.socket_path)]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            try:
                wait_until(lambda: shows(b"service (pid"), 60, "the first look")
                assert daemon.stop() == 0
                wait_until(lambda: shows(b"the daemon hung up"), 30, "a word about it")
                screen.clear()
                daemon.start(60)
                wait_until(lambda: shows(b"service (pid"), 60, "the restarted daemon")
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 0, "Ctrl-C is the way out of it"
                assert shows(b"\x1b[?1049l"), "back from the alternate screen"
                assert screen.rindex(b"\x1b[?25h") > screen.rfind(b"\x1b[?25l"), "the cursor is shown"
                assert b"Traceback" not in screen
            finally:
                process.kill()
    os.close(ours)


def test_a_connection_outlives_respawns(daemon: Daemon) -> None:
    with ControlClient(daemon.socket_path) as client, Queue(daemon) as queue:
        # A child that ran a job is replaced at once, however often: that is no crash loop.
        def respawn(times: int) -> None:
            for _ in range(times):
                want = restarts(client) + 1
                queue.submit("leave")
                wait_until(lambda want=want: restarts(client) >= want, 10)
            wait_until(lambda: all_there(client), 10)

        respawn(10)
        client.call("subscribe")
        fds_before, own_before = fds(daemon.pid), own_kib(daemon.pid)
        begun = time.monotonic()
        respawn(RESPAWNS)
        took_s = time.monotonic() - begun
        settled(daemon, fds_before)
        own_after = own_kib(daemon.pid)
        per_worker = descriptors_per_worker(daemon, client)
        print(
            f"{RESPAWNS} respawns in {took_s:.1f} s: fds {fds_before} -> {fds(daemon.pid)},"
            f" own memory {own_before} -> {own_after} KiB, {per_worker:g} fds per worker"
        )
        assert own_after - own_before < 1024
        assert own_after < OWN_BAR_KIB
        assert per_worker <= 6
        assert client.call("hello")["pid"] == daemon.pid
        kinds = [notification.params["kind"] for notification in client._events]
        assert min(kinds.count(kind) for kind in ("child_started", "child_ready", "child_exited")) >= RESPAWNS


def all_there(client: ControlClient) -> bool:
    children = client.call("status")["children"]
    return len(children) == 5 and all(child["state"] == "READY" for child in children)


def restarts(client: ControlClient) -> int:
    return sum(child["restarts"] for child in client.call("status")["children"])


def daemon_pids(client: ControlClient) -> dict[str, int]:
    children = client.call("status")["children"]
    return {c["slot"]: c["pid"] for c in children if c["role"] == "worker" and c["state"] == "READY"}


def descriptors_per_worker(daemon: Daemon, client: ControlClient) -> float:
    before = fds(daemon.pid)
    client.call("scale", workers=6)
    wait_until(lambda: len(daemon_pids(client)) == 6, 10)
    more = fds(daemon.pid) - before
    client.call("scale", workers=2)
    wait_until(lambda: len(client.call("status")["children"]) == 5, 10)
    return more / 4


JUNK = st.one_of(
    st.binary(max_size=2000),
    st.binary(max_size=200).map(lambda data: data + b"\n"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode() + b"\n"),
    st.builds(
        lambda method, params, cut: json.dumps(
            {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        ).encode()[:cut],
        st.sampled_from(["hello", "status", "scale", "wait", "dump", "subscribe", "nonsense"]),
        st.dictionaries(
            st.sampled_from(["slot", "workers", "op_id", "x"]), st.none() | st.integers() | st.text(), max_size=3
        ),
        st.integers(1, 300),
    ),
)


def test_fuzzed_input_harms_nobody(daemon: Daemon) -> None:
    before, own_before, pids = fds(daemon.pid), own_kib(daemon.pid), daemon.worker_pids()

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        database=None,
    )
    @given(st.lists(JUNK, min_size=1, max_size=4))
    def throw(pieces: list[bytes]) -> None:
        with connect(daemon) as connection, contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    throw()
    settled(daemon, before)
    assert daemon.worker_pids() == pids
    assert own_kib(daemon.pid) - own_before < 4096


def test_a_huge_frame_is_cut_off(daemon: Daemon) -> None:
    before, own_before = fds(daemon.pid), own_kib(daemon.pid)
    with connect(daemon) as connection:
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1 << 30:
                sent += connection.send(b"x" * (1 << 16))
        assert sent < 8 << 20, "nobody takes a line of 1 GiB"
        with contextlib.suppress(ConnectionResetError):
            assert b"-32006" in connection.recv(1 << 16)
    settled(daemon, before)
    assert own_kib(daemon.pid) - own_before < 8192
    assert daemon.status()["ready_workers"] == 2


def followed(daemon: Daemon) -> socket.socket:
    """A connection that follows events: never idle."""
    connection = connect(daemon)
    connection.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "subscribe"}\n')
    assert b"result" in connection.recv(4096)
    return connection


def test_slow_and_silent_clients_are_no_burden(daemon: Daemon) -> None:
    before = fds(daemon.pid)
    with contextlib.ExitStack() as open_ones:
        followers = [open_ones.enter_context(followed(daemon)) for _ in range(12)]
        more = daemon.ctl("events")
        assert (more.returncode, more.stdout) == (1, ""), more.stderr
        assert "12 clients follow events or wait for operations already" in more.stderr
        assert daemon.ctl("status").returncode == 0, "short questions find a place"
        asking = [open_ones.enter_context(connect(daemon)) for _ in range(4)]
        assert refused(daemon), "the 17th, while none of the others has been idle for long"
        for connection in asking:
            connection.close()
        followers[0].sendall(b'{"jsonrpc": "2.0", "id":')
        wait_until(lambda: not refused(daemon), 5, "a place to be free again")
        hung_up = followers[0]
        hung_up.settimeout(60)
        assert hung_up.recv(1) == b"", "who doesn't end a line is hung up on"
    settled(daemon, before)


def test_idle_clients_lock_nobody_out(daemon: Daemon) -> None:
    before = fds(daemon.pid)
    with contextlib.ExitStack() as open_ones:
        silent = [open_ones.enter_context(connect(daemon)) for _ in range(16)]
        done = daemon.ctl("status")
        assert done.returncode == 0, done.stderr
        assert select.select(silent, [], [], 30)[0], "one of them was hung up on"
    settled(daemon, before)


def test_a_daemon_that_is_held_up_with_a_full_backlog_is_busy_and_not_away(daemon: Daemon) -> None:
    with contextlib.ExitStack() as open_ones:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            full = False
            while not full:
                waiting = open_ones.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                full = waiting.connect_ex(str(daemon.socket_path)) == errno.EAGAIN
            done = daemon.ctl("status")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert done.returncode == 1, done.stderr
        assert "is busy" in done.stderr
    wait_until(lambda: lets_in(daemon), 20, "its clients to be gone")


def lets_in(daemon: Daemon) -> bool:
    try:
        return not refused(daemon)
    except BlockingIOError:  # its backlog is still full
        return False


def test_thousands_of_requests_delay_nobody(daemon: Daemon) -> None:
    before = fds(daemon.pid)
    many = 4000
    answers: list[int] = []
    with connect(daemon) as connection:

        def read() -> None:
            with connection.makefile("rb") as lines:
                for line in lines:
                    answers.append(len(line))
                    if len(answers) == many:
                        return

        reader = threading.Thread(target=read)
        writer = threading.Thread(
            target=connection.sendall, args=(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n' * many,)
        )
        reader.start()
        writer.start()
        wait_until(lambda: answers, 30, "its first answer")
        daemon.rpc("hello")
        assert len(answers) < many, "another's request was answered between"
        reader.join(200)
        writer.join(10)
        assert len(answers) == many
    settled(daemon, before)


def test_however_many_jobs_run_the_status_fits() -> None:
    service = SERVICE.replace("concurrency=4", "concurrency=2500")
    with Daemon(service, workers=1) as one, Queue(one) as queue:
        for _ in range(2500):
            queue.submit("nap")
        wait_until(lambda: one.child("worker-1")["in_flight_count"] == 2500, 60, "all to run")
        oldest = one.child("worker-1")["in_flight"]
        assert len(oldest) == 20
        found: list[dict[str, Any]] = []
        offset: int | None = 0
        while offset is not None:
            page = one.rpc("running", slot="worker-1", offset=offset)
            assert page["count"] == 2500
            found += page["jobs"]
            offset = page["next"]
        assert len({job["job_id"] for job in found}) == 2500
        assert [job["job_id"] for job in found[:20]] == [job["job_id"] for job in oldest]
        assert one.rpc("running", slot="scheduler")["jobs"] == []
        assert "+2499" in one.ctl("status").stdout
        (one.directory / "go").touch()
        wait_until(lambda: one.child("worker-1")["in_flight_count"] == 0, 60, "all to end")


def refused(daemon: Daemon) -> bool:
    with connect(daemon) as connection:
        with contextlib.suppress(BrokenPipeError):  # it was refused already: the reason is there to be read
            connection.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "hello"}\n')
        answer = json.loads(connection.makefile("rb").readline())
    return "error" in answer and answer["error"]["code"] == -32004


def test_a_reader_that_never_reads_is_dropped(daemon: Daemon) -> None:
    before, own_before = fds(daemon.pid), own_kib(daemon.pid)
    with connect(daemon) as connection:
        connection.setblocking(False)
        request = b"no json\n" * 10_000

        def dropped() -> bool:
            try:
                connection.send(request)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        wait_until(dropped, 30, "the daemon to drop it")
    settled(daemon, before)
    assert own_kib(daemon.pid) - own_before < 12 << 10
    assert daemon.status()["ready_workers"] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_refused(daemon: Daemon) -> None:
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n s.connect(sys.argv[1])\nexcept PermissionError:\n print('denied'); sys.exit()\n"
        "s.settimeout(30)\nprint(s.recv(4096).decode())\n"
    )

    def ask() -> str:
        command = [sys.executable, "-c", code, str(daemon.socket_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout

    assert "denied" in ask(), "by the mode of the socket"
    daemon.directory.chmod(0o755)
    daemon.socket_path.chmod(0o666)
    try:
        assert "-32005" in ask(), "and by its credentials, where the mode would let it in"
    finally:
        daemon.socket_path.chmod(0o600)
        daemon.directory.chmod(0o700)
    assert daemon.status()["ready_workers"] == 2


def test_a_removed_socket_comes_back() -> None:
    with Daemon(SERVICE, workers=1) as daemon:
        daemon.socket_path.unlink()
        wait_until(lambda: daemon.ctl("status").returncode == 0, 20, "the socket to be there again")
        assert daemon.socket_path.stat().st_mode & 0o777 == 0o600
        assert daemon.stop() == 0
        assert not daemon.socket_path.exists()


def test_a_removed_folder_of_the_socket_is_made_again() -> None:
    daemon = Daemon(SERVICE, workers=1)
    folder = daemon.directory / "run"
    daemon.socket_path = folder / "ctl.sock"
    with daemon:
        shutil.rmtree(folder)
        wait_until(lambda: daemon.ctl("status").returncode == 0, 20, "the socket to be there again")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_upgrade_goes_on_without_the_socket() -> None:
    with Daemon(SERVICE, workers=1) as daemon:
        pids = daemon.worker_pids()
        daemon.socket_path.unlink()
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "in place" in daemon.log().rpartition("asked to upgrade")[2], 30, "the upgrade")
        wait_until(daemon.socket_path.exists, 20, "the socket to be there again")
        assert daemon.worker_pids() == pids
