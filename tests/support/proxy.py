"""A TCP path between a client and a broker, with the faults that paths have: cut, silent, one that swallows the replies."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Self

from tests.support.servers import Server
from tests.support.waiting import given


class Proxy:
    """`with Proxy(server) as proxy:` and let the client use `proxy.url`. The switches may be thrown from any thread, at any time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="test-proxy", daemon=True)
        self._up = threading.Event()
        self._stop = asyncio.Event()
        self._released = asyncio.Event()
        self._released.set()
        self._open: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.passes_requests = True
        self.passes_replies = True
        self.accepts = True
        self.hold_when: Callable[[bytes], bool] | None = None
        """Once a piece of requests answers to this, it and all requests after it wait here, until `release`; nothing is lost."""
        self.holds = False
        self.connections = 0
        """How many were made so far."""
        self.swallowed_bytes = 0
        self.requested_bytes = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # switches

    def silence(self) -> None:
        """Nothing passes any more, connections stay open: a host that is gone without a FIN, a firewall that forgot us."""
        self.passes_requests = self.passes_replies = False

    def swallow_replies(self) -> None:
        """Requests arrive, replies don't."""
        self.passes_replies = False

    def cut(self) -> None:
        """Resets all connections there are; new ones are welcome."""

        async def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result(given(5))

    def close_down(self) -> None:
        """Resets all connections, and new ones at once."""
        self.accepts = False
        self.cut()

    def release(self) -> None:
        """What was held goes on, in its order."""
        self.hold_when = None
        self.holds = False
        self._loop.call_soon_threadsafe(self._released.set)

    def mend(self) -> None:
        self.passes_requests = self.passes_replies = self.accepts = True

    # life

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(given(5)), "the proxy did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(given(5))
        with warnings.catch_warnings():
            # A connection that was being made when its loop ended is nobody's: it goes here, not in a later test.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        listener.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # it is the loop's next turn that closes them

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stop.is_set():
            writer.transport.abort()
            return
        self._writers.add(writer)  # the task may be cancelled before it has begun
        task = asyncio.create_task(self._connect(reader, writer), name="test-proxy")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.accepts:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self.connections += 1
        theirs: asyncio.StreamWriter | None = None
        try:
            back, theirs = await asyncio.open_connection("127.0.0.1", self._server.port)
            self._writers.add(theirs)
            pumps = [
                asyncio.create_task(self._pump(reader, theirs, requests=True)),
                asyncio.create_task(self._pump(back, writer, requests=False)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is away: so is this path
        finally:
            for end in (writer, theirs):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _hold(self, data: bytes) -> None:
        if self.hold_when is not None and self.hold_when(data):
            self.holds = True
            self._released.clear()
        await self._released.wait()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        while data := await reader.read(65536):
            if requests:
                await self._hold(data)
            if self.passes_requests if requests else self.passes_replies:
                if requests:
                    self.requested_bytes += len(data)
                writer.write(data)
                await writer.drain()
            else:
                self.swallowed_bytes += len(data)
        if not (self.passes_requests if requests else self.passes_replies):
            await self._stop.wait()  # nor does the end of a connection pass
