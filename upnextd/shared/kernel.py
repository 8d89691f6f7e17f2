"""The supervisor's port to everything outside of it: processes, descriptors, shared memory, the clock on the wall.

The supervisor and its actors reach the system by this only. `upnextd.shared.linux_kernel` is the real one; in tests, a simulated one lets
the same code meet what a real kernel does seldom. Readiness of descriptors and time come from the event loop.

Descriptors are numbers, as in the system itself, since an upgrade in place hands them over. All raise OSError as the system calls do.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from upnext.address import Address
from upnextd.shared.process import ExitStatus


class Connection(Protocol):
    """One end of a pair of sockets. Nothing of it blocks: BlockingIOError where it would."""

    def fileno(self) -> int: ...
    def recv(self, most_bytes: int, /) -> bytes:
        """b"" when the other end is closed and everything that it sent has been taken."""
        ...

    def send(self, data: bytes | bytearray, /) -> int: ...
    def close(self) -> None: ...
    def detach(self) -> int:
        """Give the descriptor up without closing it."""
        ...


class Memory(Protocol):
    """Shared memory, mapped."""

    def __getitem__(self, at: Any, /) -> Any: ...
    def close(self) -> None: ...


class Pipes(Protocol):
    """What a reader of a pipe needs."""

    def read(self, fd: int, most_bytes: int) -> bytes:
        """What is there; b"" at the end. Raises BlockingIOError when nothing is there."""
        ...

    def close(self, fd: int) -> None: ...


class Kernel(Pipes, Protocol):
    """See above. "Ours" is the supervisor's process, whose child every one becomes that has lost its parent."""

    # -- this process --

    def pid(self) -> int: ...
    def become_subreaper(self) -> None: ...
    def wall_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def random(self) -> random.Random:
        """A generator of its own for each who asks."""
        ...

    # -- other processes --

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
        """Exec `argv` as the leader of a session of its own; `fds` maps its descriptors to ours. -> its pid."""
        ...

    def open_pidfd(self, pid: int) -> int:
        """A descriptor that is readable once the process has ended. Raises ProcessLookupError when none has this pid."""
        ...

    def signal(self, pidfd: int, number: signal.Signals) -> None:
        """A process that is gone already is no error."""
        ...

    def kill(self, pid: int) -> None:
        """SIGKILL by pid: only for a child of ours that isn't reaped. One that is gone already is no error."""
        ...

    def reap(self, pidfd: int) -> ExitStatus | None:
        """Take the exit status of a child of ours; None while it lives. Raises ChildProcessError when it isn't ours, or was reaped."""
        ...

    def is_reaped(self, pidfd: int) -> bool:
        """Whether it has ended and its status was taken, by whichever parent."""
        ...

    def reap_orphans(self, ours: set[int]) -> int:
        """Reap ended children of ours that are unknown here; stops at the first of `ours`. -> how many."""
        ...

    def kill_session(self, session: int) -> int:
        """SIGKILL to every living process of a session whose leader isn't reaped. -> how many there were."""
        ...

    def end_leftovers(self, daemon_id: str) -> int:
        """End what jobs of this daemon left running in sessions of their own. Blocks. -> how many there were."""
        ...

    def catches(self, pid: int, number: signal.Signals) -> bool:
        """Whether a process has a handler for a signal."""
        ...

    def rss_bytes(self, pid: int) -> int: ...
    def oom_kills(self) -> int | None:
        """How many processes of our control group the kernel has killed for memory; None: not known."""
        ...

    # -- descriptors --

    def stream_pair(self) -> tuple[int, int]: ...
    def packet_pair(self) -> tuple[int, int]: ...
    def pipe(self) -> tuple[int, int]:
        """-> the end to read from, which doesn't block, and the one to write to."""
        ...

    def null(self) -> int:
        """A descriptor that has nothing to read."""
        ...

    def connection(self, fd: int) -> Connection:
        """A socket by its descriptor, which it owns from now on."""
        ...

    def send_with_fds(self, connection: Connection, data: bytes, fds: Sequence[int]) -> None:
        """One packet, and copies of our descriptors."""
        ...

    # -- sockets that listen --

    def listen(self, what: str, address: Address) -> int:
        """A socket that listens there. -> its descriptor. Raises ListenError; `what` begins its line."""
        ...

    def listens_at(self, fd: int) -> Address:
        """With the port that the system chose, where that was open."""
        ...

    def refuse(self, fd: int) -> None:
        """Have connects fail, whichever processes have the socket, and cut off what waits to be accepted, where that can be."""
        ...

    def listen_again(self, fd: int) -> None:
        """After `refuse`. Raises OSError when another process has come to listen there."""
        ...

    def refuses(self, fd: int) -> bool: ...
    def remove(self, path: str) -> None:
        """The path of a socket, which may be gone already."""
        ...

    # -- memory and files --

    def memory(self, name: str, size_bytes: int, begins_with: bytes = b"") -> int:
        """New shared memory, zero where nothing is given. -> its descriptor."""
        ...

    def map(self, fd: int, size_bytes: int) -> Memory:
        """Shared memory to be read."""
        ...

    def read_from(self, fd: int, start: int, cap_bytes: int) -> tuple[bytes, int]:
        """What shared memory or a file has from `start` on, at most the last `cap_bytes`. -> that, and its size."""
        ...

    def store_id(self, state_dir: Path, daemon_id: str) -> None:
        """Make this the name that the next start finds."""
        ...
