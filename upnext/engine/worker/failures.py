"""How attempts end: what an exception means for the job, and the outcome that is recorded."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from upnext.core import outcome as outcomes
from upnext.core import own_options, redaction
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.core.retry import GiveUp, RetryIn, Why, decide
from upnext.engine import secrets
from upnext.engine.attempt import Attempt
from upnext.engine.calls.worker import Finish, PutBack
from upnext.errors import EncodingError, InvalidArgumentsError

TRACEBACK_CAP = 16_000
HEADLINE_CAP_BYTES = 200
MESSAGE_CAP = 4_000

_OURS = (
    "upnext.engine.worker.executor",
    "upnext.engine.worker.continuation",
    "upnext.engine.worker.middleware",
    "upnext.engine.worker.threads",
    "upnext.engine.worker.pool_process",
)
"""Modules whose frames stand between the engine and the user's code, and say nothing to a user."""
_QUOTE_ARGUMENTS = frozenset(
    f"{kind.__module__}.{kind.__qualname__}" for kind in (InvalidArgumentsError, EncodingError)
)


class JobTimeout(TimeoutError):  # noqa: N818 - an end, not a fault of the engine
    """The job ran longer than its timeout."""


class JobCancelled(Exception):  # noqa: N818 - an end, not an error
    """A client cancelled the job."""


class PoolCrash(Exception):  # noqa: N818 - says what happened to the process, not what the code did wrong
    """The pool process died while it ran the job. `cause`: signal:SIGSEGV, exit:3."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"its pool process died ({cause})")
        self.cause = cause


class RemoteError(Exception):
    """An exception of a job in a pool process, as text. `delay_s`: when the job is to run again, None for not at all."""

    def __init__(self, kind: str, message: str, trace: str, delay_s: float | None) -> None:
        super().__init__(message)
        self.kind, self.trace, self.delay_s = kind, trace, delay_s


def classify_error(attempt: Attempt, error: BaseException) -> BaseException:
    """Return the error as it is recorded: what follows a timeout or a cancel is that timeout or cancel; nothing may end the worker."""
    if attempt.timed_out:
        return error if isinstance(error, JobTimeout) else _timeout(attempt, error)
    if attempt.cancelled:
        return JobCancelled()
    if isinstance(error, asyncio.CancelledError):
        return RuntimeError("the task raised CancelledError, though it was not cancelled")
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return RuntimeError(f"the task raised {type(error).__name__}: a task can't end its worker")
    return error


def _timeout(attempt: Attempt, error: BaseException) -> JobTimeout:
    text = f"ran longer than its timeout of {attempt.options.timeout_s:g} s"
    if not isinstance(error, asyncio.CancelledError):
        text += f", and then raised {type_name(error)}: {text_of(error)}"
    return JobTimeout(text)


def check_heeded(attempt: Attempt) -> None:
    """Raise CancelledError for an attempt that returned although it had to end: the clock, or the client that cancelled it, decides."""
    if attempt.timed_out or attempt.cancelled:
        raise asyncio.CancelledError


def is_permanent(error: BaseException) -> bool:
    """Whether no further attempt can mend this error: the arguments or the result don't fit the code."""
    return isinstance(error, InvalidArgumentsError | EncodingError)


def retry_decision(attempt: Attempt, error: BaseException, rng: random.Random) -> RetryIn | GiveUp:
    """Decide whether there is another attempt after this error, and when."""
    if is_permanent(error):
        return GiveUp(Why.NOT_RETRIED)
    return decide(attempt.options, attempt.attempt, error, rng)


def error_info(error: BaseException) -> ErrorInfo:
    """Return the error as text, as it is kept."""
    if isinstance(error, JobTimeout):
        return ErrorInfo("TimeoutError", str(error))
    if isinstance(error, JobCancelled):
        return ErrorInfo("Cancelled", "cancelled")
    if isinstance(error, RemoteError):
        return ErrorInfo(error.kind, str(error), error.trace)
    if isinstance(error, PoolCrash):
        return ErrorInfo("WorkerCrash", str(error))
    return ErrorInfo(type_name(error), text_of(error), trace_of(error))


def redacted(error: ErrorInfo, payload: bytes, names: Sequence[str]) -> ErrorInfo:
    """Return the error without the values of these arguments."""

    def hide(text: str) -> str:
        return redaction.text_shown(text, payload, names)

    return replace(
        error, message=hide(error.message), traceback=hide(error.traceback) if error.traceback else error.traceback
    )


def headline(error: ErrorInfo) -> str:
    """`TYPE: first line of its message`, at most HEADLINE_CAP_BYTES, for those that follow events. Of our own errors that quote an
    argument only the type.
    """
    message = error.message.strip()
    first = message.splitlines()[0] if message and error.type not in _QUOTE_ARGUMENTS else ""
    line = f"{error.type}: {first}" if first else error.type
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    raw = line.encode("utf-8", "replace")
    return line if len(raw) <= HEADLINE_CAP_BYTES else raw[: HEADLINE_CAP_BYTES - 3].decode("utf-8", "ignore") + "…"


_PROGRESS = ("progress", "message")
"""Of what a job noted, this stays with its outcome."""


def outcome_of(attempt: Attempt, status: JobStatus, consumer: str, begun_ns: int | None, **more: Any) -> Outcome:
    return Outcome(
        status=status,
        attempt=attempt.attempt,
        begun_ms=None if begun_ns is None else begun_ns // 1_000_000,
        finished_ms=time.time_ns() // 1_000_000,
        worker=consumer,
        parent_id=attempt.parent_id,
        root_id=attempt.root_id,
        crashes=attempt.crashes,
        labels=attempt.labels or None,
        via=attempt.via,
        progress={name: attempt.state[name] for name in _PROGRESS if name in attempt.state} or None
        if attempt.state
        else None,
        **more,
    )


def cancelled_end(job: PutBack, consumer: str) -> Finish:
    """Return the end of a job whose cancel was asked for while its attempt failed."""
    outcome = Outcome(
        status=JobStatus.CANCELLED,
        attempt=max(1, job.meta.attempt - 1),
        crashes=job.meta.crashes,
        finished_ms=time.time_ns() // 1_000_000,
        worker=consumer,
        parent_id=job.meta.parent_id,
        root_id=job.meta.root_id,
        labels=own_options.labels(job.meta.own) or None,
        via=own_options.via(job.meta.own),
        error=ErrorInfo("Cancelled", "cancelled"),
        reason=FailureReason.CANCELLED,
    )
    return Finish(job.task, job.lane, job.entry_id, JobStatus.CANCELLED, outcomes.encode(outcome), job.meta)


def type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def trace_of(error: BaseException) -> str:
    """Return the traceback from the user's code on, bounded."""
    return _bounded("".join(traceback.format_exception(type(error), error, _users_frames(error))), TRACEBACK_CAP)


def exc_info_of(
    error: BaseException, info: ErrorInfo
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    """Return what `logging` takes, from the user's code on; None where its text is another than what is kept of it.

    That is so without a traceback of this process, and for texts that are too long, hold a secret, or are not valid Unicode: handlers
    would write them as they are.
    """
    if not info.traceback or isinstance(error, RemoteError):
        return None
    frames = _users_frames(error)
    if "".join(traceback.format_exception(type(error), error, frames)) != info.traceback:
        return None
    return type(error), error, frames


def _users_frames(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OURS:
        frames = frames.tb_next
    return frames


def text_of(error: BaseException) -> str:
    """Return the error's message, bounded."""
    try:
        return _bounded(str(error), MESSAGE_CAP)
    except BaseException as broken:  # noqa: BLE001 - user code: an exception's __str__ may itself fail, and the job must still end
        return f"(its text can't be made: {type(broken).__name__})"


def _bounded(text: str, most: int) -> str:
    """Make a text short enough to keep, and valid Unicode: file names and the like may hold lone surrogates, which JSON can't."""
    text = secrets.masked(text)
    if len(text) > most:
        text = f"{text[: most // 2]}\n…\n{text[-most // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()
