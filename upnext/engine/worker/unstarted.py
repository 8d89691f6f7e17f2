"""What becomes of fetched entries that don't start here: handed back, cancelled, or kept as dead letters."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from upnext.core.batches import CALL_BYTES
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome, encode
from upnext.engine.attempt import Attempt
from upnext.engine.calls import worker as calls
from upnext.engine.calls.worker import Finish
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.replies import ReplyError
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.membership import Membership
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.engine")

Entry = tuple[str, str, bytes]
"""(task, letter of the lane, entry id)"""
MOST_HANDED_BACK = 200
"""Most entries that one call hands back."""


class Unstarted:
    """`finisher` records the ends; `executor` knows what is held and what runs."""

    def __init__(self, broker: QueueClient, membership: Membership, executor: Executor, finisher: Finisher) -> None:
        self._broker, self._membership = broker, membership
        self._executor, self._finisher = executor, finisher

    def known_entries(self) -> set[Entry]:
        """All that is held, runs, or ended without confirmation here."""
        attempts = [*self._executor.running, *(item[0] for item in self._executor.held)]
        return {(a.spec.name, a.lane, a.entry_id) for a in attempts} | self._finisher.unconfirmed_entries()

    @property
    def unconfirmed(self) -> int:
        """Ends that the broker has not confirmed."""
        return self._finisher.unconfirmed

    def cancel(self, job_id: str) -> None:
        """End a job that runs or is held here as cancelled."""
        if self._executor.cancel(job_id):
            return
        held = self._executor.unheld(lambda attempt, _: attempt.job_id == job_id)
        if not held:
            self._executor.cancel_later(job_id)
        for attempt in held:
            outcome = Outcome(
                JobStatus.CANCELLED,
                attempt=attempt.attempt,
                crashes=attempt.crashes,
                finished_ms=time.time_ns() // 1_000_000,
                parent_id=attempt.parent_id,
                root_id=attempt.root_id,
                labels=attempt.labels or None,
                via=attempt.via,
                error=ErrorInfo("Cancelled", "cancelled"),
                reason=FailureReason.CANCELLED,
            )
            self._finisher.finish(
                Finish(
                    attempt.spec.name,
                    attempt.lane,
                    attempt.entry_id,
                    JobStatus.CANCELLED,
                    encode(outcome),
                    attempt.meta,
                )
            )

    def keep_as_dead_letter(self, task: str, lane: str, entry_id: bytes, reason: str) -> None:
        """End an entry that is not a job, so that it stops coming back and an operator can look at it."""
        log.error("entry %s of %s is not a job (%s): kept as a dead letter", entry_id.decode(), task, reason)
        outcome = Outcome(JobStatus.FAILED, error=ErrorInfo("NotAJob", reason), reason=FailureReason.UNKNOWN)
        self._finisher.finish(
            Finish(task, lane, entry_id, JobStatus.FAILED, encode(outcome), None, True, letter_bytes=CALL_BYTES)
        )

    async def hand_back(self, attempts: Sequence[Attempt]) -> None:
        """Give unstarted jobs to other workers. The broker asked this worker to cancel some of them: cancel those again."""
        await self.give_up([(attempt.spec.name, attempt.lane, attempt.entry_id) for attempt in attempts])
        ids = [attempt.job_id for attempt in attempts]
        asked = await self._broker.link.command("HMGET", self._broker.keys.cancel, *ids)
        for job_id, at in zip(ids, asked, strict=True):
            if at is not None:
                await self._broker.cancel(job_id)

    async def give_up(self, jobs: Sequence[Entry]) -> None:
        """Hand entries back, so many a call as the broker takes."""
        while jobs:
            call = calls.hand_back(self._broker.keys, self._membership.epoch, jobs[:MOST_HANDED_BACK])
            _, looked_at = await self._broker.run(call)
            jobs = jobs[looked_at:]

    async def hand_back_held(self) -> None:
        """Hand back all that is held, however long the broker is away."""
        held = self._executor.unheld(lambda _attempt, _held_s: True)
        if not held:
            return
        backoff = Backoff()
        while True:
            try:
                await self.hand_back(held)
                return
            except BrokerUnavailableError:
                await backoff.sleep()
            except ReplyError as error:
                self._membership.lost(str(error))
                return
