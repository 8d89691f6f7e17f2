"""The line between the supervisor and a child: one message a line over a socket pair, never blocking either side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from upnextd.shared import messages
from upnextd.shared.kernel import Connection
from upnextd.shared.messages import Message, MessageError

_CHUNK_BYTES = 1 << 16
_LINE_CAP_BYTES = 16 << 20
_BACKLOG_CAP_BYTES = 32 << 20


class Channel:
    """One end, of a connection that doesn't block.

    `on_message` gets each message, `on_closed` is called once when the other end is gone or speaks nonsense.
    """

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._socket = connection
        self._loop = loop
        self._on_message = on_message
        self._on_closed = on_closed
        self.unread = bytearray()
        """What has arrived of a line that isn't whole yet."""
        self._outgoing = bytearray()
        self.closed = False
        loop.add_reader(connection.fileno(), self.pump)

    @property
    def unsent(self) -> bool:
        """Something is still to be written."""
        return bool(self._outgoing)

    def send(self, message: Message) -> None:
        """Queue one message. After the end, nothing happens."""
        if self.closed:
            return
        empty = not self._outgoing
        self._outgoing += messages.encode(message) + b"\n"
        if empty:
            self._flush()
        if len(self._outgoing) > _BACKLOG_CAP_BYTES:
            self._end()

    def pump(self) -> None:
        """Take in whatever has arrived."""
        while not self.closed:
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            self.unread += data
            self._deliver()

    def close(self) -> None:
        """Close this end without a word to our own side."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def _deliver(self) -> None:
        while (end := self.unread.find(b"\n")) >= 0:
            line = bytes(self.unread[:end])
            del self.unread[: end + 1]
            try:
                message = messages.decode(line)
            except MessageError:
                self._end()
                return
            self._on_message(message)
            if self.closed:
                return
        if len(self.unread) > _LINE_CAP_BYTES:
            self._end()

    def _flush(self) -> None:
        while self._outgoing:
            try:
                sent = self._socket.send(self._outgoing)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                # The reader side reports the end, after what is still to be read.
                self._outgoing.clear()
                break
            del self._outgoing[:sent]
        self._loop.remove_writer(self._socket.fileno())

    def _end(self) -> None:
        self.close()
        self._on_closed()
