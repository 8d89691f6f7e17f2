"""Two commands at once, every pair: each is answered clearly and comes to an end, and what was wanted last is what is."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.reloading import make
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.control.client import ControlClient, Ended
from upnext.control.protocol import ErrorCode
from upnext.errors import ControlError

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Asked:
    """What became of one command: its operation, or why it was refused; both None for a signal."""

    name: str
    op_id: str | None = None
    refused: ControlError | None = None


def command(name: str, **params: Any) -> Callable[[Daemon, ControlClient], Asked]:
    method = name.split(maxsplit=1)[0]

    def ask(_daemon: Daemon, client: ControlClient) -> Asked:
        try:
            return Asked(name, client.call(method, **params)["op_id"])
        except ControlError as error:
            return Asked(name, refused=error)

    ask.__name__ = name
    return ask


def upgrade(daemon: Daemon, _client: ControlClient) -> Asked:
    os.kill(daemon.pid, signal.SIGUSR2)
    return Asked("upgrade")


def crash(daemon: Daemon, _client: ControlClient) -> Asked:
    """No command, but what may happen beside any."""
    for pid in list(daemon.worker_pids().values())[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Asked("crash")


COMMANDS = {
    one.__name__: one
    for one in (
        command("restart"),
        command("restart worker-1", slot="worker-1"),
        command("scale 1", workers=1),
        command("scale 3", workers=3),
        command("pause"),
        command("resume"),
        command("drain"),
        command("reload"),
        upgrade,
        crash,
    )
}
FINE = ("superseded by", "reload failed")
"""How the end of an operation that did not reach its aim may begin."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", COMMANDS)
def test_every_pair_is_answered_and_the_system_is_well_afterwards(first: str) -> None:
    with make(2) as daemon, Queue(daemon) as queue, ControlClient(daemon.socket_path, timeout_s=30.0) as client:
        for second, then in COMMANDS.items():
            pair = f"{first}, {second}"
            prove(daemon, queue)
            asked = [COMMANDS[first](daemon, client), then(daemon, client)]
            for one in asked:
                if one.refused is not None:
                    assert one.refused.code == ErrorCode.CONFLICT, f"{pair}: {one.refused}"
                    assert "reload is under way" in str(one.refused), f"{pair}: {one.refused}"
                elif one.op_id is not None:
                    ended = followed(client, one.op_id, pair)
                    assert ended.ok or ended.text.startswith(FINE), f"{pair}: {one.name}: {ended.text}"
            if {first, second} <= {"restart", "restart worker-1", "reload", "upgrade", "crash"}:
                assert status(daemon)["mode"] == "running", pair
            client.wait(client.call("resume")["op_id"], timeout_s=PATIENCE_S)
            client.wait(client.call("scale", workers=2)["op_id"], timeout_s=PATIENCE_S)
            wait_until(lambda: well(daemon), PATIENCE_S, f"{pair}: all to be well")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", [*COMMANDS, "stop"])
def test_a_stop_beside_anything_ends_the_daemon(first: str) -> None:
    daemon = make(2)
    try:
        daemon.start()
        with ControlClient(daemon.socket_path, timeout_s=30.0) as client:
            stop = command("stop", now=False)
            asked = stop(daemon, client) if first == "stop" else COMMANDS[first](daemon, client)
            stopped = stop(daemon, client)
            assert stopped.op_id is not None, stopped
            if first == "stop":
                assert asked.op_id == stopped.op_id
            refused = command("scale 3", workers=3)(daemon, client)
            assert refused.refused is not None
            assert refused.refused.code == ErrorCode.CONFLICT
            assert client.wait(stopped.op_id, timeout_s=PATIENCE_S).ok
        assert daemon.wait(PATIENCE_S) == 0
        daemon.assert_nothing_left()
    finally:
        daemon.close()


def followed(client: ControlClient, op_id: str, pair: str) -> Ended:
    try:
        return client.wait(op_id, timeout_s=PATIENCE_S)
    except TimeoutError as error:
        raise AssertionError(f"{pair}: {error}") from None


def prove(daemon: Daemon, queue: Queue) -> None:
    """Every worker has run a job: a crash of one is then no sign of a crash loop."""

    def each_ran_one() -> bool:
        queue.submit_many("version", [{}] * 8)
        workers = [child for child in daemon.status()["children"] if child["role"] == "worker"]
        return all(child["jobs_done"] for child in workers)

    try:
        wait_until(each_ran_one, PATIENCE_S, "each worker to have run a job")
    except AssertionError as error:
        error.add_note(f"{daemon.status()}\n{daemon.log()}")
        raise


def status(daemon: Daemon) -> dict[str, Any]:
    """Also while it execs itself."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return daemon.status()
        except OSError:
            if time.monotonic() > end:
                raise


def well(daemon: Daemon) -> bool:
    """Two workers and a scheduler of one generation, its template (and the former one), the broker; and nobody else."""
    output = status(daemon)
    children = output["children"]
    serving = [child for child in children if child["role"] in ("worker", "scheduler")]
    known = {child["pid"] for child in children} | {daemon.pid}
    return (
        output["mode"] == "running"
        and [child["slot"] for child in serving] == ["worker-1", "worker-2", "scheduler"]
        and {(child["state"], child["generation"]) for child in serving} == {("READY", output["generation"])}
        and set(daemon.left()) == known
    )


SLOW_BIRTH = """\
os.register_at_fork(after_in_child=lambda: time.sleep(0.7))
"""


@pytest.mark.parametrize("asked", ["pause", "drain"])
def test_a_child_born_in_a_pause_works_when_the_pause_ended_before_it_was_ready(asked: str) -> None:
    with make(1, extra=SLOW_BIRTH) as daemon, ControlClient(daemon.socket_path, timeout_s=30.0) as client:
        assert daemon.cli("call", "version", "--wait", "--timeout", "20").stdout.strip() == "1"
        client.wait(client.call(asked)["op_id"], timeout_s=PATIENCE_S)
        os.kill(daemon.child("worker-1")["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.child("worker-1")["state"] == "STARTING", 10)
        client.wait(client.call("resume")["op_id"], timeout_s=PATIENCE_S)
        assert daemon.cli("call", "version", "--wait", "--timeout", "20").stdout.strip() == "1"
