"""How a job ended: the JSON under `P:r:JOB_ID`, in a waiter's wake-up, and in a dead letter.

One-letter keys keep it small: s status, v value (any JSON), a attempt, c crashes, b begun ms, f finished ms, w worker (consumer),
p parent id, r root id, e error {type, message, traceback}, y failure reason, x cause of a crash, g progress
{progress, message}, l labels {name: text}, o via, k cost [CPU us, longest step on the loop us]. Absent means null; a absent means 1,
c 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import orjson


class JobStatus(StrEnum):
    """Where a job is in its life. The last four are ends."""

    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Out of attempts, or expired; kept as a dead letter when it ran out of attempts."""
    CANCELLED = "cancelled"
    DEAD = "dead"
    """Buried: it crashed its worker max_crashes times. Kept as a dead letter."""


class EndLetter(StrEnum):
    """The ends of a job, as scripts are given them; named as in JobStatus."""

    DONE = "d"
    FAILED = "f"
    CANCELLED = "c"
    DEAD = "x"


class FailureReason(StrEnum):
    """Why a job has no value."""

    ERROR = "error"
    TIMEOUT = "timeout"
    CRASH = "crash"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as text. `traceback` is what Python would print, bounded."""

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        """`TYPE: message`, as Python prints it."""
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True)
class Cost:
    """What the attempt that ended cost. `longest_step_s`: the longest time for which it kept the event loop from everything else."""

    cpu_s: float
    longest_step_s: float

    def encode(self) -> list[int]:
        return [round(self.cpu_s * 1e6), round(self.longest_step_s * 1e6)]

    @classmethod
    def decode(cls, row: object) -> Cost | None:
        """None for anything else."""
        match row:
            case [int(cpu_us), int(step_us)]:
                return cls(cpu_us / 1e6, step_us / 1e6)
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `value` is the value's JSON bytes (b"null" for None); times are server-near Unix ms."""

    status: JobStatus
    value: bytes = b"null"
    attempt: int = 1
    crashes: int = 0
    begun_ms: int | None = None
    finished_ms: int | None = None
    worker: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    error: ErrorInfo | None = None
    reason: FailureReason | None = None
    cause: str | None = None
    progress: dict[str, Any] | None = None
    """What the job had noted as its progress."""
    labels: dict[str, str] | None = None
    via: str | None = None
    """What submitted the job, where that was no job: see `upnext.core.own_options`."""
    cost: Cost | None = None
    """None: it took little, it did not end by itself, or it ran elsewhere."""


def encode(outcome: Outcome) -> bytes:
    record: dict[str, Any] = {"s": outcome.status.value}
    if outcome.value != b"null":
        record["v"] = orjson.Fragment(outcome.value)
    if outcome.attempt != 1:
        record["a"] = outcome.attempt
    if outcome.crashes:
        record["c"] = outcome.crashes
    for letter, value in (
        ("b", outcome.begun_ms),
        ("f", outcome.finished_ms),
        ("w", outcome.worker),
        ("p", outcome.parent_id),
        ("r", outcome.root_id),
        ("y", outcome.reason and outcome.reason.value),
        ("x", outcome.cause),
        ("g", outcome.progress),
        ("l", outcome.labels),
        ("o", outcome.via),
        ("k", outcome.cost and outcome.cost.encode()),
    ):
        if value is not None:
            record[letter] = value
    if outcome.error is not None:
        record["e"] = {
            "type": outcome.error.type,
            "message": outcome.error.message,
            "traceback": outcome.error.traceback,
        }
    return orjson.dumps(record)


def from_dict(record: dict[str, Any]) -> Outcome:
    error = cast("dict[str, str] | None", record.get("e"))
    reason = record.get("y")
    return Outcome(
        status=JobStatus(record["s"]),
        value=orjson.dumps(record.get("v")),
        attempt=record.get("a", 1),
        crashes=record.get("c", 0),
        begun_ms=record.get("b"),
        finished_ms=record.get("f"),
        worker=record.get("w"),
        parent_id=record.get("p"),
        root_id=record.get("r"),
        error=ErrorInfo(error["type"], error["message"], error.get("traceback", "")) if error else None,
        reason=FailureReason(reason) if reason else None,
        cause=record.get("x"),
        progress=record.get("g"),
        labels=record.get("l"),
        via=record.get("o"),
        cost=Cost.decode(record.get("k")),
    )


def decode(raw: bytes) -> Outcome:
    """Raise ValueError for bytes that are not an outcome."""
    record = orjson.loads(raw)
    if not isinstance(record, dict) or "s" not in record:
        raise ValueError("not an outcome")
    return from_dict(cast("dict[str, Any]", record))
