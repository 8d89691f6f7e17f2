"""Records how attempts end: done, failed for good, to be retried, dead. What a failure means is decided in `failures`."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Any

import orjson

from upnext.core import outcome as outcomes
from upnext.core.entry import Meta
from upnext.core.outcome import Cost, ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.core.retry import RetryIn
from upnext.engine import tracing
from upnext.engine.attempt import Attempt
from upnext.engine.calls.worker import Finish, PutBack
from upnext.engine.cost import LONG_MS, CpuClock, Meter
from upnext.engine.worker.failures import (
    JobCancelled,
    JobTimeout,
    PoolCrash,
    RemoteError,
    classify_error,
    error_info,
    exc_info_of,
    headline,
    outcome_of,
    redacted,
    retry_decision,
)
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.host import Host
from upnext.engine.worker.membership import Membership

log = logging.getLogger("upnext.worker")

CLEARED: dict[str, Any] = {"handed_back": False, "expires_ms": None, "suspect": False, "suspect_of": None}
"""What holds for an attempt and not for the next one of the same job. One that ended by itself has crashed nothing."""


class Results:
    """Gives each end to `finisher`, and the headline of each failure to `host`."""

    def __init__(
        self, membership: Membership, finisher: Finisher, host: Host, rng: random.Random, cpu_clock: CpuClock
    ) -> None:
        self._membership, self._finisher, self._host, self._rng = membership, finisher, host, rng
        self._cpu_clock = cpu_clock

    def done(self, attempt: Attempt, begun_ns: int, value: bytes) -> None:
        """`value`: the encoded value."""
        if attempt.given_up:
            return  # recorded already
        consumer, meta = self._membership.consumer, attempt.meta
        begun_ms, ended_ms = begun_ns // 1_000_000, time.time_ns() // 1_000_000
        if meta is None and not attempt.noted and ended_ms - begun_ms < LONG_MS:
            # what `outcome.encode` would say, without the detour: this is the hot path
            tail = b'"b":%d,"f":%d,"w":"%s"}' % (begun_ms, ended_ms, consumer.encode())
            raw = b'{"s":"done",' + tail if value == b"null" else b'{"s":"done","v":' + value + b"," + tail
        else:
            raw = outcomes.encode(
                outcome_of(attempt, JobStatus.DONE, consumer, begun_ns, value=value, cost=self._cost(attempt, begun_ns))
            )
        job = Finish(attempt.spec.name, attempt.lane, attempt.entry_id, JobStatus.DONE, raw, meta)
        job.cache = attempt.cached
        if meta is not None or attempt.noted:
            job.ran = begun_ms, ended_ms
            job.notes = b"" if attempt.noted else None
        self._finisher.finish(job)

    def expired(self, attempt: Attempt) -> None:
        late = ErrorInfo("Expired", "it did not start within its queue_ttl")
        self._report_failure(attempt, late)
        self._end(attempt, self._failure(attempt, None, late, FailureReason.EXPIRED, cause="expired"))

    def cancelled_before_start(self, attempt: Attempt) -> None:
        self._end(attempt, self._failure(attempt, None, error_info(JobCancelled()), FailureReason.CANCELLED))

    def _failure(
        self,
        attempt: Attempt,
        begun_ns: int | None,
        error: ErrorInfo,
        reason: FailureReason,
        *,
        cause: str | None = None,
    ) -> Outcome:
        """begun_ns: None for a job that never started."""
        status = JobStatus.CANCELLED if reason is FailureReason.CANCELLED else JobStatus.FAILED
        cost = None if begun_ns is None else self._cost(attempt, begun_ns)
        consumer = self._membership.consumer
        return outcome_of(attempt, status, consumer, begun_ns, error=error, reason=reason, cause=cause, cost=cost)

    def _cost(self, attempt: Attempt, begun_ns: int) -> Cost | None:
        """None for what took little."""
        if time.time_ns() // 1_000_000 - begun_ns // 1_000_000 < LONG_MS or attempt.given_up:
            return None
        if attempt.meter is None:  # it ends in its first step
            attempt.meter = Meter(self._cpu_clock)
            attempt.meter.step(begun_ns)
        return attempt.meter.cost()

    def _end(self, attempt: Attempt, outcome: Outcome, *, dead_letter: bool = False) -> None:
        if attempt.given_up:
            return  # recorded already
        raw = outcomes.encode(outcome)
        job = Finish(attempt.spec.name, attempt.lane, attempt.entry_id, outcome.status, raw, attempt.meta, dead_letter)
        if outcome.begun_ms is not None and outcome.finished_ms is not None:
            job.ran = outcome.begun_ms, outcome.finished_ms
        if attempt.noted:
            job.notes = _notes(attempt) if dead_letter else b""
        if dead_letter:
            job.letter_bytes = attempt.payload_bytes + len(job.notes or b"")
        self._finisher.finish(job)

    def failed(self, attempt: Attempt, begun_ns: int, error: BaseException) -> None:
        """Record what `error` means for the job: its end, or another attempt. Nothing for one that was given up."""
        if attempt.given_up:
            return
        error = classify_error(attempt, error)
        if isinstance(error, JobCancelled):
            self._end(attempt, self._failure(attempt, begun_ns, error_info(error), FailureReason.CANCELLED))
            return
        info = error_info(error)
        if attempt.redacts is not None:
            info = redacted(info, attempt.redacts, attempt.spec.options.redact)
        if attempt.span is not None and tracing.spans is not None:
            tracing.spans.failed(attempt.span, info)
        self._report_failure(attempt, info)
        if isinstance(error, PoolCrash):
            self._crashed(attempt, begun_ns, error)
            return
        if isinstance(error, RemoteError):
            decision = None if error.delay_s is None else RetryIn(error.delay_s)
        else:
            decision = attempt.verdict or retry_decision(attempt, error, self._rng)
        if isinstance(decision, RetryIn):
            log.info(
                "%s failed (attempt %d of %s), again in %.1f s: %s",
                attempt.job_id, attempt.attempt, attempt.max_attempts or "any number", decision.delay_s, info,
            )  # fmt: skip
            self._put_back(attempt, decision.delay_s, attempt=attempt.attempt + 1)
            return
        reason = FailureReason.TIMEOUT if isinstance(error, JobTimeout) else FailureReason.ERROR
        # An exception shows what its text does: where that is not to be shown, the record has the text alone.
        exc_info = None if attempt.redacts is not None else exc_info_of(error, info)
        log.error(
            "%s failed for good (attempt %d of %s): %s%s",
            attempt.job_id, attempt.attempt, attempt.max_attempts or "any number", info,
            "" if exc_info else f"\n{info.traceback}".rstrip(), exc_info=exc_info,
            extra={"job_id": attempt.job_id, "task": attempt.spec.name, "attempt": attempt.attempt},
        )  # fmt: skip
        self._end(attempt, self._failure(attempt, begun_ns, info, reason), dead_letter=True)

    def _report_failure(self, attempt: Attempt, error: ErrorInfo) -> None:
        self._host.failed(attempt.job_id, attempt.spec.name, headline(error))

    def _crashed(self, attempt: Attempt, begun_ns: int, crash: PoolCrash) -> None:
        """Record that its pool process died: a crash of this job and no other. Not an attempt; at max_crashes the job is dead."""
        crashes = attempt.crashes + 1
        if crashes < attempt.spec.options.max_crashes:
            log.error("%s crashed its pool process (%s), crash %d: it runs again", attempt.job_id, crash.cause, crashes)
            self._put_back(attempt, 0.0, crashes=crashes, cause=crash.cause)
            return
        log.error("%s is buried after %d crashes, the last: %s", attempt.job_id, crashes, crash.cause)
        attempt.meta = replace(attempt.meta or Meta(), crashes=crashes, cause=crash.cause)
        error = ErrorInfo("WorkerCrash", f"buried after {crashes} worker crashes, the last: {crash.cause}")
        outcome = outcome_of(
            attempt,
            JobStatus.DEAD,
            self._membership.consumer,
            begun_ns,
            error=error,
            reason=FailureReason.CRASH,
            cause=crash.cause,
        )
        self._end(attempt, outcome, dead_letter=True)

    def _put_back(self, attempt: Attempt, delay_s: float, /, **changes: Any) -> None:
        meta = replace(attempt.meta or Meta(), job_id=attempt.job_id, lane=None, **(CLEARED | changes))
        delay_ms = max(0, round(delay_s * 1000))
        home = attempt.home_lane
        self._host.retried()
        self._finisher.put_back(
            PutBack(
                attempt.spec.name,
                attempt.lane,
                attempt.entry_id,
                attempt.job_id,
                home,
                meta,
                delay_ms,
                _notes(attempt),
            )
        )


def _notes(attempt: Attempt) -> bytes:
    """What it has noted: the newest may not be written yet, and is not once its entry is gone."""
    return orjson.dumps(attempt.state) if attempt.noted else b""
