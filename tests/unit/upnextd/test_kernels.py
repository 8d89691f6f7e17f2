"""The rules of `SimKernel`, each held against Linux by a test that runs on both."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pytest

from tests.support.sim_kernel import Process, SimKernel, SimLoop
from tests.support.waiting import wait_until
from upnext.address import Address
from upnextd.shared.kernel import Kernel
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.process import ExitStatus

LINE = 3
"""The descriptor by which a program reports, and is asked to end."""
_SUBREAPER = 36

_PROGRAMS = """
import ctypes, os, signal, sys
what = sys.argv[1]
def wait():
    while True: signal.pause()
def linger():
    os.read(3, 1)
if what == "sleep":
    wait()
if what == "exit":
    os._exit(3)
if what == "write":
    os.write(1, b"hello\\n")
    os._exit(0)
if what == "leave writer":
    os.write(1, b"hello\\n")
    if os.fork() == 0: wait()
    os._exit(0)
settled, settle = os.pipe()
child = os.fork()
if child == 0:
    if what == "bear mortal": ctypes.CDLL(None).prctl(1, 9)
    if what == "bear dead": os._exit(5)
    os.close(3)
    os.close(settle)
    wait()
os.close(settle)
os.read(settled, 1)  # a parent that ended before would not take its child with it
os.write(3, str(child).encode())
linger()
os._exit(0)
"""


class World(Protocol):
    kernel: Kernel

    def until(self, condition: Callable[[], object]) -> None: ...

    def readable(self, fd: int) -> bool: ...


class Real:
    """Linux: this process adopts orphans for as long."""

    def __init__(self) -> None:
        self.kernel: Kernel = LinuxKernel()
        self.kernel.become_subreaper()

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(lambda: bool(condition()), 20)

    def readable(self, fd: int) -> bool:
        return bool(select.select([fd], [], [], 0)[0])

    def close(self) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)


class Simulated:
    def __init__(self) -> None:
        self.loop = SimLoop(random.Random(1))
        self.kernel: Kernel = SimKernel(self.loop, random.Random(2), self._program, lambda text: None)

    def until(self, condition: Callable[[], object]) -> None:
        for _ in range(100):
            self.loop.run_until_complete(asyncio.sleep(0.01))
            if condition():
                return
        raise AssertionError("it does not come")

    def readable(self, fd: int) -> bool:
        return self.loop.kernel.files[fd].readable

    def close(self) -> None:
        self.loop.close()

    def _program(self, process: Process, argv: Sequence[str]) -> None:
        kernel = process.kernel
        what = argv[-1]

        def bear() -> None:
            child = kernel.fork(process, "child", {"1": process.files["1"]} if "1" in process.files else {})
            child.dies_with_parent = what == "bear mortal"
            if what == "bear dead":
                child.exit(ExitStatus(5, None))
            process.end("3").put(str(child.pid).encode())
            process.end("3").on_readable = lambda: process.exit(ExitStatus(0, None))

        match what:
            case "exit":
                process.later(0.001, process.exit, ExitStatus(3, None))
            case "write" | "leave writer":
                process.end("1").put(b"hello\n")
                if what == "leave writer":
                    kernel.fork(process, "child", {"1": process.files["1"]})
                process.later(0.001, process.exit, ExitStatus(0, None))
            case "sleep":
                return
            case _:
                process.later(0.001, bear)


@pytest.fixture(params=["simulated", "linux"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = Simulated() if request.param == "simulated" else Real()
    yield made
    made.close()


def start(world: World, what: str, fds: dict[int, int] | None = None) -> tuple[int, int]:
    """-> pid, pidfd"""
    argv = [sys.executable, "-S", "-c", _PROGRAMS, what]
    null = world.kernel.null()
    pid = world.kernel.spawn(argv, dict(os.environ), {0: null, **(fds or {})})
    world.kernel.close(null)
    return pid, world.kernel.open_pidfd(pid)


def bear(world: World, what: str) -> tuple[int, int, int, int]:
    """A parent that lingers, and its child. -> the parent's pid and pidfd, the child's pid, our end of the parent's line."""
    kernel = world.kernel
    ours, theirs = kernel.stream_pair()
    pid, pidfd = start(world, what, {LINE: theirs})
    kernel.close(theirs)
    connection = kernel.connection(ours)
    received = bytearray()

    def hear() -> bool:
        try:
            received.extend(connection.recv(100))
        except BlockingIOError:
            return False
        return True

    world.until(hear)
    return pid, pidfd, int(received), connection.detach()


def end_parent(world: World, pidfd: int, line: int) -> None:
    connection = world.kernel.connection(line)
    connection.send(b"x")
    world.until(lambda: world.kernel.reap(pidfd) is not None)
    connection.close()
    world.kernel.close(pidfd)


def reaped(world: World, pidfd: int) -> ExitStatus:
    found: list[ExitStatus] = []

    def reap() -> bool:
        status = world.kernel.reap(pidfd)
        if status is not None:
            found.append(status)
        return status is not None

    world.until(reap)
    return found[0]


def test_a_child_is_reaped_once(world: World) -> None:
    _, pidfd = start(world, "exit")
    assert reaped(world, pidfd) == ExitStatus(3, None)
    assert world.kernel.is_reaped(pidfd)
    with pytest.raises(ChildProcessError):
        world.kernel.reap(pidfd)
    world.kernel.close(pidfd)


def test_a_living_child_has_no_status(world: World) -> None:
    _, pidfd = start(world, "sleep")
    assert world.kernel.reap(pidfd) is None
    assert not world.kernel.is_reaped(pidfd)
    world.kernel.signal(pidfd, signal.SIGKILL)
    assert reaped(world, pidfd) == ExitStatus(None, "SIGKILL")
    world.kernel.close(pidfd)


def test_a_signal_that_comes_late_is_no_error(world: World) -> None:
    pid, pidfd = start(world, "sleep")
    world.kernel.kill(pid)
    reaped(world, pidfd)
    world.kernel.signal(pidfd, signal.SIGTERM)
    world.kernel.kill(pid)
    with pytest.raises(ProcessLookupError):
        world.kernel.open_pidfd(pid)
    world.kernel.close(pidfd)


def test_a_grandchild_is_not_ours_while_its_parent_lives(world: World) -> None:
    kernel = world.kernel
    _, parent, child, line = bear(world, "bear")
    pidfd = kernel.open_pidfd(child)
    with pytest.raises(ChildProcessError):
        kernel.reap(pidfd)
    kernel.signal(pidfd, signal.SIGKILL)
    with pytest.raises(ChildProcessError):
        kernel.reap(pidfd)
    assert not kernel.is_reaped(pidfd)
    end_parent(world, parent, line)
    assert reaped(world, pidfd) == ExitStatus(None, "SIGKILL")
    kernel.close(pidfd)


def test_a_zombie_goes_from_its_dead_parent_to_us(world: World) -> None:
    kernel = world.kernel
    _, parent, child, line = bear(world, "bear dead")
    pidfd = kernel.open_pidfd(child)
    with pytest.raises(ChildProcessError):
        kernel.reap(pidfd)
    end_parent(world, parent, line)
    assert reaped(world, pidfd) == ExitStatus(5, None)
    kernel.close(pidfd)


def test_a_child_may_die_with_its_parent(world: World) -> None:
    _, parent, child, line = bear(world, "bear mortal")
    pidfd = world.kernel.open_pidfd(child)
    end_parent(world, parent, line)
    assert reaped(world, pidfd) == ExitStatus(None, "SIGKILL")
    world.kernel.close(pidfd)


def test_orphans_are_reaped_up_to_the_first_of_ours(world: World) -> None:
    kernel = world.kernel
    _, parent, child, line = bear(world, "bear dead")
    pidfd = kernel.open_pidfd(child)
    end_parent(world, parent, line)
    kernel.reap_orphans({child})
    assert not kernel.is_reaped(pidfd)
    # The kernel may hand it over a moment after its parent is gone.
    world.until(lambda: kernel.reap_orphans(set()) == 1)
    assert kernel.is_reaped(pidfd)
    with pytest.raises(ChildProcessError):
        kernel.reap(pidfd)
    kernel.close(pidfd)


def test_a_session_is_killed_without_its_dead(world: World) -> None:
    kernel = world.kernel
    other, other_pidfd = start(world, "sleep")
    pid, parent, child, line = bear(world, "bear")
    pidfd = kernel.open_pidfd(child)
    assert kernel.kill_session(pid) == 2
    assert reaped(world, parent) == ExitStatus(None, "SIGKILL")
    assert reaped(world, pidfd) == ExitStatus(None, "SIGKILL")
    assert kernel.kill_session(pid) == 0
    assert kernel.reap(other_pidfd) is None
    kernel.kill(other)
    reaped(world, other_pidfd)
    for fd in (line, parent, pidfd, other_pidfd):
        kernel.close(fd)


def test_a_stopped_process_takes_nothing_but_a_kill(world: World) -> None:
    kernel = world.kernel
    _, pidfd = start(world, "sleep")
    kernel.signal(pidfd, signal.SIGSTOP)
    kernel.signal(pidfd, signal.SIGTERM)
    assert kernel.reap(pidfd) is None
    kernel.signal(pidfd, signal.SIGCONT)
    assert reaped(world, pidfd) == ExitStatus(None, "SIGTERM")
    kernel.close(pidfd)
    _, pidfd = start(world, "sleep")
    kernel.signal(pidfd, signal.SIGSTOP)
    kernel.signal(pidfd, signal.SIGKILL)
    assert reaped(world, pidfd) == ExitStatus(None, "SIGKILL")
    kernel.close(pidfd)


def test_what_was_written_before_an_end_is_read_after_it(world: World) -> None:
    kernel = world.kernel
    out, into = kernel.pipe()
    _, pidfd = start(world, "write", {1: into})
    kernel.close(into)
    reaped(world, pidfd)
    assert kernel.read(out, 100) == b"hello\n"
    assert kernel.read(out, 100) == b""
    kernel.close(out)
    kernel.close(pidfd)


def _ended(world: World, out: int) -> bool:
    """Whether a read finds the end of the pipe; False while a writer is left."""
    try:
        return world.kernel.read(out, 100) == b""
    except BlockingIOError:
        return False


def test_a_pipe_ends_with_its_last_writer(world: World) -> None:
    kernel = world.kernel
    out, into = kernel.pipe()
    pid, pidfd = start(world, "leave writer", {1: into})
    kernel.close(into)
    world.until(lambda: world.readable(pidfd))
    assert kernel.read(out, 100) == b"hello\n"
    with pytest.raises(BlockingIOError):
        kernel.read(out, 100)
    assert kernel.kill_session(pid) == 1
    reaped(world, pidfd)
    world.until(lambda: kernel.reap_orphans(set()) == 1)
    world.until(lambda: _ended(world, out))
    kernel.close(out)
    kernel.close(pidfd)


def test_both_ends_of_a_stream(world: World) -> None:
    kernel = world.kernel
    one, two = (kernel.connection(fd) for fd in kernel.stream_pair())
    with pytest.raises(BlockingIOError):
        one.recv(10)
    two.send(b"abc")
    two.send(b"def")
    assert one.recv(2) == b"ab"
    two.close()
    assert one.recv(10)[:1] == b"c"
    rest = b""
    while data := one.recv(10):
        rest += data
    assert b"def".endswith(rest)
    with pytest.raises(BrokenPipeError):
        one.send(b"x")
    one.close()


def repeat(do: Callable[[], object]) -> int:
    """Until it would block; -> how many times it didn't."""
    for times in range(10_000):
        try:
            do()
        except BlockingIOError:
            return times
    raise AssertionError("it never blocks")


def test_a_stream_that_nobody_reads_is_full_once(world: World) -> None:
    kernel = world.kernel
    one, two = (kernel.connection(fd) for fd in kernel.stream_pair())
    assert repeat(lambda: one.send(b"x" * 1000)) > 1
    repeat(lambda: two.recv(1 << 16))
    assert one.send(b"x") == 1
    one.close()
    two.close()


def test_packets_keep_their_bounds_and_bring_descriptors(world: World) -> None:
    kernel = world.kernel
    one, two = (kernel.connection(fd) for fd in kernel.packet_pair())
    out, into = kernel.pipe()
    kernel.send_with_fds(one, b"first", [into])
    one.send(b"second")
    kernel.close(into)
    with pytest.raises(BlockingIOError):
        # The packet under way has a copy.
        kernel.read(out, 10)
    one.close()
    two.close()
    assert kernel.read(out, 10) == b""
    kernel.close(out)
    one, two = (kernel.connection(fd) for fd in kernel.packet_pair())
    one.send(b"first")
    one.send(b"second")
    one.close()
    assert [two.recv(100), two.recv(100), two.recv(100)] == [b"first", b"second", b""]
    two.close()


def test_a_closed_number_is_given_out_again(world: World) -> None:
    kernel = world.kernel
    first = kernel.null()
    kernel.close(first)
    assert kernel.null() == first
    kernel.close(first)


def test_memory(world: World) -> None:
    kernel = world.kernel
    fd = kernel.memory("test", 10, b"abc")
    page = kernel.map(fd, 10)
    assert bytes(page[0:10]) == b"abc" + bytes(7)
    page.close()
    assert kernel.read_from(fd, 0, 100) == (b"abc" + bytes(7), 10)
    assert kernel.read_from(fd, 8, 100) == (bytes(2), 10)
    assert kernel.read_from(fd, 0, 1) == (bytes(1), 10)
    assert kernel.read_from(fd, 10, 100) == (b"", 10)
    kernel.close(fd)


def test_a_socket_that_refuses_keeps_its_address_and_listens_again(world: World) -> None:
    kernel = world.kernel
    fd = kernel.listen("api 'front'", Address("127.0.0.1", 0))
    where = kernel.listens_at(fd)
    assert not kernel.refuses(fd)
    kernel.refuse(fd)
    assert kernel.refuses(fd)
    kernel.listen_again(fd)
    assert not kernel.refuses(fd)
    assert kernel.listens_at(fd) == where
    kernel.close(fd)
