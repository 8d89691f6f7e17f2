"""The clients of this process, made at first use: per (loop, URL, namespace) on asyncio, per (process, URL, namespace) blocking."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upnext.config import UrlSource, redis_url
from upnext.config import namespace as read_namespace
from upnext.engine.attempt import CURRENT
from upnext.engine.client.queue_client import QueueClient
from upnext.project import environment

if TYPE_CHECKING:
    from upnext.engine.client.sync_client import SyncQueueClient

_Where = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Home:
    """Of a process that serves a service: where its code submits to outside of jobs, in requests and lifespans.

    `redis_url` comes before what a task's worker names, `fallback` after it.
    """

    redis_url: str | None
    fallback: str | None
    namespace: str


_home: Home | None = None
_PLACES = ("UPNEXTD_STATE_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME", "UPNEXTD_NAME")
"""Variables that say where a daemon's embedded broker is."""
FRESH_S = 1.0
"""What the environment says of a loop's broker is looked up again so often."""
_resolved: dict[tuple[str | None, ...], tuple[_Where, float]] = {}
_async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClients] = weakref.WeakKeyDictionary()
_closers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None]] = weakref.WeakKeyDictionary()
_sync: dict[_Where, SyncQueueClient] = {}
_lock = threading.Lock()


class _LoopClients:
    """The brokers of one loop, in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.brokers: dict[_Where, QueueClient] = {}
        self._by_url: dict[str | None, QueueClient] = {}
        self._until = 0.0

    def at(self, where: _Where) -> QueueClient:
        broker = self.brokers.get(where)
        if broker is None:
            broker = self.brokers[where] = QueueClient(*where)
        return broker

    def by_environment(self, worker_url: str | None) -> QueueClient:
        """By the worker's URL and the environment."""
        now = time.monotonic()
        if now > self._until:
            self._by_url.clear()
            self._until = now + FRESH_S
        broker = self._by_url.get(worker_url)
        if broker is None:
            broker = self._by_url[worker_url] = self.at(_where(worker_url))
        return broker


def _where(worker_url: str | None) -> _Where:
    attempt = CURRENT.get(None)
    if attempt is not None and worker_url is None:
        return _of_attempt(attempt.broker)
    if _home is not None and (at := _home.redis_url or worker_url or _home.fallback) is not None:
        return at, _home.namespace
    get = os.environ.get
    url = get("UPNEXT_REDIS_URL")
    sources = (worker_url, url, get("UPNEXT_NAMESPACE"), *(() if url or worker_url else map(get, _PLACES)))
    known = _resolved.get(sources)
    if known is None or known[1] < time.monotonic():
        env = environment(os.environ)
        resolved = redis_url(None, env, worker_url)
        # a daemon's embedded broker may come and go; what was configured stays
        until = time.monotonic() + 1.0 if resolved.source is UrlSource.EMBEDDED else math.inf
        known = _resolved[sources] = ((resolved.url, read_namespace(None, env)), until)
    return known[0]


def settle(home: Home | None) -> None:
    """From now on code outside of jobs submits there; None: where the environment says."""
    global _home
    _home = home


def _of_attempt(broker: QueueClient) -> _Where:
    return broker.url, broker.keys.namespace


def async_broker(worker_url: str | None = None) -> QueueClient:
    """The QueueClient of the running loop. Inside a job: the one that its runtime uses. Raises NoBrokerError."""
    attempt = CURRENT.get(None)
    loop = asyncio.get_running_loop()
    if attempt is not None and attempt.loop is loop:
        return attempt.broker
    known = _async.get(loop)
    if known is None or known.pid != os.getpid():
        known = _async[loop] = _LoopClients()
        _close_with_the_loop(known.brokers)
    if attempt is not None:  # in a loop of its own: its broker's URL, not the environment's
        return known.at(_where(worker_url))
    return known.by_environment(worker_url)


def sync_broker(worker_url: str | None = None) -> SyncQueueClient:
    """The blocking client of this process. Raises NoBrokerError."""
    from upnext.engine.client.sync_client import SyncQueueClient  # noqa: PLC0415 - redis-py is imported by those who need it

    where = _where(worker_url)
    with _lock:
        broker = _sync.get(where)
        if broker is None:
            broker = _sync[where] = SyncQueueClient(*where)
        return broker


def _close_with_the_loop(brokers: dict[_Where, QueueClient]) -> None:
    """`asyncio.run` closes the async generators that are still open before it closes the loop: one that waits here closes the clients."""

    async def at_the_end() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            for broker in brokers.values():
                await broker.aclose()

    generator = at_the_end()
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)  # up to the yield; the loop knows of it from now on
    _closers[asyncio.get_running_loop()] = generator


def _after_fork() -> None:
    """The parent's connections are the parent's, and another of its threads may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _sync.clear()


os.register_at_fork(after_in_child=_after_fork)


async def aclose() -> None:
    """Close the clients of the running loop."""
    known = _async.pop(asyncio.get_running_loop(), None)
    for broker in known.brokers.values() if known is not None else ():
        await broker.aclose()
