"""A scripted daemon for tests of the client: one thread, real socket, answers by its script."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from upnext.control import protocol
from upnext.control.protocol import FrameDecoder, Message, Request, Response

Answer = Callable[[Request], list[Message | bytes]]

HELLO = {"protocol": protocol.PROTOCOL, "version": "0.1.0", "name": "orders", "pid": 1}


class FakeDaemon:
    """Answers `hello` by itself; `answer` gets every other request and returns what to send. An empty bytes object hangs up."""

    def __init__(self, path: Path, answer: Answer, hello: dict[str, Any] | None = None) -> None:
        self.path = path
        self.requests: list[Request] = []
        self._answer = answer
        self._hello = HELLO if hello is None else hello
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # A close alone doesn't wake an accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        decoder = FrameDecoder()
        while data := connection.recv(65536):
            for frame in decoder.feed(data):
                request = protocol.decode(frame)
                assert isinstance(request, Request)
                self.requests.append(request)
                if request.method == "hello":
                    connection.sendall(protocol.encode(Response(request.id, self._hello)))
                    continue
                for part in self._answer(request):
                    if part == b"":
                        return
                    connection.sendall(part if isinstance(part, bytes) else protocol.encode(part))
