"""The blocking twin of `upnext.engine.client.queue_client`: the same calls over redis-py's connections, for plain threads and processes.

Safe to use from many threads, and before and after a fork: each process has a pool of its own.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
import redis.exceptions as theirs
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from upnext.core import entry
from upnext.core.keys import Keys
from upnext.core.outcome import Outcome, decode
from upnext.core.submission import Submission
from upnext.engine.calls import client
from upnext.engine.client import waiting
from upnext.engine.client.waiting import (
    Await,
    Connect,
    Pause,
    Run,
    Step,
    Subscribe,
    Watch,
    check_payload,
    drive_blocking,
)
from upnext.engine.redis import aside
from upnext.engine.redis.blocking_subscriber import Ear
from upnext.engine.redis.endpoint import Endpoint, parse_url
from upnext.engine.redis.lookout import LookoutThread
from upnext.engine.redis.places import Node, Places
from upnext.engine.redis.reconnecting import REDIRECTS
from upnext.engine.redis.replies import (
    LostReplyError,
    MovedError,
    NoScriptError,
    ReplyError,
    WrongServerError,
    not_redis,
    read_error,
    refused,
)
from upnext.engine.redis.scripts import Arg, Call, T
from upnext.errors import BrokerUnavailableError, QueueError

SOCKET_TIMEOUT_S = 10.0
INTRODUCTION_S = 2.0
"""A server that does not let us in within this is given up. Writing a request has no longer, either."""
OVERDUE_S = 1.0
"""A request that waits for so long makes the lookout ask others about its server."""

_CODES: list[tuple[type[Exception], str]] = [
    (theirs.NoScriptError, "NOSCRIPT"),
    (theirs.OutOfMemoryError, "OOM"),
    (theirs.ReadOnlyError, "READONLY"),
    (theirs.NoPermissionError, "NOPERM"),
    (theirs.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (theirs.AuthenticationError, "NOAUTH"),
    (theirs.BusyLoadingError, "LOADING"),
    (theirs.ClusterDownError, "CLUSTERDOWN"),
    (theirs.TryAgainError, "TRYAGAIN"),
    (theirs.MovedError, "MOVED"),
    (theirs.AskError, "ASK"),
    (theirs.MasterDownError, "MASTERDOWN"),
]


def _ours(error: Exception) -> QueueError:
    """redis-py strips the code of the errors that it knows; put it back and read it as the async side does."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return read_error(f"{code} {error}")
    return read_error(str(error))


class _TlsConnection(redis.SSLConnection):
    """redis-py's, with the same TLS context as the asyncio client."""

    def __init__(self, *, tls: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)  # pyright: ignore[reportUnknownMemberType]
        self._tls = tls

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._tls.wrap_socket(sock, server_hostname=self.host)


class SyncQueueClient:
    """Blocking; methods and errors as `upnext.engine.client.queue_client.Broker`."""

    def __init__(self, url: str, namespace: str = "default", *, name: str = "upnext-client") -> None:
        self.endpoint: Endpoint = parse_url(url)
        self.keys = Keys(namespace)
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0
        self._pools: dict[Node | None, redis.ConnectionPool] = {}
        self._places = Places(self.endpoint)
        self._owed: dict[Any, float] = {}
        self._lookout: LookoutThread | None = None

    # --- transport

    def run(self, call: Call[T]) -> T:
        """Run a script; where it met a key of another type, once more after that was set aside."""
        try:
            return self.run_once(call)
        except ReplyError as error:
            if not aside.can_mend(error, call):
                raise
            for mend in aside.for_call(call):
                with suppress(QueueError):  # the error that was met comes again
                    aside.report(self.run_once(mend))
        return self.run_once(call)

    def run_once(self, call: Call[T]) -> T:
        try:
            reply = self.command(*call.evalsha())
        except NoScriptError:
            reply = self.command(*call.eval())
        return call.parse(reply)

    def command(self, *command: Arg) -> Any:
        """One command. Raises BrokerUnavailableError (nothing was sent), LostReplyError (sent, no reply), or what the reply says."""
        for _ in range(REDIRECTS):
            with self._connection() as (node, connection):
                try:
                    connection.send_command(*command, check_health=False)
                    return connection.read_response(timeout=SOCKET_TIMEOUT_S)
                except (theirs.ResponseError, theirs.BusyLoadingError, theirs.AuthenticationError) as error:
                    ours = self._failed(error, node)
                    if not isinstance(ours, MovedError):
                        raise ours from None
                except theirs.ConnectionError as error:
                    raise LostReplyError(f"connection to the broker lost: {error}") from None
                except (theirs.TimeoutError, theirs.InvalidResponse, OSError) as error:
                    connection.disconnect()
                    self._look_again(node)
                    raise LostReplyError(f"no reply from the broker: {error}") from None
        raise BrokerUnavailableError("the cluster keeps redirecting")

    @contextmanager
    def _connection(self) -> Generator[tuple[Node | None, Any]]:
        node, pool = self._pool()
        try:
            connection = cast("Any", pool).get_connection()
        except (theirs.RedisError, OSError) as error:
            raise self._introducing_failed(error, node) from None
        self._owed[connection] = time.monotonic()
        try:
            yield node, connection
        finally:
            self._owed.pop(connection, None)
            if self._pools.get(node) is not pool:  # the broker is elsewhere by now
                connection.disconnect()
            pool.release(connection)

    def _failed(self, error: Exception, node: Node | None) -> QueueError:
        """What redis-py raised before anything was sent, or read as a reply, as one of ours. What it says about where to go is done."""
        if isinstance(error, theirs.ResponseError | theirs.BusyLoadingError | theirs.AuthenticationError):
            ours = _ours(error)
            if isinstance(ours, MovedError):
                self._places.follow(self._places.resolve(ours.address))
            elif isinstance(ours, WrongServerError):
                self._look_again(node)
            return ours
        if isinstance(error, theirs.InvalidResponse):
            return not_redis(self.endpoint.describe(), error)
        self._look_again(node)
        return BrokerUnavailableError(f"can't reach Redis at {self.endpoint.describe()}: {error}")

    def _introducing_failed(self, error: Exception, node: Node | None) -> QueueError:
        ours = self._failed(error, node)
        return refused(ours) if isinstance(ours, ReplyError) else ours

    def _look_again(self, node: Node | None) -> None:
        """Another node may serve by now: ask the sentinels, or the others first, the next time."""
        if self._places.elsewhere or len(self.endpoint.nodes) > 1:
            self._places.avoid(node)
            with self._lock:
                pool = self._pools.pop(node, None)
            if pool is not None:
                pool.disconnect(inuse_connections=False)

    def _pool(self) -> tuple[Node | None, redis.ConnectionPool]:
        """Connections to the node that has our data, as far as is known. Raises BrokerUnavailableError."""
        with self._lock:
            if self._pid != os.getpid():  # the parent's connections are the parent's, and its thread
                self._pools, self._owed, self._lookout = {}, {}, None
                self._pid = os.getpid()
            if self._lookout is None and self._places.elsewhere:
                self._lookout = LookoutThread(self._places, self.keys.slot, self)
            if self.endpoint.path is not None:
                return None, self._pool_of(None)
            if self.endpoint.sentinel is not None and self._places.home is None:
                self._places.follow(self._ask_sentinels())
            nodes = [self._places.home] if self._places.home is not None else self._places.candidates()
            error: Exception | None = None
            for node in nodes:
                pool = self._pool_of(node)
                if len(nodes) == 1:
                    return node, pool
                try:
                    pool.release(cast("Any", pool).get_connection())
                except (theirs.ConnectionError, theirs.TimeoutError, OSError) as caught:
                    if isinstance(caught, theirs.AuthenticationError | theirs.BusyLoadingError):
                        return node, pool  # it answers: the error is raised where it is used
                    error = caught
                    self._places.avoid(node)
                except theirs.RedisError:
                    return node, pool
                else:
                    self._places.reached(node)
                    return node, pool
            raise BrokerUnavailableError(f"can't reach Redis at {self.endpoint.describe()}: {error}")

    def _pool_of(self, node: Node | None) -> redis.ConnectionPool:
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools[node] = self._make_pool(node)
        return pool

    def _make_pool(self, node: Node | None) -> redis.ConnectionPool:
        endpoint = self.endpoint
        settings: dict[str, Any] = {
            "username": endpoint.username,
            "password": endpoint.password,
            "db": 0 if endpoint.cluster else endpoint.db,
            "client_name": self._name,
            "socket_timeout": INTRODUCTION_S,
            "socket_connect_timeout": INTRODUCTION_S,
            "retry": Retry(NoBackoff(), 0),  # a submit is never repeated behind our back
            "max_connections": 1000,
            "protocol": 2,
            "driver_info": None,
        }
        if endpoint.path is not None:
            return redis.ConnectionPool(cast("Any", redis.UnixDomainSocketConnection), path=endpoint.path, **settings)
        assert node is not None
        return self._tcp_pool(node, settings)

    def _tcp_pool(self, node: Node, settings: Mapping[str, Any]) -> redis.ConnectionPool:
        tls: dict[str, Any] = {}
        try:
            if (context := self.endpoint.tls_context()) is not None:
                tls = {"connection_class": _TlsConnection, "tls": context}
        except OSError as error:  # a file that can't be read, or holds no certificate
            raise BrokerUnavailableError(
                f"can't reach Redis at {self.endpoint.describe()}: {error.strerror or error}"
            ) from None
        return redis.ConnectionPool(host=node[0], port=node[1], **settings, **tls)

    def _ask_sentinels(self) -> Node:
        endpoint = self.endpoint
        settings: dict[str, Any] = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0, "driver_info": None}
        sentinels = Sentinel([])
        sentinels.sentinels = [redis.Redis(connection_pool=self._tcp_pool(node, settings)) for node in endpoint.nodes]
        try:
            host, port = cast("Any", sentinels).discover_master(endpoint.sentinel)
        except (theirs.ConnectionError, theirs.TimeoutError):
            asked = f"the sentinels at {endpoint.describe()}"  # its own text holds the repr of its clients
            raise BrokerUnavailableError(f"{asked} don't tell where master {endpoint.sentinel!r} is") from None
        return str(host), int(port)

    # --- what its lookout asks, from a thread of its own

    @property
    def node(self) -> Node | None:
        return self._places.home

    @property
    def doubted(self) -> bool:
        now = time.monotonic()
        return any(now - since > OVERDUE_S for since in list(self._owed.values()))

    def redirect(self, node: Node) -> None:
        """Requests that wait for long at the old server end as lost; others end by themselves."""
        now = time.monotonic()
        for connection, since in list(self._owed.items()):
            if (connection.host, connection.port) != node and now - since > OVERDUE_S:
                with suppress(OSError, AttributeError):  # it may end at this moment
                    connection._sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 - redis-py has no other way from another thread
        with self._lock:
            gone = [self._pools.pop(other) for other in list(self._pools) if other != node]
        for pool in gone:
            pool.disconnect(inuse_connections=False)

    # --- submitting

    def submit(self, job: Submission) -> str:
        return self._submit(job, None)

    def _submit(self, job: Submission, reply_to: str | None) -> str:
        check_payload(job.task, job.payload)
        return drive_blocking(waiting.submit(self.keys, job, reply_to, time.monotonic), self._do)

    def submit_many(self, jobs: Sequence[Submission]) -> list[str]:
        return drive_blocking(waiting.submit_many(self.keys, jobs, time.monotonic), self._do)

    def send(
        self,
        event: str,
        payload: bytes,
        known_handlers: Sequence[str],
        parent_id: str | None = None,
        root_id: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float | None = None,
        trace: str | None = None,
        own: dict[str, Any] | None = None,
    ) -> list[str]:
        check_payload(event, payload)
        meta = entry.Meta(parent_id=parent_id, root_id=root_id, trace=trace, own=own)
        sending = waiting.Sending(self.keys, event, payload, meta, idempotency_key, idempotency_ttl_s, time.monotonic)
        return drive_blocking(sending.begin(known_handlers), self._do)

    def _do(self, step: Step) -> Any:
        """Do a step of a submit."""
        match step:
            case Run(call):
                return self.run(call)
            case Connect():
                return None  # each command finds a connection by itself
            case Pause(seconds):
                return time.sleep(seconds)
            case _:
                raise TypeError(f"not a step of a submit: {step}")

    # --- waiting

    def submit_and_wait(self, job: Submission, timeout_s: float | None) -> tuple[str, Outcome]:
        with self._subscription(waiting.subscribe_patience_s(timeout_s)) as (nonce, ear):
            job_id = self._submit(job, nonce)
            return job_id, self._wait(job_id, timeout_s, nonce, ear, registered=True, begun_s=time.monotonic())

    def wait(self, job_id: str, timeout_s: float | None = None) -> Outcome:
        begun_s = time.monotonic()
        with self._subscription(timeout_s) as (nonce, ear):
            return self._wait(job_id, timeout_s, nonce, ear, registered=False, begun_s=begun_s)

    @contextmanager
    def _subscription(self, patience_s: float | None) -> Generator[tuple[str, Ear]]:
        """A subscription of this call's own. Goes on trying while the broker is away, for so long (None: for ever)."""
        nonce = secrets.token_hex(8)

        def do(step: Step) -> Any:
            if not isinstance(step, Subscribe):
                return self._do(step)
            ear = Ear(self.keys.reply(nonce), self._pool, self._introducing_failed)
            ear.open()
            return ear

        ear: Ear = drive_blocking(waiting.subscribe(patience_s, time.monotonic, lambda: False), do)
        try:
            yield nonce, ear
        finally:
            ear.close()

    def _wait(
        self, job_id: str, timeout_s: float | None, nonce: str, ear: Ear, *, registered: bool, begun_s: float
    ) -> Outcome:
        watched = False

        def do(step: Step) -> Any:
            nonlocal watched
            match step:
                case Watch():
                    watched = True
                    return self.run(client.watch(self.keys, job_id, nonce))
                case Await(until_s):
                    return self._await_message(ear, job_id, until_s)
                case _:
                    return self._do(step)

        steps = waiting.wait(job_id, timeout_s, time.monotonic, registered=registered, begun_s=begun_s)
        try:
            outcome = drive_blocking(steps, do)
            watched = False
            return outcome
        finally:
            if watched:
                with suppress(BrokerUnavailableError):  # the registration goes with the job's end
                    self.run(client.unwatch(self.keys, job_id, nonce, 0))

    def _await_message(self, ear: Ear, job_id: str, until_s: float) -> Outcome | None:
        while (left_s := until_s - time.monotonic()) > 0:
            message = ear.next_message(left_s)
            if message is None:
                return None
            raw_id, _, raw = message.partition(b"\n")
            if raw_id.decode() == job_id:
                return decode(raw)
        return None

    def cancel(self, job_id: str) -> bool:
        return self.run(client.cancel(self.keys, job_id)) != 0

    def close(self) -> None:
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
            lookout, self._lookout = self._lookout, None
        for pool in pools:
            pool.disconnect()
        if lookout is not None:
            lookout.stop()
