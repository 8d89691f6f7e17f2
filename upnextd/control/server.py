"""The control socket's server: born 0600, same user or root only, 16 clients, 1 MiB a frame; who doesn't read is dropped.

Each client's requests are taken in their order, a few a turn of the loop, so that one that sends thousands at once delays no
other. Where all places are taken, a newcomer gets that of the client that was silent for longest; some places are never held for long.

The protocol itself is `upnext.control.protocol`; what the methods do is `upnextd.control.commands`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from upnext.control import protocol
from upnext.control.protocol import ErrorCode, ErrorResponse, Message, Notification, ProtocolError, Request, Response
from upnext.errors import UsageError

_UCRED = struct.Struct("3i")
_UNREAD_CAP_BYTES = 4 << 20
_UNFINISHED_S = 5.0
_TURN_S = 0.002
"""A client's requests are answered for so long in one turn of the loop."""
_MOST_FRAMES = 64
"""With so many of its requests untaken, nothing more is read from a client."""
_MOST_OPEN = 64
"""With so many of its requests unanswered, a client's next ones are not taken."""
LONG_CAP = protocol.CLIENT_CAP - 4
"""So many clients may follow events or wait for an operation: a short question always finds a place."""
_LONG = frozenset({"subscribe", "wait"})
IDLE_S = 5.0
"""A client that has been silent for so long, waits for nothing and follows nothing gives its place up to a newcomer."""
_LOOK_S = 2.0
_NO_DESCRIPTOR_S = 1.0
_SPARE = 4
"""So many descriptors are kept for clients: where children take all others, an operator can still ask for fewer of them."""


class SocketInUseError(Exception):
    """Another process listens on the path already."""


class CommandError(Exception):
    """A request that can't be done: what to answer."""

    def __init__(self, code: ErrorCode, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Commands(Protocol):
    """Does what requests ask. Raises CommandError."""

    def answer(
        self, request: Request, params: dict[str, Any], client: Client
    ) -> dict[str, Any] | Awaitable[dict[str, Any]]: ...
    def client_left(self, client: Client) -> None: ...
    def subscribe(self, client: Client) -> None: ...
    def subscribed(self, client: Client) -> bool: ...


class Spare:
    """Descriptors that are held open in order to be given up when no other is free."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._fds: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Hold as many as there should be, or as can be had."""
        while len(self._fds) < self._most:
            try:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return

    def give_up_one(self) -> bool:
        """Whether there was one: the next that is opened gets it."""
        if not self._fds:
            return False
        os.close(self._fds.pop())
        return True

    def close(self) -> None:
        """Hold none from now on."""
        self._most = 0
        while self.give_up_one():
            pass


class ControlServer:
    """Listens on one path for the life of the daemon."""

    def __init__(self, path: Path, commands: Commands, make_folder: Callable[[], object] = lambda: None) -> None:
        """`make_folder` makes the folder of `path`, should it have been removed; raises OSError, UsageError."""
        self._path = path
        self._make_folder = make_folder
        self._commands = commands
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._inode = 0
        self._arriving: set[asyncio.Task[Any]] = set()
        self._spare = Spare(_SPARE)
        self.clients: set[Client] = set()

    async def start(self, inherited: Mapping[str, Any] | None = None) -> None:
        """Listens on the path, or goes on with what `to_state` wrote. Raises SocketInUseError, OSError."""
        listener = bind(self._path) if inherited is None else socket.socket(fileno=inherited["listener"])
        for state in () if inherited is None else inherited["clients"]:
            client = await self._welcome(socket.socket(fileno=state["fd"]))
            client.from_state(state)
        self._take_up(listener)
        self._keeper = self._loop.create_task(self._keep())

    def _take_up(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        try:
            self._inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            self._inode = 0
        self._listen()

    def _listen(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _give_up(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = self._accepted(listener)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor is free for it; until one is, it would be tried in every turn of the loop.
            self._loop.call_exception_handler({"message": "can't accept a control connection", "exception": error})
            self._loop.remove_reader(listener)
            self._loop.call_later(_NO_DESCRIPTOR_S, self._listen)
            return
        arriving = self._loop.create_task(self._welcome(connection))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)

    def _accepted(self, listener: socket.socket) -> socket.socket:
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._spare.give_up_one():
                raise
            return listener.accept()[0]

    def left(self, client: Client) -> None:
        """Forget a client; its descriptor is free in the loop's next turn."""
        self.clients.discard(client)
        self._loop.call_soon(self._spare.refill)

    async def _welcome(self, connection: socket.socket) -> Client:
        _, client = await self._loop.connect_accepted_socket(lambda: Client(self, self._commands), connection)
        return client

    def has_room(self) -> bool:
        """Whether one more may come; the client that was idle for longest has gone for it, if need be."""
        if len(self.clients) < protocol.CLIENT_CAP:
            return True
        longest = max(self.clients, key=lambda client: client.idle_s())
        if longest.idle_s() < IDLE_S:
            return False
        longest.hang_up()
        self.clients.discard(longest)
        return True

    def has_long_room(self, asking: Client) -> bool:
        """Whether one more may hold its place for as long as it likes."""
        return sum(client is not asking and client.stays for client in self.clients) < LONG_CAP

    @property
    def settled(self) -> bool:
        """No client is on the way in, and none waits for an answer."""
        return not self._arriving and not any(client.waits for client in self.clients)

    def to_state(self, fds: list[int]) -> dict[str, Any]:
        """As JSON; `fds` gets the descriptors. Clients that have not read what was sent to them are not kept."""
        clients = [state for client in self.clients if (state := client.to_state()) is not None]
        assert self._listener is not None
        listener = self._listener.fileno()
        fds += [listener, *(state["fd"] for state in clients)]
        return {"listener": listener, "clients": clients}

    async def _keep(self) -> None:
        """Bind the path again if it was removed: without it no client could reach the daemon any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._spare.refill()
            if _is_there(self._path):
                continue
            try:
                self._make_folder()
                listener = bind(self._path)
            except (OSError, SocketInUseError, UsageError):
                # Its folder can't be made, or no descriptor is free: later, maybe.
                continue
            self._give_up()
            self._take_up(listener)

    async def close(self) -> None:
        """Stop listening, hang up; the path is removed when it is still ours."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._give_up()
        for arriving in tuple(self._arriving):
            arriving.cancel()
        for client in tuple(self.clients):
            client.hang_up()
        self._spare.close()
        try:
            if os.stat(self._path).st_ino == self._inode:
                self._path.unlink()
        except OSError:
            return


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: ControlServer, commands: Commands) -> None:
        self._server = server
        self._commands = commands
        self._decoder = protocol.FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._impatience: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._long_tasks = 0
        self._frames: deque[bytes] = deque()
        self._turn: asyncio.Handle | None = None
        self._received_at = time.monotonic()

    def idle_s(self) -> float:
        """How long it has been silent; 0 while it waits for something or follows events."""
        if self._tasks or self._frames or self._commands.subscribed(self):
            return 0.0
        return time.monotonic() - self._received_at

    @property
    def stays(self) -> bool:
        """Whether it follows events or waits for an operation."""
        return self._long_tasks > 0 or self._commands.subscribed(self)

    @property
    def waits(self) -> bool:
        """A request of it is still to be answered."""
        return bool(self._tasks)

    def to_state(self) -> dict[str, Any] | None:
        """As JSON; None when something for it is still unsent."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return None
        return {
            "fd": transport.get_extra_info("socket").fileno(),
            "unfinished": b"\n".join([*self._frames, self._decoder.unfinished]).decode("latin-1"),
            "subscribed": self._commands.subscribed(self),
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Go on as `to_state` wrote."""
        if state["subscribed"]:
            self._commands.subscribe(self)
        if state["unfinished"]:
            self.data_received(state["unfinished"].encode("latin-1"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transports are of asyncio's class.
        self._transport = connected = cast("asyncio.Transport", transport)
        refusal = self._refusal(connected)
        if refusal is not None:
            self.send(refusal)
            connected.close()
            self._transport = None
            return
        self._server.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it by this name
        self._transport = None
        self._server.left(self)
        if self._impatience is not None:
            self._impatience.cancel()
        if self._turn is not None:
            self._turn.cancel()
        self._frames.clear()
        for task in self._tasks:
            task.cancel()
        self._commands.client_left(self)

    def data_received(self, data: bytes) -> None:
        self._received_at = time.monotonic()
        self._frames += self._decoder.feed(data)
        if self._turn is None:
            self._take_some()

    def _take_some(self) -> None:
        """As many of its requests as one turn of the loop is for; the rest in the next."""
        self._turn = None
        until = time.monotonic() + _TURN_S
        while self._frames and len(self._tasks) < _MOST_OPEN and time.monotonic() < until:
            self._take(self._frames.popleft())
        if self._transport is None or self._transport.is_closing():
            self._frames.clear()
            return
        self._watch_unfinished()
        if len(self._frames) >= _MOST_FRAMES or len(self._tasks) >= _MOST_OPEN:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._frames:
            if len(self._tasks) < _MOST_OPEN:
                self._turn = asyncio.get_running_loop().call_soon(self._take_some)
        elif self._decoder.overflowed:
            self.send(ErrorResponse(None, ErrorCode.FRAME_TOO_LARGE, f"a line over {protocol.FRAME_CAP_BYTES} bytes"))
            self.hang_up()

    def _long_answered(self, task: asyncio.Task[None]) -> None:
        self._long_tasks -= 1
        self._answered(task)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._transport is not None and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_some)

    def send(self, message: Message) -> None:
        """Queue a message; a client with 4 MiB unread is dropped."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._transport.write(protocol.encode(message))
        except ProtocolError as error:
            self._transport.write(protocol.encode(error.response()))
        if self._transport.get_write_buffer_size() > _UNREAD_CAP_BYTES:
            self._transport.abort()

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _take(self, frame: bytes) -> None:
        try:
            message = protocol.decode(frame)
            if isinstance(message, Notification):
                return
            if not isinstance(message, Request):
                raise ProtocolError(ErrorCode.INVALID_REQUEST, "an answer to no request")
            params = protocol.bind(message)
        except ProtocolError as error:
            self.send(error.response())
            return
        is_long = message.method in _LONG
        if is_long and not self._server.has_long_room(self):
            text = f"{LONG_CAP} clients follow events or wait for operations already: end one of them"
            self.send(ErrorResponse(message.id, ErrorCode.CONFLICT, text))
            return
        try:
            result = self._commands.answer(message, params, self)
        except CommandError as error:
            self.send(ErrorResponse(message.id, error.code, str(error), error.data))
            return
        if isinstance(result, dict):
            self.send(Response(message.id, result))
        else:
            task = asyncio.get_running_loop().create_task(self._answer_later(message, result))
            self._tasks.add(task)
            self._long_tasks += is_long
            task.add_done_callback(self._long_answered if is_long else self._answered)

    async def _answer_later(self, request: Request, result: Awaitable[dict[str, Any]]) -> None:
        try:
            self.send(Response(request.id, await result))
        except CommandError as error:
            self.send(ErrorResponse(request.id, error.code, str(error), error.data))

    def _refusal(self, transport: asyncio.Transport) -> ErrorResponse | None:
        connection = transport.get_extra_info("socket")
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            return ErrorResponse(None, ErrorCode.FORBIDDEN, "this daemon belongs to another user")
        if not self._server.has_room():
            return ErrorResponse(
                None, ErrorCode.TOO_MANY_CLIENTS, f"{protocol.CLIENT_CAP} clients are connected already"
            )
        return None

    def _watch_unfinished(self) -> None:
        """A client that starts a line must end it within 5 s, counted while the server reads."""
        unfinished = self._decoder.pending_bytes > 0 and not self._frames
        if unfinished and self._impatience is None:
            self._impatience = asyncio.get_running_loop().call_later(_UNFINISHED_S, self.hang_up)
        elif not unfinished and self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


def bind(path: Path) -> socket.socket:
    """A listening socket whose inode is 0600 from birth. A dead one in the way is removed: call this under the daemon's lock only.

    Raises SocketInUseError, OSError.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(protocol.CLIENT_CAP)
    except OSError:
        listener.close()
        raise
    return listener


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _clear(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUseError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise SocketInUseError(f"something listens on {path} ({error.strerror or error})") from None
    raise SocketInUseError(f"another daemon listens on {path}")
