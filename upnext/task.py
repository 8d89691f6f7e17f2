"""Handles of registered functions: what `@worker.task` and `@worker.cron` give back."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, cast, overload

from upnext import access
from upnext.before_submitting import EVERYWHERE, BeforeSubmit, see
from upnext.core import own_options
from upnext.core.spec import TaskSpec
from upnext.core.submission import Submission, checked_key
from upnext.declare import Duration, Priority, priority, seconds, whole
from upnext.engine import tracing
from upnext.engine.requests import CURRENT_REQUEST, marked
from upnext.errors import EncodingError, InvalidArgumentsError, ServiceError, UsageError
from upnext.future import Future, TaskResult, succeeded

P = ParamSpec("P")
T = TypeVar("T")

Input = Mapping[str, Any] | Sequence[Any]
"""The arguments of one call: by name, or a tuple (or list) by position."""


class Unchanged(Enum):
    """Where None has a meaning of its own."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a job is submitted, where it differs from the task's own options."""

    delay_s: float | None = None
    at_us: int | None = None
    priority: str | None = None
    queue_ttl_s: float | None = None
    idempotency_ttl_s: float = 86400.0
    wait_timeout_s: float | None = None
    replace: str | None = None
    """Key of the job whose place it takes."""
    own: Mapping[str, Any] | None = None
    """For the job itself: see `upnext.core.own_options`."""


AS_DECLARED = SubmitOptions()

_NAMED_ELSEWHERE = {
    "delay": "submit",
    "apply_async": "options(…).submit",
    "apply": "a call of the task itself, or wait",
    "send": "submit",
    "send_with_options": "options(…).submit",
    "enqueue": "submit",
    "kiq": "submit",
    "starmap": "submit_many",
}
"""What other queues' users look for, and what it is called here."""


class Submitter(Generic[P, T]):
    """A task together with a way to submit it: the task itself, or what `task.options(...)` returns.

    The arguments of each call are those of the function. They are bound to its signature and encoded before anything is sent: a missing or
    unknown name raises InvalidArgumentsError with the signature in its message, a value that has no JSON form EncodingError, arguments that
    are too large PayloadTooLargeError.

    From the broker come BrokerUnavailableError (nothing was queued), BrokerFullError (nothing was queued), SubmitUncertain (the
    connection broke before the answer: the job may be queued) and NoBrokerError (no Redis URL is known at all).

    Each method has a `_sync` form that blocks, for plain code: usable from any thread, any number of times, before and after a fork. In an
    `async def` a `_sync` form would block the whole event loop.
    """

    def __init__(
        self, spec: TaskSpec, redis_url: str | None, how: SubmitOptions, before: Sequence[BeforeSubmit] = ()
    ) -> None:
        self.spec = spec
        self._redis_url = redis_url
        self._before = before
        self._how = how
        self._priority = how.priority or spec.options.priority
        self._limited = spec.options.limited

    def options(
        self,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        priority: Priority | None = None,
        queue_ttl: Duration | None = None,
        idempotency_ttl: Duration | None = None,
        wait_timeout: Duration | None = None,
        timeout: Duration | Unchanged | None = UNCHANGED,
        retries: int | Unchanged | None = UNCHANGED,
        result_ttl: Duration | None = None,
        labels: Mapping[str, str] | None = None,
        replace: str | None = None,
    ) -> Submitter[P, T]:
        """The same task, submitted differently: `charge.options(delay=5, priority="high").submit(order_id)`.

        delay: seconds (or a timedelta) from now, by the broker's clock, until the job may start.
        at: the moment from which it may start, with a time zone; not together with `delay`. A past one is due at once.
        priority: "high" jobs are taken before "normal" ones of the same task.
        queue_ttl: seconds within which it has to start for the first time once due; after that it ends as expired.
        idempotency_ttl: seconds for which `submit_idempotent` or `replace` may hold its key at most (default: a day).
        wait_timeout: seconds that `wait` waits, unless the call says otherwise; None: until the job ends.
        timeout, retries, result_ttl: for these jobs in place of what the task has; None for the first two: no limit, for ever.
        labels: names and texts that are shown with these jobs and can be searched for; at most 16.
        replace: an idempotency key: the job takes the place of the one of this key that no worker has fetched yet, which ends as cancelled
        (cause `replaced`). With `delay` that is a debounce: of many submits, the last one runs. A job that a worker has fetched, or that
        was tried before, goes on; the new one is queued beside it. Either way the new job has the key. One job at a time: not for
        `submit_many`, nor for `submit_idempotent`, which has a key of its own.

        What is not given stays as it was. Raises UsageError for a value that can't be meant.
        """
        if delay is not None and at is not None:
            raise UsageError(f"{self.name}.options: give delay= or at=, not both")
        how, what = self._how, f"{self.name}.options"
        if replace is not None:
            how = dataclasses.replace(how, replace=checked_key(replace))
        if delay is not None:
            how = dataclasses.replace(how, delay_s=_given(what, "delay", delay, zero=True), at_us=None)
        if at is not None:
            how = dataclasses.replace(how, at_us=_unix_us(what, at), delay_s=None)
        if priority is not None:
            how = dataclasses.replace(how, priority=_priority(what, priority))
        if queue_ttl is not None:
            how = dataclasses.replace(how, queue_ttl_s=_given(what, "queue_ttl", queue_ttl))
        if idempotency_ttl is not None:
            how = dataclasses.replace(how, idempotency_ttl_s=_given(what, "idempotency_ttl", idempotency_ttl))
        if wait_timeout is not None:
            how = dataclasses.replace(how, wait_timeout_s=_given(what, "wait_timeout", wait_timeout, zero=True))
        how = _with_own(how, _own(what, timeout, retries, result_ttl, labels))
        return Submitter(self.spec, self._redis_url, how, self._before)

    @property
    def name(self) -> str:
        """The task's name, unique in its namespace."""
        return self.spec.name

    # -- submit: queue a job, go on ------------------------------------------------------------------------------

    async def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a job -> its Future. Returns when the broker has it."""
        job_id = await access.async_broker(self._redis_url).submit(self._submission(args, kwargs))
        return self.future(job_id)

    def submit_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """`submit` for plain code."""
        return self.future(access.sync_broker(self._redis_url).submit(self._submission(args, kwargs)))

    async def submit_idempotent(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a job unless one of this key is queued, delayed or running: then raises DuplicateJobError with that job's `.job_id`.

        The key is free again when its job ends.
        """
        submission = self._submission(args, kwargs, checked_key(idempotency_key))
        return self.future(await access.async_broker(self._redis_url).submit(submission))

    def submit_idempotent_sync(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """`submit_idempotent` for plain code."""
        submission = self._submission(args, kwargs, checked_key(idempotency_key))
        return self.future(access.sync_broker(self._redis_url).submit(submission))

    async def submit_many(self, inputs: Sequence[Input]) -> list[Future[T]]:
        """Queues one job for each of `inputs` (a dict of named arguments, or a tuple of positional ones) -> their Futures, in order.

        All arguments are checked before the first is sent. A thousand take one round trip.
        """
        broker = access.async_broker(self._redis_url)
        return [self.future(job_id) for job_id in await broker.submit_many(self._submissions(inputs))]

    def submit_many_sync(self, inputs: Sequence[Input]) -> list[Future[T]]:
        """`submit_many` for plain code."""
        broker = access.sync_broker(self._redis_url)
        return [self.future(job_id) for job_id in broker.submit_many(self._submissions(inputs))]

    # -- wait: queue a job, wait for its end -----------------------------------------------------------------------

    @overload
    async def wait(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    async def wait(self, /, *args: Any, wait_timeout: float | None, **kwargs: Any) -> TaskResult[T]: ...
    async def wait(self, /, *args: Any, **kwargs: Any) -> TaskResult[T]:
        """Queues a job and waits for its end -> TaskResult, whose `.value` is what the function returned.

        `wait_timeout=`: seconds to wait at most (None: as long as it takes); then the built-in TimeoutError, with the job's id as
        `.job_id`, and
        the job goes on. `task.options(wait_timeout=5).wait(...)` says the same with the arguments still type checked.
        A function with a parameter of that name keeps it for itself.

        Inside a task the waiting task's concurrency slot is free meanwhile. A job without a value raises TaskExecutionError, or
        TaskTimeoutError
        when it ran longer than its own timeout, with `.task_result`.
        """
        return await self._wait(None, args, kwargs)

    @overload
    def wait_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    def wait_sync(self, /, *args: Any, wait_timeout: float | None, **kwargs: Any) -> TaskResult[T]: ...
    def wait_sync(self, /, *args: Any, **kwargs: Any) -> TaskResult[T]:
        """`wait` for plain code."""
        return self._wait_sync(None, args, kwargs)

    @overload
    async def wait_idempotent(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    async def wait_idempotent(
        self, idempotency_key: str, /, *args: Any, wait_timeout: float | None, **kwargs: Any
    ) -> TaskResult[T]: ...
    async def wait_idempotent(self, idempotency_key: str, /, *args: Any, **kwargs: Any) -> TaskResult[T]:
        """`submit_idempotent`, then waits as `wait` does.

        A key in use raises DuplicateJobError; `Future(error.job_id)` waits for its holder.
        """
        return await self._wait(checked_key(idempotency_key), args, kwargs)

    @overload
    def wait_idempotent_sync(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    def wait_idempotent_sync(
        self, idempotency_key: str, /, *args: Any, wait_timeout: float | None, **kwargs: Any
    ) -> TaskResult[T]: ...
    def wait_idempotent_sync(self, idempotency_key: str, /, *args: Any, **kwargs: Any) -> TaskResult[T]:
        """`wait_idempotent` for plain code."""
        return self._wait_sync(checked_key(idempotency_key), args, kwargs)

    def future(self, job_id: str) -> Future[T]:
        """A typed Future of a job of this task that was submitted elsewhere or earlier."""
        return Future(job_id, redis_url=self._redis_url, spec=self.spec)

    async def _wait(self, key: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskResult[T]:
        timeout_s = self._wait_timeout_s(kwargs)
        submission = self._submission(args, kwargs, key)
        async with access.slot_given_back():
            broker = access.async_broker(self._redis_url)
            job_id, outcome = await broker.submit_and_wait(submission, timeout_s=timeout_s)
        return succeeded(job_id, outcome, self.spec)

    def _wait_sync(self, key: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskResult[T]:
        timeout_s = self._wait_timeout_s(kwargs)
        submission = self._submission(args, kwargs, key)
        with access.slot_given_back_sync():
            broker = access.sync_broker(self._redis_url)
            job_id, outcome = broker.submit_and_wait(submission, timeout_s=timeout_s)
        return succeeded(job_id, outcome, self.spec)

    def _wait_timeout_s(self, kwargs: dict[str, Any]) -> float | None:
        if "wait_timeout" not in kwargs or "wait_timeout" in inspect.signature(self.spec.function).parameters:
            return self._how.wait_timeout_s
        value = kwargs.pop("wait_timeout")
        return None if value is None else _given(f"{self.name}.wait", "wait_timeout", value, zero=True)

    def _submission(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: str | None = None, origin: _Origin | None = None
    ) -> Submission:
        spec, how = self.spec, self._how
        # By position, and only what this call says: naming all twelve costs more than encoding the arguments.
        job = Submission(spec.name, spec.arguments.encode(args, kwargs), self._priority)
        job.limited = self._limited
        job.parent_id, job.root_id, job.trace = origin or _origin(spec.name)
        if how is not AS_DECLARED:
            job.delay_s, job.at_us, job.queue_ttl_s = how.delay_s, how.at_us, how.queue_ttl_s
            job.own = dict(how.own) if how.own else None
            if how.replace is not None:
                if key is not None:
                    raise UsageError(
                        f"{self.name}: a key of its own and replace= exclude one another: submit with one of them"
                    )
                key, job.replace = how.replace, True
        if job.parent_id is None and (request := CURRENT_REQUEST.get(None)) is not None:
            job.own = marked(job.own, request)
        if key is not None:
            job.idempotency_key, job.idempotency_ttl_s = key, how.idempotency_ttl_s
        if EVERYWHERE or self._before:
            see((*EVERYWHERE, *self._before), job, spec.arguments.describe)
        return job

    def planned(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Submission, str | None]:
        """-> (a job that `upnext.schedule` is to submit later; the worker's own Redis URL). Raises as `submit` does for arguments."""
        if self._how.delay_s is not None or self._how.at_us is not None or self._how.replace is not None:
            raise UsageError(f"{self.name}: a schedule says when; leave delay=, at= and replace= out")
        return self._submission(args, kwargs), self._redis_url

    def _submissions(self, inputs: Sequence[Input]) -> list[Submission]:
        if self._how.replace is not None:
            raise UsageError(
                f"{self.name}: each job of several would replace the one before: submit with replace= one by one"
            )
        origin = _origin(self.name)
        return [self._numbered(number, one, origin) for number, one in enumerate(inputs)]

    def _numbered(self, number: int, one: Input, origin: _Origin) -> Submission:
        try:
            return self._submission(*arguments_of(one), None, origin)
        except UsageError as error:
            if type(error) not in (UsageError, InvalidArgumentsError, EncodingError):
                raise  # of before_submit, which may raise errors that are made in another way
            raise type(error)(f"input {number}: {error}") from error

    if not TYPE_CHECKING:  # a type checker is to know of no such attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = f"; use {_NAMED_ELSEWHERE[name]}" if name in _NAMED_ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.arguments.describe()}>"


class Task(Submitter[P, T]):
    """A registered function. Calling it runs the function here and now, without a queue; the other methods submit it."""

    __name__: str

    def __init__(self, spec: TaskSpec, redis_url: str | None, before: Sequence[BeforeSubmit] = ()) -> None:
        super().__init__(spec, redis_url, AS_DECLARED, before)
        functools.update_wrapper(cast("Callable[..., Any]", self), spec.function)

    @property
    def function(self) -> Callable[P, Any]:
        """The function as it was written."""
        return self.spec.function


class AsyncTask(Task[P, T]):
    """A registered `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Runs the function inline: `await process_order("o-1")`."""
        return self.spec.function(*args, **kwargs)


class SyncTask(Task[P, T]):
    """A registered plain `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the function inline, in this thread."""
        return self.spec.function(*args, **kwargs)


class TaskDecorator(Protocol):
    """What `@worker.task(...)` with options is: takes the function, gives its handle."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncTask[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: Callable[P, T], /) -> SyncTask[P, T]: ...


def arguments_of(one: Input) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """-> (args, kwargs) of one of the inputs of `submit_many` and `map_tasks`."""
    if isinstance(one, dict):
        return (), one
    if isinstance(one, Mapping):
        return (), dict(one)
    if isinstance(one, (tuple, list)):
        return tuple(cast("Sequence[Any]", one)), {}
    raise UsageError(f"an input is a dict of named arguments or a tuple of positional ones, not {one!r}")


_Origin = tuple[str | None, str | None, str | None]


def _origin(name: str) -> _Origin:
    """-> (parent id, root id, traceparent) of what is submitted here."""
    return *access.lineage(), tracing.submitted(name)


def _given(what: str, name: str, value: Duration, *, zero: bool = False) -> float:
    try:
        return seconds(what, name, value, zero=zero)
    except ServiceError as error:  # given in a call, not in a declaration
        raise UsageError(str(error)) from None


def _with_own(how: SubmitOptions, own: Mapping[str, Any]) -> SubmitOptions:
    return dataclasses.replace(how, own={**(how.own or {}), **own}) if own else how


def _own(
    what: str,
    timeout: Duration | Unchanged | None,
    retries: int | Unchanged | None,
    result_ttl: Duration | None,
    labels: Mapping[str, str] | None,
) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if not isinstance(timeout, Unchanged):
        own["timeout_s"] = None if timeout is None else _given(what, "timeout", timeout)
    if not isinstance(retries, Unchanged):
        own["retries"] = None if retries is None else _whole(what, "retries", retries)
    if result_ttl is not None:
        own["result_ttl_s"] = _given(what, "result_ttl", result_ttl, zero=True)
    if labels is not None:
        own["labels"] = own_options.checked_labels(what, labels)
    return own


def _whole(what: str, name: str, value: int) -> int:
    try:
        return whole(what, name, value, least=0)
    except ServiceError as error:
        raise UsageError(str(error)) from None


def _priority(what: str, value: str) -> str:
    try:
        return priority(what, value)
    except ServiceError as error:
        raise UsageError(str(error)) from None


def _unix_us(what: str, at: datetime) -> int:
    if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
        raise UsageError(f"{what}: at must be a datetime, not {at!r}")
    if at.tzinfo is None:
        raise UsageError(f"{what}: at needs a time zone, as in datetime.now(UTC)")
    return (at - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
