"""A blocking client of the control socket, for the CLI and for scripts. No asyncio, no Redis: it starts in a few milliseconds."""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

from upnext.control import protocol
from upnext.control.protocol import ErrorCode, ErrorResponse, FrameDecoder, Message, Notification, Request, Response
from upnext.errors import ControlError, DaemonGoneError, DaemonNotRunningError

_CHUNK_BYTES = 1 << 16
_UCRED = struct.Struct("3i")
BUSY_S = 5.0
"""For so long a daemon whose places are all taken is tried again."""
_BUSY_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Ended:
    """How an operation ended. `raw` is the answer as it came."""

    ok: bool
    text: str
    data: Any
    raw: dict[str, Any]


class ControlClient:
    """One connection to a daemon. Not thread-safe.

    `timeout_s` is how long the daemon may take to answer one request; operations that take longer are followed by `wait`.
    `servers` are uids whose processes may serve there besides this user's and root's; None: anybody's.
    Raises DaemonNotRunningError when no daemon listens, ControlError when the daemon refuses us, is busy for BUSY_S, speaks another
    protocol, or is another user's, TimeoutError when it doesn't answer.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout_s: float = 10.0, servers: Collection[int] | None = ()
    ) -> None:
        self.path = os.fspath(path)
        self.servers = servers
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        busy_until = time.monotonic() + BUSY_S
        while True:
            try:
                self._connect()
                break
            except ControlError as error:
                if error.code != ErrorCode.TOO_MANY_CLIENTS:
                    raise
                if time.monotonic() >= busy_until:
                    raise ControlError(f"the daemon on {self.path} is busy: {error}", error.code) from None
            time.sleep(_BUSY_PAUSE_S)
        if self.hello.get("protocol") != protocol.PROTOCOL:
            self._socket.close()
            raise ControlError(
                f"the daemon speaks control protocol {self.hello.get('protocol')}, this client {protocol.PROTOCOL}:"
                " use the `upnext` of the daemon's own installation",
                ErrorCode.FAILED,
            )

    def _connect(self) -> None:
        self._decoder = FrameDecoder()
        self._inbox: deque[Message] = deque()
        self._events: deque[Notification] = deque()
        self._socket = _connect(self.path, self._timeout_s)
        try:
            _check_server(self._socket, self.path, self.servers)
            self.hello = self.call("hello")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, *, timeout_s: float | None = None, **params: Any) -> dict[str, Any]:
        """One request, its answer. Notifications that arrive meanwhile are kept for `events`.

        Raises ControlError, DaemonGoneError, TimeoutError.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        request_id = self._send(method, params)
        for message in self._messages(
            time.monotonic() + limit_s, lambda: f"{method}: no answer from the daemon within {limit_s:g} s"
        ):
            if isinstance(message, Notification):
                self._events.append(message)
                continue
            answer = self._answer(message, request_id)
            if answer is not None:
                return answer
        raise AssertionError("unreachable: messages never end without raising")

    def wait(
        self, op_id: str, *, timeout_s: float | None = None, on_progress: Callable[[str], None] | None = None
    ) -> Ended:
        """Follow one operation to its end, calling `on_progress` with each line about it but the last, which is in the answer.

        Raises TimeoutError after `timeout_s` (None: never; the operation goes on, and the error says how far it was), DaemonGoneError,
        ControlError.
        """
        request_id = self._send("wait", {"op_id": op_id})
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        latest = ""

        def late() -> str:
            return f"not done within {timeout_s:g} s, it goes on in the daemon" + (f": {latest}" if latest else "")

        for message in self._messages(deadline, late):
            if isinstance(message, Notification):
                if message.method != "progress":
                    self._events.append(message)
                elif message.params.get("op_id") == op_id and not message.params.get("done"):
                    latest = str(message.params.get("text", ""))
                    if on_progress is not None:
                        on_progress(latest)
                continue
            answer = self._answer(message, request_id)
            if answer is not None:
                return Ended(bool(answer.get("ok")), str(answer.get("text", "")), answer.get("data"), answer)
        raise AssertionError("unreachable: messages never end without raising")

    def events(self) -> Iterator[dict[str, Any]]:
        """Subscribe and yield every event's params until the daemon ends. Returns when it hung up."""
        self.call("subscribe")
        try:
            while True:
                while self._events:
                    notification = self._events.popleft()
                    if notification.method == "event":
                        yield notification.params
                message = next(self._messages())
                if isinstance(message, Notification):
                    self._events.append(message)
        except DaemonGoneError:
            return

    def wait_gone(self, timeout_s: float | None = None) -> None:
        """Returns once the daemon's process has ended (where pids are hidden: once it hung up). Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with _ProcessEnd(self._socket) as ended:
            while True:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise TimeoutError(f"the daemon is still there after {timeout_s} s")
                if ended.poll(left_s):
                    return
                if self._drained():
                    ended.hung_up()

    # -- plumbing --

    def _drained(self) -> bool:
        """Throw away what came; True when the daemon hung up."""
        self._socket.settimeout(0)
        try:
            return not self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send(self, method: str, params: dict[str, Any]) -> int:
        request_id = next(self._ids)
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(protocol.encode(Request(request_id, method, params)))
        except TimeoutError:
            raise TimeoutError(f"{method}: the daemon does not read its control socket") from None
        except (BrokenPipeError, ConnectionResetError):
            # It hung up, maybe with a reason (too many clients): the reason is still to be read.
            pass
        return request_id

    def _messages(self, deadline: float | None = None, late: Callable[[], str] = str) -> Iterator[Message]:
        while True:
            while self._inbox:
                yield self._inbox.popleft()
            self._receive(deadline, late)

    def _receive(self, deadline: float | None, late: Callable[[], str]) -> None:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError(late())
        self._socket.settimeout(left_s)
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except TimeoutError:
            raise TimeoutError(late()) from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise DaemonGoneError(f"the daemon closed the connection ({self.path})")
        for frame in self._decoder.feed(data):
            try:
                self._inbox.append(protocol.decode(frame))
            except protocol.ProtocolError as error:
                raise ControlError(f"what listens on {self.path} is not upnextd: {error.message}", error.code) from None
        if self._decoder.overflowed:
            raise ControlError(f"what listens on {self.path} sent a line over the cap", ErrorCode.FRAME_TOO_LARGE)

    @staticmethod
    def _answer(message: Message, request_id: int) -> dict[str, Any] | None:
        """The result, if `message` is the answer to `request_id`; None for answers to abandoned requests. Raises ControlError."""
        if isinstance(message, Response) and message.id == request_id:
            return message.result
        # An error without an id speaks about the connection itself: too many clients, forbidden.
        if isinstance(message, ErrorResponse) and message.id in (request_id, None):
            raise ControlError(message.message, message.code, message.data)
        return None


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise DaemonNotRunningError(f"no upnextd is running on {path}") from None
    except BlockingIOError:
        connection.close()
        raise ControlError("so many wait to be let in that no more can", ErrorCode.TOO_MANY_CLIENTS) from None
    except PermissionError:
        connection.close()
        raise ControlError(
            f"no permission for {path}: it belongs to another user's daemon", ErrorCode.FORBIDDEN
        ) from None
    except OSError as error:
        connection.close()
        if "too long" in str(error):
            raise DaemonNotRunningError(f"{path} is too long for a Unix socket") from None
        raise DaemonNotRunningError(f"can't connect to {path}: {error.strerror or error}") from None
    return connection


def _check_server(connection: socket.socket, path: str, servers: Collection[int] | None) -> None:
    """Called before anything is sent: another user may have made a folder of our name in the temporary directory. Raises ControlError."""
    if servers is None or not hasattr(socket, "SO_PEERCRED"):
        return
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in {os.geteuid(), 0, *servers}:
        raise ControlError(
            f"what listens on {path} is a process of uid {uid}, not of this user: give that path with --socket if it is meant",
            ErrorCode.FORBIDDEN,
        )


class _ProcessEnd:
    """Watches the end of the peer's process by pidfd, beside the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: socket.socket | None = connection
        self._pidfd: int | None = None
        if hasattr(socket, "SO_PEERCRED") and hasattr(os, "pidfd_open"):
            pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            try:
                self._pidfd = os.pidfd_open(pid) if pid > 0 else None
            except OSError:
                # Gone already, or in another pid namespace: the hang-up has to do.
                self._pidfd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)

    def hung_up(self) -> None:
        self._connection = None

    def poll(self, timeout_s: float | None) -> bool:
        """Wait for news. True: the process is gone; False: the connection has something to read, or time is up."""
        if self._pidfd is None and self._connection is None:
            return True
        watched = [fd for fd in (self._pidfd, self._connection) if fd is not None]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        return self._pidfd is not None and self._pidfd in ready
