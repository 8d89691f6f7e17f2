"""What a task can know and say about the job it runs: `get_current_context()`."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from upnext import access
from upnext.core import codec
from upnext.declare import is_number
from upnext.errors import PayloadTooLargeError, UsageError


class Context:
    """The running attempt of a job. Get it with `get_current_context()`; it is good until the task returns, in its threads too."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: access.RunningAttempt) -> None:
        self._attempt = attempt

    @property
    def job_id(self) -> str:
        return self._attempt.job_id

    @property
    def parent_id(self) -> str | None:
        """The job that submitted this one from inside a task; None otherwise."""
        return self._attempt.parent_id

    @property
    def root_id(self) -> str:
        """The first job of the family; this one when it has no parent."""
        return self._attempt.root_id or self._attempt.job_id

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._attempt.attempt

    @property
    def max_attempts(self) -> int | None:
        """The task's retries + 1; None: it is tried for ever."""
        return self._attempt.max_attempts

    @property
    def crashes(self) -> int:
        """How often a worker died while it ran this job."""
        return self._attempt.crashes

    @property
    def started_at(self) -> datetime:
        """When this attempt began, UTC."""
        return datetime.fromtimestamp(self._attempt.started_at, UTC)

    @property
    def timeout(self) -> float | None:
        """Seconds this attempt may take; None: no limit."""
        return self._attempt.options.timeout_s

    @property
    def labels(self) -> dict[str, str]:
        """What the job was labelled with, by `options(labels=)` or a hook before the submit."""
        return dict(self._attempt.labels)

    @property
    def state(self) -> Any:
        """What the worker's lifespan yielded in this process; None without one."""
        return self._attempt.lifespan_state

    @property
    def function(self) -> str:
        """The task's name."""
        return self._attempt.spec.name

    @property
    def function_name(self) -> str:
        """The `__name__` of the task's function."""
        return getattr(self._attempt.spec.function, "__name__", self._attempt.spec.name)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger, `upnext.task.NAME`, whose records carry `job_id`, `task` and `attempt`."""
        attempt = self._attempt
        return _JobLog(
            logging.getLogger(f"upnext.task.{attempt.spec.name}"),
            {"job_id": attempt.job_id, "task": attempt.spec.name, "attempt": attempt.attempt},
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether a caller asked to cancel the job.

        An `async def` is cancelled anyway; a plain `def` should look now and then, and return.
        """
        return self._attempt.cancelled

    @property
    def last_checkpoint(self) -> Any:
        """The newest state given to `checkpoint`, by this attempt or an earlier one, as plain JSON values; None when there is none."""
        return (self._attempt.state or {}).get("checkpoint")

    def set_progress(self, progress: float, message: str | None = None) -> None:
        """Shows how far the job is, in a measure of your choice, with a line of text. May be called often: only the newest is written.

        From any thread; returns at once. A broker that is away costs the progress, not the job. Raises UsageError for what is no finite
        number.
        """
        if not is_number(progress):
            raise UsageError(f"set_progress: expects a finite number, not {progress!r}")
        self._write(_plain({"progress": progress, "message": message}, "set_progress "))

    def checkpoint(self, state: Any) -> None:
        """Keeps `state` for the next attempt, which reads it as `last_checkpoint`. The newest counts.

        From any thread; returns at once and is written within a round trip. Raises EncodingError for a state that has no JSON form,
        PayloadTooLargeError for one of more than 1 MiB.
        """
        # Through JSON at once, so that the task may go on changing its state, and a bad one fails where it is made.
        self._write({"checkpoint": _plain(state, "checkpoint")})

    def send_log(self, level: str | int, message: str, **extra: Any) -> None:
        """Logs a line with fields: `ctx.send_log("info", "charged", amount=12)`. Raises UsageError for an unknown level."""
        number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
        if number is None:
            raise UsageError(f"send_log: there is no level {level!r}; use debug, info, warning, error or critical")
        self.log.log(number, "%s", message, extra={"fields": extra})

    def _write(self, fields: dict[str, Any]) -> None:
        self._attempt.note(fields)

    def __repr__(self) -> str:
        return f"<Context {self.job_id} attempt {self.attempt} of {self.max_attempts or 'any number'}>"


def get_current_context() -> Context:
    """The Context of the job that this code runs in. Raises UsageError outside a task."""
    attempt = access.current_attempt()
    if attempt is None:
        raise UsageError("get_current_context: this code is not running in a task")
    return Context(attempt)


def _plain(value: Any, where: str) -> Any:
    """The value as JSON gives it back."""
    raw = codec.dumps(value, where)
    if len(raw) > codec.PAYLOAD_CAP_BYTES:
        raise PayloadTooLargeError(
            f"{where.strip()}: {len(raw):,} bytes as JSON, over the cap of {codec.PAYLOAD_CAP_BYTES:,}: store the data elsewhere"
        )
    return codec.loads(raw)


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the job's fields to the caller's `extra` instead of replacing it."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs
