"""A connection that is made when it is first needed and made again after it broke, wherever the broker is by then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from upnext.engine.contexts import shared_task
from upnext.engine.redis import aside
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire, connect
from upnext.engine.redis.endpoint import Endpoint
from upnext.engine.redis.lookout import Lookout
from upnext.engine.redis.places import Node, Places
from upnext.engine.redis.replies import MovedError, ReplyError, WrongServerError
from upnext.engine.redis.scripts import Call, T
from upnext.errors import BrokerRefusedError, BrokerUnavailableError

log = logging.getLogger("upnext.engine")

CONNECT_TIMEOUT_S = 2.0
"""Short, because a network that comes back is noticed by the next try, not by the one under way."""
REDIRECTS = 5
RETIRE_S = 1.0
"""When the broker is elsewhere by now, what the old server owes may still come for so long."""
CALM_S = 5.0
"""A connection that served for so long ends the backoff between looks for another server."""


def _nothing() -> None:
    """For a link whose keys are of no concern to its owner."""


class Link:
    """`on_connect` runs on every new connection before any other code uses it (to subscribe, to register).

    Links that share a `lookout` are sent to the broker's new place together. On a `patient` one a reply may take its time (a waiting read).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        *,
        on_push: Callable[[Any], None] | None = None,
        on_connect: Callable[[Wire], Awaitable[None]] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        lookout: Lookout | None = None,
        patient: bool = False,
    ) -> None:
        self._endpoint, self._name = endpoint, name
        self._lookout = lookout or Lookout(Places(endpoint))
        self._places = self._lookout.places
        self._on_push, self._on_connect = on_push, on_connect
        self._timeout_s = connect_timeout_s
        self._patient = patient
        self._wire: Wire | None = None
        self._wire_node: Node | None = None
        self._made_at = 0.0
        self._looks = Backoff()
        self._connecting: asyncio.Task[Wire] | None = None
        self._closed = False
        self.on_aside: Callable[[], None] = _nothing
        """Called when keys were set aside: what they held is gone."""

    @property
    def live(self) -> Wire | None:
        """The connection, if there is one right now that can be used, to the right server as far as is known."""
        wire = self._wire
        return wire if wire is not None and wire.usable else None

    @property
    def node(self) -> Node | None:
        """Where it is connected to."""
        wire = self._wire
        return self._wire_node if wire is not None and wire.wrong is None and not wire.closed.done() else None

    @property
    def doubted(self) -> bool:
        """Whether the server owes replies for long."""
        return self._wire is not None and self._wire.doubt is not None

    def redirect(self, node: Node) -> None:
        """The broker is at `node` by now: what the server of today owes may still come, nothing more is sent there."""
        if self._wire is not None and self.node not in (None, node):
            host, port = node
            left_s = 0.0 if self.doubted else RETIRE_S
            self._wire.retire(WrongServerError(f"the broker is at {host}:{port} now"), left_s)

    def another(
        self,
        name: str,
        *,
        on_push: Callable[[Any], None] | None = None,
        on_connect: Callable[[Wire], Awaitable[None]] | None = None,
        patient: bool = False,
    ) -> Link:
        """A link of its own to the same broker, with the same lookout."""
        return Link(
            self._endpoint, name, on_push=on_push, on_connect=on_connect, lookout=self._lookout, patient=patient
        )

    async def wire(self) -> Wire:
        """A connection that can be used; all callers share one attempt to make it. Waits while the server owes replies for long.

        Raises BrokerUnavailableError or BrokerRefusedError.
        """
        while True:
            if (wire := self.live) is not None:
                return wire
            if self._closed:
                raise BrokerUnavailableError("this client is closed")
            if self._wire is not None and self._wire.doubt is not None:
                await asyncio.wait([self._wire.doubt])
                continue
            if self._connecting is None:
                self._connecting = shared_task(self._connect(), "upnext-connect")
                self._connecting.add_done_callback(self._connected)
            return await asyncio.shield(self._connecting)

    async def run(self, call: Call[T]) -> T:
        try:
            return await self._following(lambda wire: wire.run(call))
        except ReplyError as error:
            if not aside.can_mend(error, call):
                raise
            await self._set_aside(aside.for_call(call), error)
        return await self._following(lambda wire: wire.run(call))

    async def command(self, *command: str | bytes | float) -> Any:
        """One plain command on one key, or on none."""
        try:
            return await self._following(lambda wire: wire.send(*command))
        except ReplyError as error:
            if not aside.met(error) or not isinstance(command[1], str):
                raise
            await self._set_aside(aside.calls([command[1]]), error)
        return await self._following(lambda wire: wire.send(*command))

    async def set_aside(self, keys: Sequence[str], epoch: str = "") -> None:
        """Rename those of the keys (of one namespace) that hold another type than theirs. epoch: of the data, where it is known."""
        await self._set_aside(aside.calls(keys, epoch), None)

    async def _set_aside(self, calls: Iterable[Call[list[aside.Aside]]], met: ReplyError | None) -> None:
        try:
            for call in calls:
                found = await self._following(lambda wire, call=call: wire.run(call))
                aside.report(found)
                if found:
                    self.on_aside()
        except (ReplyError, BrokerRefusedError) as error:  # of the user's rights: what was met stands
            log.debug("setting aside: %s", error)
            raise met or error from None

    async def _following(self, ask: Callable[[Wire], Awaitable[T]]) -> T:
        """Ask again where a MOVED points to."""
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
        await self._lookout.leave(self)
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
        self._lookout.join(self)
        await self._heed(self._wire)
        for _ in range(REDIRECTS):
            try:
                return await self._connect_to_one()
            except MovedError as moved:  # what `on_connect` asked for is elsewhere
                self._places.follow(self._places.resolve(moved.address))
        raise BrokerUnavailableError("the cluster keeps redirecting")

    async def _heed(self, before: Wire | None) -> None:
        """Follow what the last reply of the connection before says about where to go."""
        if before is None or before.wrong is None:
            return
        if isinstance(before.wrong, MovedError):
            self._places.follow(self._places.resolve(before.wrong.address))
        elif not before.retired:
            self._places.avoid(self._wire_node)
            if asyncio.get_running_loop().time() - self._made_at > CALM_S:
                self._looks.reset()
            await self._looks.sleep()  # while none of them serves, no storm of connections

    async def _connect_to_one(self) -> Wire:
        endpoint = self._endpoint
        if endpoint.path is not None:
            return await self._connect_to(endpoint, None)
        nodes = self._places.candidates() if endpoint.sentinel is None else [await self._lookout.find_master()]
        error: BrokerUnavailableError | None = None
        for node in nodes:
            try:
                return await self._connect_to(endpoint.at(*node), node)
            except MovedError:
                raise
            except BrokerUnavailableError as caught:
                error = caught
                self._places.avoid(node)
        raise error or BrokerUnavailableError("no address to connect to")

    async def _connect_to(self, endpoint: Endpoint, node: Node | None) -> Wire:
        wire = await connect(endpoint, name=self._name, timeout_s=self._timeout_s, on_push=self._on_push)
        wire.patient = self._patient
        if self._on_connect is not None:
            try:
                await self._on_connect(wire)
            except BaseException:
                wire.abort()
                raise
        self._wire, self._wire_node = wire, node
        self._made_at = asyncio.get_running_loop().time()
        if node is not None:
            self._places.reached(node)
        return wire
