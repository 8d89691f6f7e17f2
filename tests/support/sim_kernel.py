"""A kernel in plain Python, on a loop of virtual time: `upnextd.shared.kernel.Kernel` for the real supervisor.

Processes are objects; what they do is a program's business (`tests.support.sim_programs`). Parents, sessions, zombies, pids and
descriptors follow Linux: a zombie belongs to its parent until that reaps it or dies; orphans go to the subreaper; a number is free again
once the process is reaped and no session bears it; a socket's or pipe's end is closed with its last descriptor.
`tests/unit/upnextd/test_kernels.py` holds these rules against Linux.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

from tests.support.virtual_time import VirtualLoop
from upnext.address import Address
from upnext.errors import ListenError
from upnextd.shared.kernel import Connection
from upnextd.shared.process import ExitStatus

FIRST_PID, PIDS = 100, 400
"""Numbers go round soon, so that they are used again."""
_FIRST_FD = 3
_PIPE_BYTES = 64 << 10
_EPOCH_MS = 1_700_000_000_000


class Memory(bytearray):
    """Shared memory; every mapping is the thing itself."""

    def close(self) -> None: ...


class File:
    """What descriptors refer to. `used` counts them, in all processes."""

    def __init__(self) -> None:
        self.used = 0

    @property
    def readable(self) -> bool:
        return False

    @property
    def writable(self) -> bool:
        return True

    def last_closed(self) -> None: ...


class MemoryFile(File):
    def __init__(self, size_bytes: int, begins_with: bytes) -> None:
        super().__init__()
        self.memory = Memory(max(size_bytes, len(begins_with)))
        self.memory[: len(begins_with)] = begins_with


class End(File):
    """One end of a pair of sockets, or of a pipe (which has one way only)."""

    def __init__(self, kernel: SimKernel, *, packets: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.packets = packets
        self.inbox: deque[tuple[bytes, list[File]]] = deque()
        self.waiting_bytes = 0
        self.other: End | None = None
        self.on_readable: Callable[[], None] | None = None
        """Of the simulated process that reads it."""

    @property
    def open(self) -> bool:
        return self.used > 0

    @property
    def readable(self) -> bool:
        return bool(self.inbox) or self.other is None or not self.other.open

    @property
    def writable(self) -> bool:
        return self.other is None or not self.other.open or self.other.waiting_bytes < _PIPE_BYTES

    def put(self, data: bytes, files: Sequence[File] = ()) -> int:
        """Send. Raises BrokenPipeError, BlockingIOError."""
        if self.other is None or not self.other.open:
            raise BrokenPipeError(32, "Broken pipe")
        if not self.writable:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        for file in files:
            file.used += 1
        self.other.inbox.append((data, list(files)))
        self.other.waiting_bytes += len(data)
        self.kernel.changed(self.other)
        return len(data)

    def take(self, most_bytes: int) -> tuple[bytes, list[File]]:
        """Receive. b"" at the end. Raises BlockingIOError."""
        if not self.inbox:
            if self.other is None or not self.other.open:
                return b"", []
            raise BlockingIOError(11, "Resource temporarily unavailable")
        data, files = self.inbox.popleft()
        if not self.packets and len(data) > most_bytes:
            self.inbox.appendleft((data[most_bytes:], []))
            data = data[:most_bytes]
        self.waiting_bytes -= len(data)
        if self.other is not None:
            self.kernel.changed(self.other)
        return data, files

    def last_closed(self) -> None:
        for _, files in self.inbox:
            for file in files:
                self.kernel.release(file)
        self.inbox.clear()
        self.waiting_bytes = 0
        if self.other is not None:
            self.kernel.changed(self.other)


class Listening(File):
    """A socket that takes connections. `on_refuse`: of the processes that accept from it."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self.address = address
        self.open = True
        self.on_refuse: list[Callable[[], None]] = []


class PidFile(File):
    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    @property
    def readable(self) -> bool:
        return self.process.state in (Life.ZOMBIE, Life.REAPED)


class Socket:
    """A descriptor of the supervisor's, as `Connection`."""

    def __init__(self, kernel: SimKernel, fd: int) -> None:
        self._kernel, self._fd = kernel, fd

    @property
    def end(self) -> End:
        return cast("End", self._kernel.files[self._fd])

    def fileno(self) -> int:
        return self._fd

    def recv(self, most_bytes: int, /) -> bytes:
        return self.end.take(most_bytes)[0]

    def send(self, data: bytes | bytearray, /) -> int:
        return self.end.put(bytes(data))

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd


class Life(Enum):
    RUNNING = "running"
    STOPPED = "stopped"
    ZOMBIE = "zombie"
    REAPED = "reaped"


class Process:
    """One process. `files` are its descriptors, by what they are for it."""

    def __init__(self, kernel: SimKernel, pid: int, parent: Process | None, name: str) -> None:
        self.kernel = kernel
        self.pid, self.session, self.parent, self.name = pid, pid, parent, name
        self.children: list[Process] = []
        self.files: dict[str, File] = {}
        self.state = Life.RUNNING
        self.status: ExitStatus | None = None
        self.dies_with_parent = False
        self.marked = False
        """Has the daemon's mark in its environment."""
        self.unkillable_s = 0.0
        """How long it stays in the kernel before a SIGKILL ends it."""
        self.on_signal: Callable[[signal.Signals], None] | None = None
        """What it does about signals that it catches; None: the default, which ends it."""
        self.on_child_end: Callable[[Process], None] | None = None
        self.on_adopted: Callable[[], None] | None = None
        self.waits_since = 0.0
        """Since when its present parent could have reaped it, once it has ended."""
        self._held: list[Callable[[], None]] = []
        self.to_die = False
        if parent is not None:
            parent.children.append(self)

    def __repr__(self) -> str:
        return f"{self.name}[{self.pid}]"

    @property
    def alive(self) -> bool:
        return self.state in (Life.RUNNING, Life.STOPPED)

    def later(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        """It does this then, unless it has ended; once it goes on, when it is stopped."""

        def due() -> None:
            if not self.alive:
                return
            if self.state is Life.STOPPED:
                self._held.append(due)
            else:
                do(*args)

        self.kernel.loop.call_later(delay_s, due)

    def go_on(self) -> None:
        self.state = Life.RUNNING
        held, self._held = self._held, []
        for due in held:
            self.kernel.loop.call_soon(due)

    def deliver(self, number: signal.Signals) -> None:
        """A signal arrives."""
        if not self.alive:
            return
        self.kernel.trace(f"{self} gets {number.name}")
        match number:
            case signal.SIGKILL:
                if not self.to_die:
                    self.to_die = True
                    self.kernel.loop.call_later(self.unkillable_s, self._killed)
            case signal.SIGSTOP:
                self.state = Life.STOPPED
            case signal.SIGCONT:
                self.go_on()
            case _ if self.state is Life.STOPPED:
                self._held.append(lambda: self._catch(number))
            case _:
                self._catch(number)

    def _catch(self, number: signal.Signals) -> None:
        if self.on_signal is not None:
            self.on_signal(number)
        else:
            self.exit(ExitStatus(None, number.name))

    def _killed(self) -> None:
        self.exit(ExitStatus(None, "SIGKILL"))

    def exit(self, status: ExitStatus) -> None:
        """It ends: its descriptors are closed, its children get another parent, and its parent gets a zombie."""
        if not self.alive:
            return
        kernel = self.kernel
        kernel.trace(f"{self} ends ({status})")
        self.state, self.status, self.waits_since = Life.ZOMBIE, status, kernel.loop.time()
        for file in self.files.values():
            kernel.release(file)
        self.files.clear()
        for child in tuple(self.children):
            kernel.orphaned(child)
        kernel.dirty = True
        parent = self.parent
        if parent is not None and parent.on_child_end is not None and parent.alive:
            parent.on_child_end(self)

    def close(self, what: str) -> None:
        file = self.files.pop(what, None)
        if file is not None:
            self.kernel.release(file)

    def end(self, what: str) -> End:
        return cast("End", self.files[what])


class SimLoop(VirtualLoop):
    """Virtual time, and a selector over the kernel's descriptors: what is ready at once comes in a drawn order, callbacks in their own."""

    def __init__(self, rng: random.Random, quiet: Callable[[], None] | None = None) -> None:
        super().__init__(rng, quiet)
        self.kernel: SimKernel
        self.readers: dict[int, asyncio.Handle] = {}
        self.writers: dict[int, asyncio.Handle] = {}
        self.signal_handlers: dict[int, Callable[[], Any]] = {}
        cast("Any", self)._selector = self

    def select(self, timeout_s: float | None) -> list[asyncio.Handle]:
        ready = self._ready_now()
        if ready or timeout_s == 0:
            return ready
        if timeout_s is None:
            raise AssertionError("nothing is ready and no timer is set: the supervisor waits for ever")
        self.jump(timeout_s)
        return []

    def close(self) -> None:
        if not self.is_closed():
            self._selector = None
            asyncio.BaseEventLoop.close(self)

    def _ready_now(self) -> list[asyncio.Handle]:
        if not self.kernel.dirty:
            return []
        files = self.kernel.files
        ready = [handle for fd, handle in self.readers.items() if fd in files and files[fd].readable]
        ready += [handle for fd, handle in self.writers.items() if fd in files and files[fd].writable]
        self.kernel.dirty = bool(ready)
        self._rng.shuffle(ready)
        return ready

    def _process_events(self, event_list: list[Any]) -> None:
        for handle in event_list:
            if not handle.cancelled():
                self._ready.append(handle)

    def _run_once(self) -> None:
        cast("Any", asyncio.BaseEventLoop)._run_once(self)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        assert fd in self.kernel.files, f"add_reader of {fd}, which is not open"
        self.remove_reader(fd)
        self.readers[fd] = asyncio.Handle(callback, args, self)
        self.kernel.dirty = True

    def remove_reader(self, fd: Any) -> bool:
        handle = self.readers.pop(fd, None)
        if handle is not None:
            handle.cancel()
        return handle is not None

    def add_writer(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self.remove_writer(fd)
        self.writers[fd] = asyncio.Handle(callback, args, self)
        self.kernel.dirty = True

    def remove_writer(self, fd: Any) -> bool:
        handle = self.writers.pop(fd, None)
        if handle is not None:
            handle.cancel()
        return handle is not None

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *args: Any) -> None:
        self.signal_handlers[sig] = lambda: callback(*args)


class SimKernel:
    """`programs` makes a spawned process what it is, by its command line."""

    def __init__(
        self,
        loop: SimLoop,
        rng: random.Random,
        programs: Callable[[Process, Sequence[str]], None],
        trace: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.dirty = True
        self.files: dict[int, File] = {}
        """The supervisor's descriptors."""
        self.processes: dict[int, Process] = {}
        """Everything that isn't reaped."""
        self.scarce = False
        """Neither descriptors nor processes are to be had."""
        self._programs = programs
        self._next_pid = FIRST_PID
        self.supervisor = Process(self, 1, None, "supervisor")
        self._random = random.Random(rng.random())
        loop.kernel = self

    # -- for programs --

    def changed(self, end: End) -> None:
        """There may be something to read or room to write."""
        self.dirty = True
        if end.on_readable is not None and end.open and end.readable:
            end.on_readable()

    def release(self, file: File) -> None:
        file.used -= 1
        if file.used == 0:
            file.last_closed()

    def fork(self, parent: Process, name: str, files: Mapping[str, File]) -> Process:
        """A copy of `parent` that has these files, in its parent's session."""
        process = Process(self, self._free_pid(), parent, name)
        process.session = parent.session
        process.marked = parent.marked
        for file in files.values():
            file.used += 1
        process.files.update(files)
        self.processes[process.pid] = process
        return process

    def orphaned(self, process: Process) -> None:
        """Its parent has ended."""
        parent = self.supervisor
        process.parent, process.waits_since = parent, self.loop.time()
        parent.children.append(process)
        if process.dies_with_parent and process.alive:
            process.deliver(signal.SIGKILL)
        elif process.alive and process.on_adopted is not None:
            process.on_adopted()
        self.dirty = True

    def _free_pid(self) -> int:
        sessions = {process.session for process in self.processes.values()}
        for _ in range(PIDS):
            pid = self._next_pid
            self._next_pid = FIRST_PID + (pid + 1 - FIRST_PID) % PIDS
            if pid not in self.processes and pid not in sessions:
                return pid
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def wait_for(self, process: Process) -> None:
        """Its parent, a simulated process, takes its status."""
        self._reap(process)

    def _reap(self, process: Process) -> ExitStatus:
        assert process.status is not None
        process.state = Life.REAPED
        if process.parent is not None:
            process.parent.children.remove(process)
        self.processes.pop(process.pid, None)
        return process.status

    # -- Kernel: this process --

    def pid(self) -> int:
        return self.supervisor.pid

    def become_subreaper(self) -> None: ...

    def wall_ms(self) -> int:
        return _EPOCH_MS + int(self.loop.time() * 1000)

    def random(self) -> random.Random:
        return random.Random(self._random.random())

    # -- Kernel: other processes --

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
        if self.scarce:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        files = {str(target): self.files[source] for target, source in fds.items()}
        process = self.fork(self.supervisor, "spawned", files)
        process.session = process.pid
        process.marked = True
        self._programs(process, argv)
        self.trace(f"{process} is spawned")
        return process.pid

    def open_pidfd(self, pid: int) -> int:
        process = self.processes.get(pid)
        if process is None:
            raise ProcessLookupError(3, "No such process")
        return self._open(PidFile(process))

    def signal(self, pidfd: int, number: signal.Signals) -> None:
        self._process(pidfd).deliver(number)

    def kill(self, pid: int) -> None:
        process = self.processes.get(pid)
        if process is not None:
            process.deliver(signal.SIGKILL)

    def reap(self, pidfd: int) -> ExitStatus | None:
        process = self._process(pidfd)
        if process.parent is not self.supervisor or process.state is Life.REAPED:
            raise ChildProcessError(10, "No child processes")
        return self._reap(process) if process.state is Life.ZOMBIE else None

    def is_reaped(self, pidfd: int) -> bool:
        return self._process(pidfd).state is Life.REAPED

    def reap_orphans(self, ours: set[int]) -> int:
        reaped = 0
        while True:
            ended = next((child for child in self.supervisor.children if child.state is Life.ZOMBIE), None)
            if ended is None or ended.pid in ours:
                return reaped
            self.trace(f"{ended} is reaped as an orphan")
            self._reap(ended)
            reaped += 1

    def kill_session(self, session: int) -> int:
        if self.scarce:
            raise OSError(24, "Too many open files")
        members = [process for process in self.processes.values() if process.session == session and process.alive]
        for process in members:
            process.deliver(signal.SIGKILL)
        return len(members)

    def end_leftovers(self, daemon_id: str) -> int:
        del daemon_id
        marked = [process for process in self.processes.values() if process.marked and process.alive]
        for process in marked:
            process.exit(ExitStatus(None, "SIGKILL"))
        return len(marked)

    def catches(self, pid: int, number: signal.Signals) -> bool:
        return pid in self.processes

    def rss_bytes(self, pid: int) -> int:
        return 50 << 20 if pid in self.processes else 0

    def oom_kills(self) -> int | None:
        return 0

    # -- Kernel: descriptors --

    def stream_pair(self) -> tuple[int, int]:
        return self._pair(packets=False)

    def packet_pair(self) -> tuple[int, int]:
        return self._pair(packets=True)

    def pipe(self) -> tuple[int, int]:
        return self._pair(packets=False)

    def null(self) -> int:
        return self._open(End(self, packets=False))

    def connection(self, fd: int) -> Connection:
        return Socket(self, fd)

    def send_with_fds(self, connection: Connection, data: bytes, fds: Sequence[int]) -> None:
        cast("Socket", connection).end.put(data, [self.files[fd] for fd in fds])

    def read(self, fd: int, most_bytes: int) -> bytes:
        return cast("End", self.files[fd]).take(most_bytes)[0]

    def close(self, fd: int) -> None:
        assert fd in self.files, f"close of {fd}, which is not open"
        assert fd not in self.loop.readers, f"close of {fd}, which the loop reads"
        self.release(self.files.pop(fd))

    def listen(self, what: str, address: Address) -> int:
        if self.scarce:
            raise ListenError(f"{what}: {address} can't be listened on: Too many open files")
        return self._open(Listening(address))

    def listens_at(self, fd: int) -> Address:
        return self._listening(fd).address

    def refuse(self, fd: int) -> None:
        socket = self._listening(fd)
        self.trace(f"{socket.address} refuses")
        socket.open = False
        for on_refuse in socket.on_refuse:
            on_refuse()

    def listen_again(self, fd: int) -> None:
        self.trace(f"{self._listening(fd).address} listens again")
        self._listening(fd).open = True

    def refuses(self, fd: int) -> bool:
        return not self._listening(fd).open

    def remove(self, path: str) -> None: ...

    def _listening(self, fd: int) -> Listening:
        return cast("Listening", self.files[fd])

    def memory(self, name: str, size_bytes: int, begins_with: bytes = b"") -> int:
        del name
        return self._open(MemoryFile(size_bytes, begins_with))

    def map(self, fd: int, size_bytes: int) -> Memory:
        memory = cast("MemoryFile", self.files[fd]).memory
        assert len(memory) == size_bytes
        return memory

    def read_from(self, fd: int, start: int, cap_bytes: int) -> tuple[bytes, int]:
        memory = cast("MemoryFile", self.files[fd]).memory
        return bytes(memory[max(start, len(memory) - cap_bytes) :]), len(memory)

    def store_id(self, state_dir: Path, daemon_id: str) -> None: ...

    def _pair(self, *, packets: bool) -> tuple[int, int]:
        if self.scarce:
            raise OSError(24, "Too many open files")
        one, two = End(self, packets=packets), End(self, packets=packets)
        one.other, two.other = two, one
        return self._open(one), self._open(two)

    def _open(self, file: File) -> int:
        fd = _FIRST_FD
        while fd in self.files:
            fd += 1
        file.used += 1
        self.files[fd] = file
        return fd

    def _process(self, pidfd: int) -> Process:
        return cast("PidFile", self.files[pidfd]).process
