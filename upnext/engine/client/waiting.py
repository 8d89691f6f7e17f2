"""The one submit and the one wait of the clients: what comes next, without doing it.

Each is a generator of steps. A driver does a step and sends its result in, or throws the QueueError that it raised: `drive` on asyncio,
`drive_blocking` in plain threads. Both clients have the same steps, and differ in how they do one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from upnext.core import entry
from upnext.core.batches import batches
from upnext.core.keys import Keys
from upnext.core.outcome import Outcome
from upnext.core.submission import Submission
from upnext.engine.calls import client
from upnext.engine.calls.client import Answer, Held, Refused, Sent
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.replies import LostReplyError, read_error
from upnext.engine.redis.scripts import Call
from upnext.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DuplicateJobError,
    JobNotFoundError,
    PayloadTooLargeError,
    QueueError,
    SubmitUncertain,
)

log = logging.getLogger("upnext.engine")

PAYLOAD_CAP_BYTES = 1024 * 1024
BATCH_JOBS = 1000
SPECIAL_BYTES = 2 * 1024
"""What a job that is more than a stream entry counts besides its payload."""
SUBMIT_PATIENCE_S = 5.0
"""How long a submit goes on trying to reach a broker that is away."""
REREAD_S = 5.0
"""Poll interval of waiters: the wake-up is only a hint."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connect:
    """Have a connection until `by_s` (the client's clock). Raises TimeoutError, BrokerUnavailableError."""

    by_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Run the call -> its result."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to the waiter's channel."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Register the waiter with the job -> where the job stands (`calls.client.Standing`)."""


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until `until_s` (the client's clock) for the message with the job's outcome -> Outcome, or None."""

    until_s: float


Step = Connect | Run | Pause | Subscribe | Watch | Await
Steps = Generator[Step, Any, T]
Clock = Callable[[], float]


async def drive(steps: Steps[T], do: Callable[[Step], Awaitable[Any]]) -> T:
    """Do the steps on asyncio."""
    try:
        step = next(steps)
        while True:
            try:
                result = await do(step)
            except (QueueError, TimeoutError) as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()


def drive_blocking(steps: Steps[T], do: Callable[[Step], Any]) -> T:
    """Do the steps in a thread."""
    try:
        step = next(steps)
        while True:
            try:
                result = do(step)
            except (QueueError, TimeoutError) as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()


# --- submitting


def check_payload(name: str, payload: bytes) -> None:
    if len(payload) > PAYLOAD_CAP_BYTES:
        raise PayloadTooLargeError(
            f"the arguments of {name} are {len(payload):,} bytes as JSON, over the cap of {PAYLOAD_CAP_BYTES:,}: "
            "store the data elsewhere and pass a reference"
        )


def size_of(job: Submission) -> int:
    """What it takes of a call: one with a delay, a key or a queue_ttl takes the broker several times as long."""
    if job.delay_s is None and job.at_us is None and job.queue_ttl_s is None and job.idempotency_key is None:
        return len(job.payload)
    return len(job.payload) + SPECIAL_BYTES


def submit_call(call: Call[T], clock: Clock, *, repeatable: bool) -> Steps[T]:
    """Retry while nothing was sent; send a call whose reply was lost again only where a key settles it, for as long again."""
    deadline_s = clock() + SUBMIT_PATIENCE_S
    backoff = Backoff()
    lost = False
    last: BrokerUnavailableError | None = None
    while True:
        try:
            try:
                yield Connect(deadline_s)
            except TimeoutError:
                raise last or BrokerUnavailableError("the broker gives no reply") from None
            return (yield Run(call))
        except BrokerRefusedError:
            raise
        except BrokerUnavailableError as error:
            last = error
            if not lost and isinstance(error, LostReplyError):
                lost = True
                deadline_s = clock() + SUBMIT_PATIENCE_S
            if lost and (not repeatable or clock() > deadline_s):
                raise uncertain(error) from None
            if clock() > deadline_s:
                raise
        yield Pause(backoff.next_s())


def submit(keys: Keys, job: Submission, reply_to: str | None, clock: Clock) -> Steps[str]:
    """-> job id."""
    nonce = secrets.token_hex(8)
    call = client.replace(keys, job, reply_to, nonce) if job.replace else client.submit(keys, [(job, reply_to)], nonce)
    [answer] = yield from submit_call(call, clock, repeatable=job.idempotency_key is not None)
    return settle(job.idempotency_key, answer, nonce)


def submit_many(keys: Keys, jobs: Sequence[Submission], clock: Clock) -> Steps[list[str]]:
    """-> job ids, in the order of `jobs`."""
    for job in jobs:
        check_payload(job.task, job.payload)
    done: list[str] = []
    for batch in batches(jobs, size_of, BATCH_JOBS):
        nonce = secrets.token_hex(8)
        call = client.submit(keys, [(job, None) for job in batch], nonce)
        answers = yield from submit_call(call, clock, repeatable=all(job.idempotency_key for job in batch))
        done += [settle(job.idempotency_key, answer, nonce) for job, answer in zip(batch, answers, strict=True)]
    return done


@dataclass(frozen=True, slots=True)
class Sending:
    """An event on its way. Its handlers get their jobs in one call, or in several where they are many or the payload is large.

    `nonce` tells this send from others of the same key, and a job that a call made before its reply was lost from one that is to be made.
    """

    keys: Keys
    event: str
    payload: bytes
    meta: entry.Meta
    idempotency_key: str | None
    idempotency_ttl_s: float | None
    clock: Clock
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def call(self, handlers: Sequence[str | bytes], *, goes_on: bool = False) -> Call[Sent]:
        return client.send(
            self.keys,
            self.event,
            self.payload,
            handlers,
            meta=self.meta,
            idempotency_key=self.idempotency_key,
            idempotency_ttl_s=self.idempotency_ttl_s,
            nonce=self.nonce,
            goes_on=goes_on,
        )

    def begin(self, known_handlers: Sequence[str]) -> Steps[list[str]]:
        """-> ids of the jobs, one for each handler."""
        first = yield from submit_call(
            self.call(known_handlers), self.clock, repeatable=self.idempotency_key is not None
        )
        return (yield from self.go_on(first))

    def go_on(self, first: Sent) -> Steps[list[str]]:
        """Send to those that the first call left. Raises SubmitUncertain where that ends half way."""
        answers, left = first.answers, first.left
        while left:
            try:
                part = yield from submit_call(self.call(left, goes_on=True), self.clock, repeatable=True)
            except QueueError as error:
                raise SubmitUncertain(
                    f"{error}; the event {self.event} has reached {len(answers)} of its {len(answers) + len(left)} handlers."
                    " Send with an idempotency key to make a repeat safe"
                ) from None
            answers, left = [*answers, *part.answers], part.left
        return settle_event(self.idempotency_key, answers, self.nonce)


def settle(key: str | None, answer: Answer, nonce: str) -> str:
    """Return the job id. Raises DuplicateJobError unless the key's holder is this very submit, sent twice."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, Refused):
        raise read_error(answer.text)
    if answer.nonce == nonce:
        return answer.job_id
    raise DuplicateJobError(key or "", answer.job_id)


def settle_event(key: str | None, answers: Sequence[Answer], nonce: str) -> list[str]:
    """Return the ids of the jobs that were made. Raises DuplicateJobError when every handler's key was held by other submits."""
    made: list[str] = []
    held: Held | None = None
    refused: Refused | None = None
    for answer in answers:
        if isinstance(answer, str):
            made.append(answer)
        elif isinstance(answer, Refused):
            refused = answer
        elif answer.nonce == nonce:
            made.append(answer.job_id)
        else:
            held = answer
    if refused is not None:
        log.error("a handler of an event gets no job: %s", refused.text)
    if not made and held is not None:
        raise DuplicateJobError(key or "", held.job_id)
    if not made and refused is not None:
        raise read_error(refused.text)
    return made


def uncertain(error: BaseException) -> SubmitUncertain:
    return SubmitUncertain(
        f"{error}; the job may or may not be queued. Submit with an idempotency key to make a repeat safe"
    )


# --- waiting


def subscribe(patience_s: float | None, clock: Clock, closed: Callable[[], bool]) -> Steps[Any]:
    """Go on trying while the broker is away, for so long (None: for ever), and until the client is closed."""
    deadline_s = None if patience_s is None else clock() + patience_s
    backoff = Backoff()
    while True:
        try:
            return (yield Subscribe())
        except BrokerRefusedError:
            raise
        except BrokerUnavailableError:
            if closed() or (deadline_s is not None and clock() >= deadline_s):
                raise
        yield Pause(backoff.next_s())


def subscribe_patience_s(timeout_s: float | None) -> float:
    """For a submit that is to be waited for."""
    return SUBMIT_PATIENCE_S if timeout_s is None else min(SUBMIT_PATIENCE_S, timeout_s)


def wait(job_id: str, timeout_s: float | None, clock: Clock, *, registered: bool, begun_s: float) -> Steps[Outcome]:
    """Wait for the job's end. `registered`: the job was submitted with this waiter.

    Raises TimeoutError (its `job_id` says which job), JobNotFoundError, BrokerUnavailableError (only when the broker stays away beyond the
    timeout).
    """
    deadline_s = None if timeout_s is None else begun_s + timeout_s
    backoff = Backoff()
    while True:
        if not registered:
            try:
                standing = yield Watch()
            except BrokerRefusedError:
                raise
            except BrokerUnavailableError:
                if deadline_s is not None and clock() >= deadline_s:
                    raise
                yield Pause(backoff.next_s())
                continue
            backoff.reset()
            if standing.outcome is not None:
                return standing.outcome
            if not standing.known:
                raise JobNotFoundError(job_id)
        registered = False
        reread_s = clock() + REREAD_S
        outcome: Outcome | None = yield Await(reread_s if deadline_s is None else min(reread_s, deadline_s))
        if outcome is not None:
            return outcome
        if deadline_s is not None and clock() >= deadline_s:
            error = TimeoutError(f"job {job_id} did not end within {timeout_s:g} s")
            error.job_id = job_id  # type: ignore[attr-defined]
            raise error
