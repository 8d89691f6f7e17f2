"""A connection that is made when it is first needed and made again after it broke. Follows a sentinel's word and a cluster's MOVED."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from upnext.engine.endpoint import Endpoint
from upnext.engine.replies import MovedError
from upnext.engine.scripts import Call, T
from upnext.engine.wire import Wire, connect
from upnext.errors import BrokerRefusedError, BrokerUnavailableError

CONNECT_TIMEOUT_S = 2.0
"""Short, because a network that comes back is noticed by the next try, not by the one under way."""
REDIRECTS = 5


Node = tuple[str, int]


class Backoff:
    """Waits between tries to reach a broker that is away: 50 ms doubling to 1 s, ±20 %: a thousand clients don't come back as one."""

    def __init__(self, rng: random.Random | None = None, *, first_s: float = 0.05, last_s: float = 1.0) -> None:
        self._uniform = rng.uniform if rng else random.uniform
        self._first_s, self._last_s = first_s, last_s
        self._delay_s = first_s

    def reset(self) -> None:
        self._delay_s = self._first_s

    def next_s(self) -> float:
        delay_s = self._delay_s * self._uniform(0.8, 1.2)
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
        self._home: Node | None = None
        self._nodes = list(endpoint.nodes)
        self._on_push, self._on_connect = on_push, on_connect
        self._timeout_s = connect_timeout_s
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._closed = False

    @property
    def live(self) -> Wire | None:
        """The connection, if there is one right now, to the right server as far as is known."""
        wire = self._wire
        return wire if wire is not None and wire.wrong is None and not wire.closed.done() else None

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
        return await self._following(lambda wire: wire.run(call))

    async def command(self, *command: str | bytes | float) -> Any:
        """One plain command."""
        return await self._following(lambda wire: wire.send(*command))

    async def _following(self, ask: Callable[[Wire], Awaitable[T]]) -> T:
        """Asks again where a MOVED points to."""
        for _ in range(REDIRECTS):
            try:
                return await ask(await self.wire())
            except MovedError:
                continue  # the wire knows, and the next one goes there
        raise BrokerUnavailableError("the cluster keeps redirecting")

    async def aclose(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.aclose()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def _connected(self, task: asyncio.Task[Wire]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every waiter has it; with none left it needs no report

    async def _connect(self) -> Wire:
        self._look_up()
        for _ in range(REDIRECTS):
            try:
                return await self._connect_to_one()
            except MovedError as moved:  # what `on_connect` asked for is elsewhere
                self._follow(moved)
        raise BrokerUnavailableError("the cluster keeps redirecting")

    async def _connect_to_one(self) -> Wire:
        error: BrokerUnavailableError | None = None
        for node, candidate in self._candidates():
            endpoint = candidate
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
                if node in self._nodes:  # the one that answered is asked first the next time
                    self._nodes.sort(key=lambda other: other != node)
                return wire
            except (BrokerRefusedError, MovedError):
                raise
            except BrokerUnavailableError as caught:
                error = caught
                if node == self._home:
                    self._home = None
        raise error or BrokerUnavailableError("no address to connect to")

    def _look_up(self) -> None:
        """What the connection before said about where to go."""
        wrong = self._wire.wrong if self._wire is not None else None
        if isinstance(wrong, MovedError):
            self._follow(wrong)

    def _follow(self, moved: MovedError) -> None:
        host, port = moved.address
        self._home = (host or (self._home or self._nodes[0])[0], port)

    def _candidates(self) -> list[tuple[Node | None, Endpoint]]:
        """Where to try, in this order: the node of the cluster that had our slot, then each that the URL names."""
        endpoint = self._endpoint
        if endpoint.path is not None:
            return [(None, endpoint)]
        nodes = [node for node in self._nodes if node != self._home]
        if self._home is not None:
            nodes.insert(0, self._home)
        return [(node, replace(endpoint, nodes=(node,))) for node in nodes]


async def _ask_sentinel(endpoint: Endpoint, timeout_s: float) -> Endpoint:
    """The master's own endpoint, as one sentinel tells it."""
    assert endpoint.sentinel is not None
    sentinel = Endpoint(nodes=endpoint.nodes, tls=endpoint.tls, tls_options=endpoint.tls_options)
    wire = await connect(sentinel, name="upnext-sentinel", timeout_s=timeout_s)
    try:
        address = await wire.send("SENTINEL", "get-master-addr-by-name", endpoint.sentinel)
    finally:
        await wire.aclose()
    if not address:
        raise BrokerUnavailableError(f"the sentinel at {sentinel.describe()} knows no master {endpoint.sentinel!r}")
    return endpoint.at(address[0].decode(), int(address[1]))
