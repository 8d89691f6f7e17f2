"""One connection to the broker: requests are written in order, replies matched in order, many may be in flight.

All that one turn of the loop sends leaves in one write. RESP is encoded and decoded by hiredis. Reconnecting is `link`'s business:
a Wire that broke stays broken. RESP2 is described at https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from upnext.engine.contexts import none_of_a_job
from upnext.engine.redis.endpoint import Endpoint
from upnext.engine.redis.replies import (
    LostReplyError,
    NoScriptError,
    ReplyError,
    WrongServerError,
    not_redis,
    read_error,
    refused,
)
from upnext.engine.redis.scripts import Arg, Call, T
from upnext.errors import BrokerUnavailableError, QueueError

pack_command = cast("Callable[[tuple[Arg, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


REPLY_TIMEOUT_S = 10.0
"""A connection that owes replies and is silent for so long is given up (a server that hangs, a path that swallows packets)."""

CHECK_S = 0.5
"""Whether replies are owed for long is looked at so often."""
DOUBTED_AFTER = 2
"""When at so many looks in a row the same reply was owed and nothing came, nothing more is sent until something comes."""

GOODBYE_S = 0.5

WRITE_HIGH_WATER_BYTES = 4 * 1024 * 1024
"""Above this many unsent bytes `run` waits before it sends more."""


def form(*command: Arg) -> bytes:
    """A command's encoded form with a place for one more word: `form(...) % (len(word), word)`. For what is the same every time."""
    return pack_command((*command, b"")).replace(b"%", b"%%").removesuffix(b"$0\r\n\r\n") + b"$%d\r\n%b\r\n"


class Wire(asyncio.Protocol):
    """Made by `connect`. `on_push` gets what arrives while no reply is awaited (a subscription's deliveries)."""

    def __init__(self, on_push: Callable[[Any], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=read_error, protocolError=QueueError)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._flushing = False
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Event | None = None
        self._on_push = on_push
        self._received_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._excused: asyncio.Future[Any] | None = None
        """The oldest reply that was owed when the loop had been kept: it is waited for once more."""
        self.foreign = False
        """It doesn't speak the broker's protocol."""
        self.closed = self._loop.create_future()
        """Done when the connection is gone; its result is the reason."""
        self.client_id: int = 0
        self.patient = False
        """A reply may take its time (a waiting read): it is never in doubt."""
        self.usable = True
        """Open, to the right server as far as is known, and not in doubt."""
        self.doubt: asyncio.Future[None] | None = None
        """There while the server owes replies for long; done when something comes, or the connection is gone."""
        self._head: asyncio.Future[Any] | None = None
        self._same_head = 0
        self.retired = False
        """Whether `retire` ended it."""
        self.wrong: WrongServerError | None = None
        """Whether a reply sent its client to other nodes: what it owes still comes, nothing more is to be sent."""

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._received_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        self._received_at = self._loop.time()
        self._head = None
        if self.doubt is not None:
            self._believe()
        reader.feed(data)
        waiting = self._waiting
        try:
            while (reply := reader.gets()) is not False:
                if self._on_push is not None and (not waiting or _is_delivery(reply)):
                    self._on_push(reply)
                    continue
                future = waiting.popleft()
                if future.done():  # its caller gave up waiting; the reply is still consumed in its turn
                    continue
                if isinstance(reply, QueueError):
                    if isinstance(reply, WrongServerError):
                        self.wrong, self.usable = reply, False
                    future.set_exception(reply)
                    future.exception()  # its caller may be gone: don't report it as never retrieved
                else:
                    future.set_result(reply)
        except (QueueError, IndexError) as error:
            self.foreign = True
            self._broken(f"protocol error: {error}")
            self.abort()
        if self.wrong is not None and not waiting:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(str(exc) if exc else "closed by the broker")

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # --- requests

    def send(self, *command: Arg) -> asyncio.Future[Any]:
        """Queues one command for the write at the end of this turn; the Future is its reply.

        Raises BrokerUnavailableError when the connection is already gone: nothing was sent.
        """
        return self.send_packed(pack_command(command))

    def send_packed(self, request: bytes) -> asyncio.Future[Any]:
        """`send` of a command in its encoded form."""
        self._post(request)
        return self._owed()

    def _owed(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        if self._watchdog is None:
            self._received_at = self._loop.time()
            self._watchdog = self._loop.call_later(self._check_s(), self._check, context=none_of_a_job())
        return future

    def _check(self) -> None:
        now_s = self._loop.time()
        late_s = 0.0 if self._watchdog is None else now_s - self._watchdog.when()
        self._watchdog = None
        if not self._waiting or self.closed.done():
            self._excused = None
            return
        overdue = now_s - self._received_at > REPLY_TIMEOUT_S
        if overdue and late_s > CHECK_S and self._excused is not self._waiting[0]:
            # Code of the user kept the loop: what was asked after that has had no time, and what came meanwhile may not be read yet.
            self._excused, self._received_at = self._waiting[0], now_s
        elif overdue:
            reason = f"no reply within {REPLY_TIMEOUT_S:g} s"
            self.wrong = WrongServerError(reason)
            self._broken(reason)
            self.abort()
            return
        head = self._waiting[0]
        self._same_head = self._same_head + 1 if head is self._head else 0
        self._head = head
        if self._same_head >= DOUBTED_AFTER and self.doubt is None and not self.patient:
            self.doubt, self.usable = self._loop.create_future(), False
        self._watchdog = self._loop.call_later(self._check_s(), self._check)

    def _check_s(self) -> float:
        return REPLY_TIMEOUT_S / 2 if self.patient else min(CHECK_S, REPLY_TIMEOUT_S / 2)

    def _believe(self) -> None:
        """The doubt is over, one way or the other."""
        doubt, self.doubt = self.doubt, None
        if doubt is not None:
            doubt.set_result(None)
        self.usable = self.wrong is None and not self.closed.done()

    def retire(self, reason: WrongServerError, within_s: float) -> None:
        """The server is not the one to use any more: what it owes may still come for so long, then the connection is cut."""
        if self.closed.done():
            return
        self.wrong, self.usable, self.retired = reason, False, True
        self._believe()
        if self._waiting:
            self._loop.call_later(within_s, self.abort)
        else:
            self.close()

    def post(self, *command: Arg) -> None:
        """Send a command that has no reply of its own (SUBSCRIBE on a connection with `on_push`)."""
        self._post(pack_command(command))

    def _post(self, request: bytes) -> None:
        if self.closed.done():
            raise BrokerUnavailableError(f"not connected: {self.closed.result()}")
        self._out.append(request)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def start(self, call: Call[Any]) -> asyncio.Future[Any]:
        """Send a call at once, without waiting; the Future's raw reply still has to pass `call.parse`, and may be NoScriptError."""
        if self.closed.done():
            raise BrokerUnavailableError(f"not connected: {self.closed.result()}")
        self._out.append(pack_command(call.evalsha()))
        reply = self._owed()
        self.flush()
        return reply

    async def run(self, call: Call[T]) -> T:
        """Run a script. Raises LostReplyError when the connection breaks in between, and what the script raises."""
        if self._writable is not None:
            await self._writable.wait()
        try:
            reply = await self.send(*call.evalsha())
        except NoScriptError:
            reply = await self.send(*call.eval())
        return call.parse(reply)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Send what is queued, then close."""
        if self._transport is not None and not self.closed.done():
            self.flush()
            self._transport.close()

    async def aclose(self) -> None:
        """Close, and return when the connection is gone (TLS says goodbye first)."""
        self.close()
        await asyncio.wait([self.closed], timeout=GOODBYE_S)
        if not self.closed.done():
            self.abort()
            await asyncio.wait([self.closed], timeout=GOODBYE_S)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Write what is queued now, not at the end of this turn."""
        if self._out and self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
        self._out.clear()

    def _broken(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._believe()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self.resume_writing()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(LostReplyError(f"connection to the broker lost: {reason}"))
                future.exception()  # its caller may be gone: don't report it as never retrieved


_DELIVERIES = (b"smessage", b"ssubscribe", b"sunsubscribe", b"message", b"subscribe", b"unsubscribe")


def _is_delivery(reply: Any) -> bool:
    return type(reply) is list and len(cast("Any", reply)) > 0 and cast("Any", reply)[0] in _DELIVERIES


async def connect(
    endpoint: Endpoint, *, name: str, timeout_s: float, on_push: Callable[[Any], None] | None = None
) -> Wire:
    """Connects and introduces itself: AUTH, SELECT, CLIENT SETNAME. Raises BrokerUnavailableError or BrokerRefusedError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _connect(endpoint, name, on_push)
    except TimeoutError:
        raise BrokerUnavailableError(f"Redis at {endpoint.describe()} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise BrokerUnavailableError(f"can't reach Redis at {endpoint.describe()}: {error.strerror or error}") from None


async def _connect(endpoint: Endpoint, name: str, on_push: Callable[[Any], None] | None) -> Wire:
    wire = Wire(on_push)
    loop = asyncio.get_running_loop()
    replies: list[asyncio.Future[Any]] = []
    if endpoint.path is not None:
        await loop.create_unix_connection(lambda: wire, endpoint.path)
    else:
        host, port = endpoint.nodes[0]
        context = endpoint.tls_context()
        transport, _ = await loop.create_connection(
            lambda: wire, host, port, ssl=context, server_hostname=host if context else None
        )
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    try:
        if endpoint.password:
            replies.append(wire.send("AUTH", *([endpoint.username] if endpoint.username else []), endpoint.password))
        if endpoint.db and not endpoint.cluster:
            replies.append(wire.send("SELECT", endpoint.db))
        replies.append(wire.send("CLIENT", "SETNAME", name))
        replies.append(wire.send("CLIENT", "ID"))
        for reply in replies:
            wire.client_id = await reply
    except BaseException as error:
        for reply in replies:
            reply.cancel()  # the others' errors would say the same
        wire.abort()
        if wire.foreign:
            raise not_redis(endpoint.describe(), wire.closed.result()) from None
        if isinstance(error, ReplyError):
            raise refused(error) from None
        raise
    return wire
