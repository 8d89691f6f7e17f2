"""Asks sentinels, or the nodes of a cluster, where our data is by now, and sends the clients there.

Sentinels are followed by subscription and asked again every few seconds: the old master of a planned failover stays reachable, and
connections to it don't break. Nodes of a cluster are asked when a client's server owes replies, and now and then for their list.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

from upnext.engine.background import BackgroundTasks
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire, connect
from upnext.engine.redis.endpoint import Endpoint
from upnext.engine.redis.places import Answer, Node, Places, newest
from upnext.errors import BrokerUnavailableError, QueueError

log = logging.getLogger("upnext.engine")

ASK_S = 2.0
"""Sentinels are asked so often."""
DOUBT_S = 0.5
"""Clients are looked at so often, on a cluster."""
LIST_S = 15.0
"""A node of a cluster is asked for the list of nodes so often."""
PATIENCE_S = 1.0
"""One that does not answer within this has no say."""
SECOND_WORD_S = 0.1
"""After the first answer the others get so long: one that is not reachable must not keep a client waiting."""
MOST_ASKED = 8

_CHANNELS = ("+switch-master", "+promoted-slave", "+failover-state-reconf-slaves", "+failover-end", "+reboot")


class Client(Protocol):
    """Something with connections to the broker."""

    @property
    def node(self) -> Node | None:
        """Where it is connected to."""
        ...

    @property
    def doubted(self) -> bool:
        """Whether the server there owes it replies for long."""
        ...

    def redirect(self, node: Node) -> None:
        """End the connections to other nodes, if there are any; the next one goes to `node`."""
        ...


class Lookout:
    """Works from the first client's `join` to the last one's `leave`, for those brokers that can be elsewhere. Belongs to one loop."""

    def __init__(self, places: Places, slot: int | None = None) -> None:
        self.places = places
        self._slot = slot
        self._clients: set[Client] = set()
        self._ask_now = asyncio.Event()
        self._background = BackgroundTasks("upnext-lookout")
        self._sentinels: dict[Node, Wire] = {}
        self._locks: dict[Node, asyncio.Lock] = {}
        self._listed_at: float | None = None

    def join(self, client: Client) -> None:
        self._clients.add(client)
        if self._background or not self.places.elsewhere:
            return
        if self.places.endpoint.sentinel is not None:
            self._background.start(self._keep_asking_sentinels())
            for node in self.places.endpoint.nodes:
                self._background.start(self._follow_sentinel(node))
        elif self._slot is not None:
            self._background.start(self._keep_asking_nodes(self._slot))

    async def leave(self, client: Client) -> None:
        self._clients.discard(client)
        if self._clients:
            return
        background, self._background = self._background, BackgroundTasks("upnext-lookout")
        await background.aclose()
        wires, self._sentinels = list(self._sentinels.values()), {}
        for wire in wires:
            wire.abort()

    async def find_master(self) -> Node:
        """As the sentinels say now. Raises BrokerUnavailableError."""
        places = self.places
        found, errors = await _ask((self._ask_sentinel(node) for node in places.endpoint.nodes), SECOND_WORD_S)
        answer = newest(found)
        if answer is None:
            raise errors[0] if errors else BrokerUnavailableError("no sentinel answers")
        places.follow(answer.node)
        return answer.node

    # --- sentinels

    async def _keep_asking_sentinels(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await self._ask_now.wait()
            self._ask_now.clear()
            found, _ = await _ask((self._ask_sentinel(node) for node in self.places.endpoint.nodes), PATIENCE_S)
            self._send_clients_to(newest(found))

    async def _ask_sentinel(self, node: Node) -> Answer:
        name = self.places.endpoint.sentinel
        assert name is not None
        async with self._locks.setdefault(node, asyncio.Lock()):
            wire = self._sentinels.get(node)
            if wire is None or not wire.usable:
                if wire is not None:
                    wire.abort()
                wire = self._sentinels[node] = await connect(
                    _sentinel(self.places.endpoint, node), name="upnext-sentinel", timeout_s=PATIENCE_S
                )
        both: Any = await asyncio.gather(
            wire.send("SENTINEL", "get-master-addr-by-name", name),
            wire.send("SENTINEL", "MASTER", name),
            return_exceptions=True,
        )
        address, state = both
        for one in both:
            if isinstance(one, BrokerUnavailableError):
                raise one
        if not address or isinstance(address, BaseException) or isinstance(state, BaseException):
            raise BrokerUnavailableError(f"the sentinel at {node[0]}:{node[1]} knows no master {name!r}")
        master: Node = (address[0].decode(), int(address[1]))
        fields: dict[bytes, bytes] = dict(zip(state[::2], state[1::2], strict=True))
        # while it leads a failover it gives the promoted replica's address before the epoch of that is the master's
        promoted = (fields[b"ip"].decode(), int(fields[b"port"])) != master
        return Answer((int(fields[b"config-epoch"]), int(promoted)), master)

    async def _follow_sentinel(self, node: Node) -> None:
        """Whatever a sentinel announces about a failover is a reason to ask all of them."""
        backoff = Backoff()
        while True:
            try:
                wire = await connect(
                    _sentinel(self.places.endpoint, node),
                    name="upnext-sentinel",
                    timeout_s=PATIENCE_S,
                    on_push=lambda _: self._ask_now.set(),
                )
            except QueueError as error:
                log.debug("sentinel %s:%s: %s", *node, error)
            else:
                try:
                    wire.post("SUBSCRIBE", *_CHANNELS)
                    backoff.reset()
                    await asyncio.wait([wire.closed])
                finally:
                    wire.abort()
            await backoff.sleep()

    # --- nodes of a cluster

    async def _keep_asking_nodes(self, slot: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            doubted = {client.node for client in self._clients if client.doubted}
            if doubted:
                asked = [node for node in self.places.candidates() if node not in doubted][:MOST_ASKED]
                found, _ = await _ask((self._ask_node(node, slot) for node in asked), PATIENCE_S)
                answer = newest(found)
                if answer is not None and answer.node not in doubted:
                    self._send_clients_to(answer)
            elif self._listed_at is None or loop.time() - self._listed_at > LIST_S:
                self._listed_at = loop.time()
                for node in self.places.candidates():
                    found, _ = await _ask([self._ask_node(node, slot)], PATIENCE_S)
                    if found:
                        self.places.learn(found[0].others)
                        break
            await asyncio.sleep(DOUBT_S)

    async def _ask_node(self, node: Node, slot: int) -> Answer:
        wire = await connect(self.places.endpoint.at(*node), name="upnext-lookout", timeout_s=PATIENCE_S)
        try:
            both: Any = await asyncio.gather(
                wire.send("CLUSTER", "INFO"), wire.send("CLUSTER", "SLOTS"), return_exceptions=True
            )
        finally:
            wire.abort()
        for reply in both:
            if isinstance(reply, BaseException):
                raise reply
        info, slots = both
        fields: dict[str, str] = dict(line.split(":", 1) for line in info.decode().split() if ":" in line)
        nodes: list[Node] = [
            (entry[0].decode() if entry[0] else node[0], int(entry[1])) for part in slots for entry in part[2:]
        ]
        for first, last, master, *_ in slots:
            if first <= slot <= last:
                owner: Node = (master[0].decode() if master[0] else node[0], int(master[1]))
                serves = fields.get("cluster_state") == "ok"
                epoch = int(fields.get("cluster_current_epoch", 0))
                return Answer((int(serves), epoch), owner, tuple(dict.fromkeys(nodes)))
        raise BrokerUnavailableError(f"the node at {node[0]}:{node[1]} doesn't know who has the slot {slot}")

    # --- both

    def _send_clients_to(self, answer: Answer | None) -> None:
        if answer is None:
            return
        if self.places.home not in (None, answer.node):
            log.info("the broker is at %s:%s now", *answer.node)
        self.places.follow(answer.node)
        for client in tuple(self._clients):
            client.redirect(answer.node)


class LookoutThread:
    """A lookout for a blocking client, on a loop of its own. Ends with the process, or by `stop`."""

    def __init__(self, places: Places, slot: int, client: Client) -> None:
        self._places, self._slot, self._client = places, slot, client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._main, name="upnext-lookout", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Return when the thread has ended, or after 1 s. Safe to call again, and in a child after a fork."""
        atexit.unregister(self.stop)
        if self._thread.is_alive() and self._begun.wait(1.0) and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended just now
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(1.0)

    def _main(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        lookout = Lookout(self._places, self._slot)
        lookout.join(self._client)
        try:
            await self._stop.wait()
        finally:
            await lookout.leave(self._client)


def _sentinel(endpoint: Endpoint, node: Node) -> Endpoint:
    """Credentials of the URL are the master's."""
    return Endpoint(nodes=(node,), tls=endpoint.tls, tls_options=endpoint.tls_options)


async def _ask(
    questions: Iterable[Coroutine[Any, Any, Answer]], more_s: float
) -> tuple[list[Answer], list[BrokerUnavailableError]]:
    """All at once -> the answers that came by `more_s` after the first one, and why others failed."""
    loop = asyncio.get_running_loop()
    pending = {asyncio.create_task(question, name="upnext-ask") for question in questions}
    found: list[Answer] = []
    errors: list[BrokerUnavailableError] = []
    until = loop.time() + 2 * PATIENCE_S
    try:
        while pending and (left := until - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    found.append(task.result())
                    until = min(until, loop.time() + more_s)
                except BrokerUnavailableError as error:
                    errors.append(error)
                except QueueError as error:
                    errors.append(BrokerUnavailableError(str(error)))
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return found, errors
