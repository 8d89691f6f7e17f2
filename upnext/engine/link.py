"""A connection that is made when it is first needed and made again after it broke. Follows a sentinel's word and a cluster's MOVED."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from upnext.engine.endpoint import Endpoint
from upnext.engine.replies import LostReplyError, MovedError
from upnext.engine.scripts import Call, T
from upnext.engine.wire import Wire, connect
from upnext.errors import BrokerRefusedError, BrokerUnavailableError

CONNECT_TIMEOUT_S = 5.0


class Backoff:
    """Waits between tries to reach a broker that is away: 50 ms doubling to 1 s, ±20 %, so that a thousand clients don't come back as one."""

    def __init__(self, rng: random.Random | None = None, *, first_s: float = 0.05, last_s: float = 1.0) -> None:
        self._rng = rng or random.Random()
        self._first_s, self._last_s = first_s, last_s
        self._delay_s = first_s

    def reset(self) -> None:
        self._delay_s = self._first_s

    def next_s(self) -> float:
        delay_s = self._delay_s * self._rng.uniform(0.8, 1.2)
        self._delay_s = min(self._last_s, 2 * self._delay_s)
        return delay_s

    async def sleep(self) -> None:
        await asyncio.sleep(self.next_s())


class Link:
    """`on_connect` runs on every new connection before anybody else uses it (to subscribe, to register)."""

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        *,
        on_push: Callable[[Any], None] | None = None,
        on_connect: Callable[[Wire], Awaitable[None]] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._endpoint, self._name = endpoint, name
        self._moved: tuple[str, int] | None = None
        self._on_push, self._on_connect = on_push, on_connect
        self._timeout_s = connect_timeout_s
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._closed = False

    @property
    def live(self) -> Wire | None:
        """The connection, if there is one right now."""
        return self._wire if self._wire is not None and not self._wire.closed.done() else None

    async def wire(self) -> Wire:
        """A live connection; all callers share one attempt to make it. Raises BrokerUnavailableError or BrokerRefusedError."""
        if (wire := self.live) is not None:
            return wire
        if self._closed:
            raise BrokerUnavailableError("this client is closed")
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="upnext-connect")
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    async def run(self, call: Call[T]) -> T:
        for _ in range(3):
            wire = await self.wire()
            try:
                return await wire.run(call)
            except MovedError as error:
                self._moved = error.address
                wire.abort()
            except LostReplyError:
                raise
            except BrokerUnavailableError:  # it said so itself (READONLY after a failover, LOADING): a fresh look-up may find the right one
                wire.abort()
                raise
        raise BrokerUnavailableError("the cluster keeps redirecting")

    async def command(self, *command: str | bytes | int | float) -> Any:
        """One plain command."""
        return await (await self.wire()).send(*command)

    async def aclose(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def _connected(self, task: asyncio.Task[Wire]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every waiter has it; with none left it needs no report

    async def _connect(self) -> Wire:
        error: BrokerUnavailableError | None = None
        for endpoint in self._candidates():
            try:
                if endpoint.sentinel is not None:
                    endpoint = await _ask_sentinel(endpoint, self._timeout_s)
                wire = await connect(endpoint, name=self._name, timeout_s=self._timeout_s, on_push=self._on_push)
                if self._on_connect is not None:
                    try:
                        await self._on_connect(wire)
                    except BaseException:
                        wire.abort()
                        raise
                self._wire = wire
                return wire
            except BrokerRefusedError:
                raise
            except BrokerUnavailableError as caught:
                error = caught
        raise error or BrokerUnavailableError("no address to connect to")

    def _candidates(self) -> list[Endpoint]:
        moved, self._moved = self._moved, None
        if moved is not None:
            return [self._endpoint.at(*moved), *self._each()]
        return self._each()

    def _each(self) -> list[Endpoint]:
        endpoint = self._endpoint
        if endpoint.path is not None or len(endpoint.nodes) == 1:
            return [endpoint]
        if endpoint.sentinel is not None:
            return [Endpoint(**{**_fields(endpoint), "nodes": (node,)}) for node in endpoint.nodes]
        return [endpoint.at(*node) for node in endpoint.nodes]


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    return {name: getattr(endpoint, name) for name in Endpoint.__slots__}  # pyright: ignore[reportUnknownVariableType]


async def _ask_sentinel(endpoint: Endpoint, timeout_s: float) -> Endpoint:
    """The master's own endpoint, as one sentinel tells it."""
    assert endpoint.sentinel is not None
    sentinel = Endpoint(nodes=endpoint.nodes, tls=endpoint.tls, tls_options=endpoint.tls_options)
    wire = await connect(sentinel, name="upnext-sentinel", timeout_s=timeout_s)
    try:
        address = await wire.send("SENTINEL", "get-master-addr-by-name", endpoint.sentinel)
    finally:
        wire.close()
    if not address:
        raise BrokerUnavailableError(f"the sentinel at {sentinel.describe()} knows no master {endpoint.sentinel!r}")
    return endpoint.at(address[0].decode(), int(address[1]))
