"""Tells the broker how jobs ended: all that one turn of the loop ends goes in one request, kept until the broker has confirmed it.

An end whose reply was lost is sent again: the fence makes a repeat harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from upnext.core.batches import CALL_BYTES, batches
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.core.recent import Recent
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import worker
from upnext.engine.calls.worker import Finish, PutBack
from upnext.engine.contexts import none_of_a_job
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import EpochError, NoScriptError
from upnext.engine.redis.scripts import Call
from upnext.engine.worker.failures import cancelled_end
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.times import TimesKept
from upnext.errors import BrokerUnavailableError, QueueError

log = logging.getLogger("upnext.engine")

BATCH_JOBS = 500
MOST_OPEN = 2
"""With so many requests unconfirmed, further ends wait for a reply: many jobs that each wait a little would make a request each."""
KEPT_S, KEPT_JOBS, KEPT_BYTES = 60.0, 10_000, 4 * 1024 * 1024
"""Confirmed ends are kept for so long, and no more than this, in case the broker goes back in time."""
AGAIN_JOBS, AGAIN_BYTES = 200, 1024 * 1024


class Finisher:
    """Writes in the name of `membership`, and reports to it when the broker has other data."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        result_ttl_ms: Mapping[str, int],
        membership: Membership,
        times: TimesKept,
    ) -> None:
        self._times = times
        self._link, self._keys, self._ttl_ms, self._membership = link, keys, result_ttl_ms, membership
        self._ends: list[Finish] = []
        self._backs: list[PutBack] = []
        self._scheduled = False
        self._background = BackgroundTasks("upnext-finish")
        self.unconfirmed = 0
        """Ends that the broker has not confirmed yet."""
        self._open: dict[int, list[Finish] | list[PutBack]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._confirmed: Recent[tuple[Call[list[Finish]], list[Finish]]] = Recent(KEPT_S, KEPT_JOBS, KEPT_BYTES)
        """Calls, and the jobs in them that were not ours."""

    def finish(self, job: Finish) -> None:
        self._ends.append(job)
        self._schedule()

    def put_back(self, job: PutBack) -> None:
        self._backs.append(job)
        self._schedule()

    async def flushed(self) -> None:
        """Return when everything is confirmed."""
        await self._idle.wait()

    def unconfirmed_entries(self) -> set[tuple[str, str, bytes]]:
        """(task, lane, entry id) of all that ended here and is not confirmed."""
        batches: list[list[Finish] | list[PutBack]] = [*self._open.values(), self._ends, self._backs]
        return {(job.task, job.lane, job.entry_id) for batch in batches for job in batch}

    async def aclose(self) -> None:
        """Give up on what could not be confirmed; those jobs run again elsewhere."""
        await self._background.aclose()

    def _schedule(self) -> None:
        self.unconfirmed += 1
        self._idle.clear()
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush, context=none_of_a_job())

    def flush(self) -> None:
        """Send what has ended so far now, not at the end of this turn."""
        if self._ends or self._backs:
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if len(self._open) >= MOST_OPEN and len(self._ends) < BATCH_JOBS:
            return  # the next confirmation sends them, in one request with what ends until then
        ends, self._ends = self._ends, []
        start = 0
        while start < len(ends):
            size = stop = 0
            for stop in range(start, min(start + BATCH_JOBS, len(ends))):
                size += len(ends[stop].outcome) + ends[stop].letter_bytes
                if size > CALL_BYTES:
                    break
            batch = ends[start : stop + 1]
            self._open[id(batch)] = batch
            self._send_ends(batch)
            start = stop + 1
        if self._backs:
            backs, self._backs = self._backs, []
            self._open[id(backs)] = backs
            self._own(self._settle_backs(backs), backs)

    def _finish_call(self, batch: list[Finish], some: list[Finish] | None = None) -> Call[list[Finish]]:
        now_ms = time.time_ns() // 1_000_000
        return worker.finish(self._keys, self._membership.epoch, batch, self._ttl_ms, now_ms, some)

    def _send_ends(self, batch: list[Finish]) -> None:
        """The quick way: written at once on the live connection, no task; whatever goes wrong takes the slow way."""
        wire = self._link.live
        if wire is None:
            self._own(self._settle_ends(batch), batch)
            return
        some: list[Finish] = []
        call = self._finish_call(batch, some)
        self._times.note(some, len(batch))
        try:
            reply = wire.start(call)
        except BrokerUnavailableError:
            self._own(self._settle_ends(batch), batch)
            return

        def confirmed(reply: asyncio.Future[Any]) -> None:
            if reply.cancelled() or reply.exception() is not None:
                if not reply.cancelled() and not isinstance(reply.exception(), NoScriptError):
                    log.debug("finish: %s", reply.exception())
                self._own(self._settle_ends(batch), batch)
                return
            self._note_confirmed(call, batch, call.parse(reply.result()))
            self._confirm(batch)

        reply.add_done_callback(confirmed)

    async def _settle_ends(self, batch: list[Finish]) -> None:
        async def once() -> None:
            call = self._finish_call(batch)
            self._note_confirmed(call, batch, await self._link.run(call))

        await self._until_done(once, "the end", len(batch))

    async def _settle_backs(self, batch: list[PutBack]) -> None:
        rest = batch

        async def once() -> None:
            nonlocal rest
            while rest:
                part = next(batches(rest, lambda job: len(job.notes), BATCH_JOBS))
                answers = await self._link.run(worker.retry(self._keys, self._membership.epoch, part))
                for job, answer in zip(rest, answers, strict=False):
                    if answer == worker.CANCELLED:
                        self.finish(cancelled_end(job, self._membership.consumer))
                    elif answer == worker.STALE:
                        log.debug("%s was taken over by another worker while it ran here", job.job_id)
                rest = rest[len(answers) :]

        await self._until_done(once, "the retry", len(batch))

    async def _until_done(self, once: Callable[[], Awaitable[None]], what: str, count: int) -> None:
        backoff = Backoff()
        while True:
            try:
                await once()
                return
            except EpochError:
                log.warning("%s of %d job(s) is not recorded: the broker lost its data", what, count)
                self._membership.lost("EPOCH the broker has another data set")
                return
            except BrokerUnavailableError:
                pass
            except QueueError as error:
                log.error("%s of %d job(s) was refused by the broker: %s", what, count, error)
                return
            await backoff.sleep()

    async def finish_again(self) -> int:
        """After the broker went back in time: what had ended here ends again. -> how many jobs were there again.

        Raises what a call raises.
        """
        kept = self._confirmed.batches(time.monotonic())
        ends = [end for call, stale in kept for end in worker.ended_in(call, {job.entry_id for job in stale})]
        count = start = 0
        while start < len(ends):
            size, stop = 0, start
            while stop < len(ends) and stop - start < AGAIN_JOBS and size <= AGAIN_BYTES:
                size += len(ends[stop].outcome)
                stop += 1
            count += await self._link.run(
                worker.finish_again(self._keys, self._membership.epoch, ends[start:stop], self._ttl_ms)
            )
            start = stop
        return count

    def _note_confirmed(self, call: Call[list[Finish]], batch: list[Finish], stale: list[Finish]) -> None:
        size = 0
        for job in batch:
            size += len(job.outcome)
        self._confirmed.add((call, stale), len(batch), size, time.monotonic())
        for job in stale:
            if job.status is not JobStatus.CANCELLED:
                log.debug(
                    "an end of %s (%s) came too late: another worker has the job", job.task, job.entry_id.decode()
                )

    def _own(self, work: Any, batch: list[Finish] | list[PutBack]) -> None:
        async def do() -> None:
            try:
                await work
            finally:
                self._confirm(batch)

        self._background.start(do())

    def _confirm(self, batch: list[Finish] | list[PutBack]) -> None:
        self._open.pop(id(batch), None)
        self.unconfirmed -= len(batch)
        self.flush()
        if not self.unconfirmed:
            self._idle.set()
