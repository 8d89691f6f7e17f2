"""The real kernel (`upnextd.shared.kernel.Kernel`)."""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from upnext import listening
from upnext.address import Address
from upnextd.shared import cgroups, identity, leftovers, process
from upnextd.shared.kernel import Connection, Memory
from upnextd.shared.process import ExitStatus


class LinuxKernel:
    """Has no state: what it knows, the system knows."""

    # -- this process --

    def pid(self) -> int:
        return os.getpid()

    def become_subreaper(self) -> None:
        process.become_subreaper()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def random(self) -> random.Random:
        return random.Random()

    # -- other processes --

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
        return process.spawn(argv, env, fds)

    def open_pidfd(self, pid: int) -> int:
        return os.pidfd_open(pid)

    def signal(self, pidfd: int, number: signal.Signals) -> None:
        process.send_signal(pidfd, number)

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def reap(self, pidfd: int) -> ExitStatus | None:
        return process.reap(pidfd)

    def is_reaped(self, pidfd: int) -> bool:
        return process.is_reaped(pidfd)

    def reap_orphans(self, ours: set[int]) -> int:
        return process.reap_orphans(ours)

    def kill_session(self, session: int) -> int:
        return process.kill_session(session)

    def end_leftovers(self, daemon_id: str) -> int:
        return leftovers.end_all(daemon_id)

    def catches(self, pid: int, number: signal.Signals) -> bool:
        return process.catches(pid, number)

    def rss_bytes(self, pid: int) -> int:
        return process.rss_bytes(pid)

    def oom_kills(self) -> int | None:
        return cgroups.oom_kills()

    # -- descriptors --

    def stream_pair(self) -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()

    def packet_pair(self) -> tuple[int, int]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return ours.detach(), theirs.detach()

    def pipe(self) -> tuple[int, int]:
        out, into = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(out, False)
        return out, into

    def null(self) -> int:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def connection(self, fd: int) -> Connection:
        made = socket.socket(fileno=fd)
        made.setblocking(False)
        return made

    def send_with_fds(self, connection: Connection, data: bytes, fds: Sequence[int]) -> None:
        assert isinstance(connection, socket.socket)
        socket.send_fds(connection, [data], fds)

    def read(self, fd: int, most_bytes: int) -> bytes:
        return os.read(fd, most_bytes)

    def close(self, fd: int) -> None:
        os.close(fd)

    # -- sockets that listen --

    def listen(self, what: str, address: Address) -> int:
        return listening.listen(what, address).detach()

    def listens_at(self, fd: int) -> Address:
        with _borrowed(fd) as bound:
            return listening.bound_at(bound)

    def refuse(self, fd: int) -> None:
        with _borrowed(fd) as bound:
            listening.refuse(bound)

    def listen_again(self, fd: int) -> None:
        with _borrowed(fd) as bound:
            listening.listen_again(bound)

    def refuses(self, fd: int) -> bool:
        with _borrowed(fd) as bound:
            return listening.refuses(bound)

    def remove(self, path: str) -> None:
        for one in (path, path + listening.AWAY):
            with suppress(OSError):
                os.unlink(one)

    # -- memory and files --

    def memory(self, name: str, size_bytes: int, begins_with: bytes = b"") -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            os.pwrite(fd, begins_with, 0)
        except OSError:
            os.close(fd)
            raise
        return fd

    def map(self, fd: int, size_bytes: int) -> Memory:
        return mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)

    def read_from(self, fd: int, start: int, cap_bytes: int) -> tuple[bytes, int]:
        size = os.fstat(fd).st_size
        start = max(start, size - cap_bytes)
        return (os.pread(fd, size - start, start) if size > start else b""), size

    def store_id(self, state_dir: Path, daemon_id: str) -> None:
        identity.store(state_dir, daemon_id)


@contextmanager
def _borrowed(fd: int) -> Generator[socket.socket]:
    """A socket by its descriptor, which stays the caller's."""
    one = socket.socket(fileno=fd)
    try:
        yield one
    finally:
        one.detach()
