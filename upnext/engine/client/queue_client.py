"""What a producer or a waiter asks of the broker, on asyncio. One QueueClient belongs to one loop; `sync_client` is its blocking twin.

Concurrent submits of one turn of the loop leave in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any

import orjson

from upnext.core import entry
from upnext.core.batches import batches
from upnext.core.keys import Keys
from upnext.core.outcome import Outcome, decode
from upnext.core.submission import Submission
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import client, worker
from upnext.engine.calls.client import Answer
from upnext.engine.client import waiting
from upnext.engine.client.waiting import (
    BATCH_JOBS,
    Await,
    Connect,
    Pause,
    Run,
    Sending,
    Step,
    Subscribe,
    Watch,
    check_payload,
    drive,
    settle,
    settle_event,
    size_of,
    uncertain,
)
from upnext.engine.contexts import none_of_a_job
from upnext.engine.redis.endpoint import Endpoint, parse_url
from upnext.engine.redis.lookout import Lookout
from upnext.engine.redis.places import Places
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import LostReplyError
from upnext.engine.redis.scripts import Call, T
from upnext.engine.redis.subscriber import Listener
from upnext.errors import (
    BrokerUnavailableError,
    QueueError,
)

log = logging.getLogger("upnext.engine")


def _wake(waiter: asyncio.Future[Outcome | None]) -> None:
    """End a wait without a message: what the broker has is read again."""
    if not waiter.done():
        waiter.set_result(None)


_Waiting = tuple[Submission, str | None, str, "asyncio.Future[Answer]"]
"""A submit on its way: the job, the channel of its waiter, the nonce of its key ('' without one), the future of its answer."""


class QueueClient:
    """Made per loop by `upnext.engine.client.per_loop`, or by a runtime for its own jobs."""

    def __init__(self, url: str, namespace: str = "default", *, name: str = "upnext-client") -> None:
        self.url = url
        self.endpoint: Endpoint = parse_url(url)
        self.keys = Keys(namespace)
        self._nonce = secrets.token_hex(8)
        self.link = Link(self.endpoint, name, lookout=Lookout(Places(self.endpoint), self.keys.slot))
        self._listener: Listener | None = None
        self._queue: list[_Waiting] = []
        self._flushing = False
        self._background = BackgroundTasks("upnext-client")
        self._waits: dict[str, list[asyncio.Future[Outcome | None]]] = {}
        self._registrations = 0
        self._early: dict[str, Outcome] = {}
        self._expecting = 0
        self.pid = os.getpid()
        self.closed = False
        self.lifespan_state: Any = None
        """Of a runtime's: what the lifespan of its worker yielded."""

    async def run(self, call: Call[T]) -> T:
        return await self.link.run(call)

    # --- submitting

    def submit(self, job: Submission) -> Coroutine[Any, Any, str]:
        """-> job id. Raises SubmitUncertain, DuplicateJobError, BrokerFullError, BrokerUnavailableError, PayloadTooLargeError."""
        return self._submit(job, None)

    async def submit_many(self, jobs: Sequence[Submission]) -> list[str]:
        """Up to 1,000 jobs a request. On an error the earlier thousands are queued; SubmitUncertain says that the last one may be."""
        return await drive(waiting.submit_many(self.keys, jobs, asyncio.get_running_loop().time), self._do)

    async def send(
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
        """One job for each handler. -> their ids. Raises DuplicateJobError when the key is held for every handler."""
        check_payload(event, payload)
        wire = self.link.live
        first: client.Sent | None = None
        if (
            wire is not None and parent_id is None and idempotency_key is None and trace is None and own is None
        ):  # the quick way, as for a submit
            try:
                first = client.sent(
                    await wire.send_packed(client.plain_send(self.keys, event, payload, known_handlers))
                )
            except LostReplyError as error:
                raise uncertain(error) from None
            except QueueError:
                pass
        if first is not None and not first.left:
            return settle_event(None, first.answers, "")
        meta = entry.Meta(parent_id=parent_id, root_id=root_id, trace=trace, own=own)
        clock = asyncio.get_running_loop().time
        sending = Sending(self.keys, event, payload, meta, idempotency_key, idempotency_ttl_s, clock)
        return await drive(sending.begin(known_handlers) if first is None else sending.go_on(first), self._do)

    async def _submit(self, job: Submission, reply_to: str | None) -> str:
        """The quick way: an XADD on the live connection. What needs the script, and whatever goes wrong, takes the slow way."""
        check_payload(job.task, job.payload)
        wire = self.link.live
        if wire is not None and (command := client.plain(self.keys, job, reply_to)) is not None:
            try:
                entry_id: bytes = await wire.send_packed(command)
                return f"{job.task}:{job.lane}{entry_id.decode()}"
            except LostReplyError as error:
                raise uncertain(error) from None
            except QueueError:  # it was refused (READONLY, MOVED, OOM …): it is not queued
                pass
        return await self._submit_with_others(job, reply_to)

    async def _submit_with_others(self, job: Submission, reply_to: str | None) -> str:
        """By the script, in one call for those of this turn of the loop; one that replaces another by a call of its own."""
        loop = asyncio.get_running_loop()
        if job.replace:
            return await drive(waiting.submit(self.keys, job, reply_to, loop.time), self._do)
        nonce = secrets.token_hex(8) if job.idempotency_key is not None else ""
        future: asyncio.Future[Answer] = loop.create_future()
        self._queue.append((job, reply_to, nonce, future))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, context=none_of_a_job())
        try:
            return settle(job.idempotency_key, await future, nonce)
        finally:
            del future  # it may hold an error, and the error this frame

    def _flush(self) -> None:
        """Jobs with a key go apart from those without: only they may be sent again."""
        self._flushing = False
        queue, self._queue = self._queue, []
        keyed, others = [item for item in queue if item[2]], [item for item in queue if not item[2]]
        for batch in (keyed, others):
            for part in batches(batch, lambda item: size_of(item[0]), BATCH_JOBS):
                self._background.start(self._submit_batch(part, repeatable=batch is keyed))

    @staticmethod
    def _give_up(batch: Sequence[_Waiting], error: BaseException) -> None:
        for *_, future in batch:
            if not future.done():
                if isinstance(error, asyncio.CancelledError):
                    future.cancel()
                else:
                    future.set_exception(error)

    async def _submit_batch(self, batch: Sequence[_Waiting], *, repeatable: bool) -> None:
        jobs, nonces = [(job, reply_to) for job, reply_to, _, _ in batch], [nonce for _, _, nonce, _ in batch]
        try:
            call = client.submit(self.keys, jobs, nonces)
            clock = asyncio.get_running_loop().time
            answers = await drive(waiting.submit_call(call, clock, repeatable=repeatable), self._do)
        except BaseException as error:  # every submitter gets it; a cancel goes on
            self._give_up(batch, error)
            del batch  # its futures hold the error, and the error this frame
            if not isinstance(error, Exception):
                raise
        else:
            for (*_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _do(self, step: Step) -> Any:
        """Do a step of a submit, or of a subscription."""
        match step:
            case Run(call):
                return await self.link.run(call)
            case Connect(by_s):
                async with asyncio.timeout_at(by_s):
                    return await self.link.wire()
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Subscribe():
                return await self._subscription().start()
            case _:
                raise TypeError(f"not a step of a submit: {step}")

    # --- waiting

    async def submit_and_wait(self, job: Submission, timeout_s: float | None) -> tuple[str, Outcome]:
        """Raises TimeoutError (its `job_id` says which job) and what submit and wait raise."""
        loop = asyncio.get_running_loop()
        await self._subscribe(waiting.subscribe_patience_s(timeout_s))
        self._expecting += 1
        try:
            job_id = await self._submit(job, self._nonce)
        finally:
            self._expecting -= 1
        early = self._early.pop(job_id, None)
        if not self._expecting:
            self._early.clear()
        if early is not None:
            return job_id, early
        return job_id, await self._wait(job_id, timeout_s, registered=True, begun_s=loop.time())

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Outcome:
        """How the job ended.

        Raises TimeoutError, JobNotFoundError, BrokerUnavailableError (only when the broker stays away beyond the timeout).
        """
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await self._subscribe(timeout_s)
        return await self._wait(job_id, timeout_s, registered=False, begun_s=begun_s)

    async def _wait(self, job_id: str, timeout_s: float | None, *, registered: bool, begun_s: float) -> Outcome:
        loop = asyncio.get_running_loop()
        woken = self._remember(job_id)
        watched = False

        async def do(step: Step) -> Any:
            nonlocal woken, watched
            match step:
                case Await(until_s):
                    timer = loop.call_later(max(0.0, until_s - loop.time()), _wake, woken)
                    try:
                        outcome = await woken
                    finally:
                        timer.cancel()
                    if outcome is None:
                        self._forget(job_id, woken)
                        woken = self._remember(job_id)
                    return outcome
                case Watch():
                    watched = True
                    self._registrations += 1
                    return await self.run(client.watch(self.keys, job_id, self._nonce, self._registrations))
                case _:
                    return await self._do(step)

        steps = waiting.wait(job_id, timeout_s, loop.time, registered=registered, begun_s=begun_s)
        try:
            outcome = await drive(steps, do)
            watched = False
            return outcome
        finally:
            self._forget(job_id, woken)
            if watched and not self._waits.get(job_id) and self.link.live is not None:
                self._background.start(self._unwatch(job_id, self._registrations))

    def _remember(self, job_id: str) -> asyncio.Future[Outcome | None]:
        """A future that the message of the job's end wakes."""
        woken: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._waits.setdefault(job_id, []).append(woken)
        return woken

    async def _unwatch(self, job_id: str, number: int) -> None:
        """Of the registrations so far: a wait that begins meanwhile keeps its own."""
        with contextlib.suppress(BrokerUnavailableError):  # the registration goes with the job's end
            await self.run(client.unwatch(self.keys, job_id, self._nonce, number))

    def _forget(self, job_id: str, future: asyncio.Future[Outcome | None]) -> None:
        waits = self._waits.get(job_id)
        if waits and future in waits:
            waits.remove(future)
            if not waits:
                del self._waits[job_id]

    async def _subscribe(self, patience_s: float | None) -> None:
        if self._listener is None or not self._listener.started:
            clock = asyncio.get_running_loop().time
            await drive(waiting.subscribe(patience_s, clock, self._is_closed), self._do)

    def _is_closed(self) -> bool:
        return self.closed

    def _subscription(self) -> Listener:
        if self._listener is None:
            self._listener = Listener(
                self.link, "upnext-ear", self.keys, [self.keys.reply(self._nonce)], self._on_message, self._reread
            )
        return self._listener

    def _on_message(self, _channel: str, data: bytes) -> None:
        raw_id, _, raw = data.partition(b"\n")
        job_id = raw_id.decode()
        waits = self._waits.get(job_id)
        if waits is None and not self._expecting:
            return
        outcome = decode(raw)
        if waits is None:
            self._early[job_id] = outcome
            return
        for future in waits:
            if not future.done():
                future.set_result(outcome)

    def _reread(self) -> None:
        for waits in self._waits.values():
            for future in waits:
                _wake(future)

    async def cancel(self, job_id: str) -> bool:
        """End a delayed or queued job as cancelled, ask a running one to end. -> False when it has ended, or is unknown."""
        return await self.run(client.cancel(self.keys, job_id)) != 0

    # --- a running job's own notes

    async def note(self, task: str, lane: str, entry_id: bytes, job_id: str, notes: dict[str, Any]) -> bool:
        """Keep `notes` (JSON) with the job; they replace what was there. -> whether the job is still held as this entry."""
        return await self.run(worker.note(self.keys, task, lane, entry_id, job_id, orjson.dumps(notes)))

    async def read_notes(self, job_id: str) -> dict[str, Any]:
        raw = await self.link.command("HGET", self.keys.notes, job_id)
        return orjson.loads(raw) if raw else {}

    async def aclose(self) -> None:
        self.closed = True
        await self._background.aclose()
        if self._listener is not None:
            await self._listener.aclose()
        await self.link.aclose()
