"""Functions of the user that see each job before it is submitted: they can label it, or refuse it by what they raise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from upnext.core import codec, own_options, signatures
from upnext.core.submission import Submission
from upnext.engine.requests import CURRENT_REQUEST, marked
from upnext.errors import ServiceError

F = TypeVar("F", bound=Callable[..., Any])

BeforeSubmit = Callable[["NewJob"], object]

EVERYWHERE: list[BeforeSubmit] = []
"""What sees all jobs that this process submits. Each Worker has a list of its own besides."""


class NewJob:
    """A job, or an event, that is about to be submitted. Only its `labels` can be changed: `job.labels["tenant"] = "acme"`."""

    __slots__ = ("_payload", "_signature", "event", "idempotency_key", "labels", "parent_id", "priority", "task")

    task: str | None
    """The task's name; None for an event."""
    event: str | None
    """The event's name: all its handlers' jobs get the labels. None for a task."""
    labels: dict[str, str]
    """What is shown with the job, and read as `ctx.labels` in it: at first those of `options(labels=)`."""
    priority: str
    idempotency_key: str | None
    parent_id: str | None
    """The job that submits this one; None outside of jobs."""

    def __init__(
        self, payload: bytes, signature: Callable[[], str] = str, *, task: str | None = None, event: str | None = None
    ) -> None:
        self._payload, self._signature = payload, signature
        self.task, self.event = task, event
        self.labels = {}
        self.priority = "normal"
        self.idempotency_key = self.parent_id = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by name (what `*args` takes as a list), or the event's fields, as plain JSON values. To be read."""
        given: dict[str, Any] | list[Any] = codec.loads(self._payload)
        if isinstance(given, list):
            positional, named = given
            given = signatures.by_name(self._signature(), positional, named)
        return MappingProxyType(given)

    def __repr__(self) -> str:
        return f"<NewJob of {f'event {self.event}' if self.task is None else self.task}>"


def before_submit(function: F) -> F:
    """Has `function(job)` called for every job and event that this process submits, before anything is sent: `@upnext.before_submit`.

    It gets a `NewJob`, whose `labels` it can change; what it raises goes to the caller of `submit`, and nothing is sent (of `submit_many`:
    none of them). A plain function that returns soon: it is called in the event loop, too. The functions are called in the order of their
    declaration, those of a Worker (`@worker.before_submit`) after these, and again for no repeat of a submit. They see what one of them
    submits, too: one that submits leaves its own task out (`if job.task != "audit"`).

    Raises ServiceError for what is not a plain function of one argument.
    """
    EVERYWHERE.append(checked("before_submit", function))
    return function


def checked(what: str, function: Any) -> BeforeSubmit:
    """Raises ServiceError for what can't be called with a NewJob alone, or is asynchronous."""
    if not callable(function):
        raise ServiceError(f"{what}: must be a function of the job, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise ServiceError(f"{what}: {function!r} must be a plain def: submit_sync and its kin call it, too")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ServiceError(
            f"{what}: {function!r} is a generator, whose body a call doesn't run: it must be a plain def"
        )
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ServiceError(f"{what}: is called with (job), which {function!r} doesn't take") from None
    except ValueError:  # built in, and silent about what it takes
        pass
    return function


def see(functions: Sequence[BeforeSubmit], submission: Submission, signature: Callable[[], str]) -> None:
    """Call them for a job; its labels are what they leave. Raises what they raise, and UsageError for labels that can't be."""
    job = NewJob(submission.payload, signature, task=submission.task)
    job.priority, job.idempotency_key, job.parent_id = (
        submission.priority,
        submission.idempotency_key,
        submission.parent_id,
    )
    job.labels = own_options.labels(submission.own)
    if labels := _labels(functions, job):
        submission.own = {**(submission.own or {}), "labels": labels}
    elif submission.own and "labels" in submission.own:
        submission.own = {name: value for name, value in submission.own.items() if name != "labels"} or None


def own_of_event(
    functions: Sequence[BeforeSubmit], event: str, payload: bytes, key: str | None, parent_id: str | None
) -> dict[str, Any] | None:
    """-> what the jobs of an event have of their own: labels, and the route of the request that sends it.

    `functions` are called after those of the process. Raises as `see`.
    """
    own: dict[str, Any] | None = None
    if EVERYWHERE or functions:
        job = NewJob(payload, event=event)
        job.idempotency_key, job.parent_id = key, parent_id
        labels = _labels((*EVERYWHERE, *functions), job)
        own = {"labels": labels} if labels else None
    if parent_id is None and (request := CURRENT_REQUEST.get(None)) is not None:
        own = marked(own, request)
    return own


def _labels(functions: Sequence[BeforeSubmit], job: NewJob) -> dict[str, str]:
    for function in functions:
        if inspect.iscoroutine(given := function(job)):
            given.close()
            raise ServiceError(
                f"before_submit: {function!r} gave {given!r}, which nothing awaits: it must be a plain def"
            )
    return own_options.checked_labels(f"before_submit of {job.task or job.event}", job.labels)
