# pyright: basic
# Django comes without types.
"""Django: a `TASKS` backend, and a Worker whose jobs leave no database connection open.

    TASKS = {"default": {"BACKEND": "upnext.contrib.django.UpNextBackend", "OPTIONS": {"retries": 3, "timeout": 60}}}

Django 6 has the tasks' framework in `django.tasks`; for Django 5.2 it is in the package django-tasks.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import os
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import django
import orjson
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules, import_string

import upnext
from upnext import access
from upnext.core import ids
from upnext.core.outcome import ErrorInfo, JobStatus
from upnext.core.spec import TaskSpec
from upnext.declare import Priority, is_async
from upnext.engine.views import jobs as views
from upnext.errors import JobError, JobNotFoundError, ServiceError, UsageError


def _framework() -> str:
    for name in ("django.tasks", "django_tasks"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        return name
    raise ImproperlyConfigured(f"Django {django.get_version()} has no tasks: install django-tasks, or Django 6")


FRAMEWORK = _framework()
"""The package of Django's tasks: `django.tasks`, or `django_tasks` before Django 6."""

_base: Any = importlib.import_module(f"{FRAMEWORK}.base")
_signals: Any = importlib.import_module(f"{FRAMEWORK}.signals")
_errors: Any = importlib.import_module(f"{FRAMEWORK}.exceptions")
_BaseTaskBackend: Any = importlib.import_module(f"{FRAMEWORK}.backends.base").BaseTaskBackend
_Status = _base.TaskResultStatus

_DJANGO_STATUS = MappingProxyType(
    {
        JobStatus.QUEUED: _Status.READY,
        JobStatus.DELAYED: _Status.READY,
        JobStatus.RUNNING: _Status.RUNNING,
        JobStatus.DONE: _Status.SUCCESSFUL,
        JobStatus.FAILED: _Status.FAILED,
        JobStatus.CANCELLED: _Status.FAILED,
        JobStatus.DEAD: _Status.FAILED,
    }
)
_OPTIONS = (
    *("retries", "retry_delay", "retry_backoff", "retry_max_delay", "retry_jitter", "retry_on", "no_retry_on"),
    *("timeout", "rate_limit", "max_concurrency", "result_ttl", "max_crashes", "executor"),
)
"""What OPTIONS may have: options of `Worker.task`, for all tasks of the backend; and `redis_url`."""

_declared: dict[str, dict[str, Any]] = {}
"""alias -> module path -> the Task as it was first declared; of this process, while the backends are of its threads."""


class UpNextBackend(_BaseTaskBackend):
    """Queues Django's tasks as jobs of UpNext, each in a task of its own, named by its module path.

    QUEUES is Django's; OPTIONS has options of `Worker.task` for all tasks of this backend, and `redis_url`, used when the environment
    names none.
    A priority over 0 is UpNext's "high". The workers are those of a service that calls `Worker.add_tasks`.

    `enqueue` raises InvalidArgumentsError for arguments that the function doesn't take, TypeError for what isn't JSON, and QueueError when
    the broker can't take the job.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        unknown = [name for name in self.options if name not in (*_OPTIONS, "redis_url")]
        if unknown:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]: OPTIONS has {unknown[0]!r}; there are {', '.join(_OPTIONS)}, redis_url"
            )
        self.redis_url = self.options.get("redis_url")
        self._submitters: dict[str, upnext.Task[..., Any]] = {}
        try:
            self._worker = upnext.Worker(alias, redis_url=self.redis_url)
            upnext.Worker(alias).task(name="any", **self.job_options)(_nothing)
        except UsageError as error:
            raise ImproperlyConfigured(f"TASKS[{alias!r}]: OPTIONS: {error}") from None

    @property
    def job_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "redis_url"}

    def validate_task(self, task: Any) -> None:
        """Django calls it for each Task that is made, so it is also where the backend gets to know them."""
        super().validate_task(task)
        _declared.setdefault(self.alias, {}).setdefault(task.module_path, task)

    def enqueue(self, task: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> Any:
        result = self._new_result(task, args, kwargs)
        job_id = self._submitter(task).submit_sync(*result.args, **result.kwargs).job_id
        _set(result, id=job_id)
        _signals.task_enqueued.send(type(self), task_result=result)
        return result

    async def aenqueue(self, task: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> Any:
        result = self._new_result(task, args, kwargs)
        future = await self._submitter(task).submit(*result.args, **result.kwargs)
        _set(result, id=future.job_id)
        await _signals.task_enqueued.asend(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """As long as the job lives, and for `result_ttl` after its end (600 s); arguments are known until a job has succeeded."""
        broker = access.looking_client(self.redis_url)
        try:
            job = views.job(broker, broker.keys, result_id)
            task = self._task(job.task)
        except (JobNotFoundError, UsageError, ImportError):
            raise _errors.TaskResultDoesNotExist(result_id) from None
        payload = job.payload
        if payload is None and job.status in (JobStatus.FAILED, JobStatus.DEAD):
            with suppress(JobNotFoundError):  # a dead letter has its arguments still
                payload = views.dead_letter(broker, broker.keys, result_id).payload
        return self._result(task, job, payload)

    def job_function(self, task: Any) -> Callable[..., Any]:
        """What a worker runs: the task's function, between Django's signals.

        It takes what the function takes, but for the context. Annotations are left out: Django's tasks get their arguments as JSON has
        them.
        """
        run: Any = self._run_async(task) if inspect.iscoroutinefunction(task.func) else self._run(task)
        functools.update_wrapper(run, task.func)
        run.__signature__ = _signature(task)
        return run

    def _run(self, task: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = self._running(task, args, kwargs)
            _signals.task_started.send_robust(type(self), task_result=result)
            self._succeed(result, task.func(*_given(task, result), **result.kwargs))
            _signals.task_finished.send_robust(type(self), task_result=result)
            return result.return_value

        return run

    def _run_async(self, task: Any) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            result = self._running(task, args, kwargs)
            await _signals.task_started.asend_robust(type(self), task_result=result)
            self._succeed(result, await task.func(*_given(task, result), **result.kwargs))
            await _signals.task_finished.asend_robust(type(self), task_result=result)
            return result.return_value

        return run

    async def failed_for_good(self, ctx: upnext.Context, error: BaseException) -> None:
        """The hook of a job's last failure: sends `task_finished`."""
        from upnext.engine.worker.failures import error_info  # noqa: PLC0415 - only workers need it

        result = await self.aget_result(ctx.job_id)
        _set(result, status=_Status.FAILED, finished_at=timezone.now(), errors=[_task_error(error_info(error))])
        await _signals.task_finished.asend_robust(type(self), task_result=result)
        await sync_to_async(close_old_connections)()

    def _submitter(self, task: Any) -> upnext.Submitter[..., Any]:
        declared = self._submitters.get(task.module_path)
        if declared is None:
            declared = self._submitters[task.module_path] = declare(self._worker, self, task)
        return declared.options(priority=_priority(task), at=_aware(task.run_after))

    def _task(self, path: str) -> Any:
        """Raises ImportError where there is no such Task of Django."""
        task = _declared.get(self.alias, {}).get(path) or import_string(path)
        if not isinstance(task, _base.Task):
            raise ImportError(path)
        return task

    def _new_result(self, task: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> Any:
        """As it is once queued, but for its id."""
        self.validate_task(task)
        return self._task_result(task, "", list(args), dict(kwargs), enqueued_at=timezone.now())

    def _running(self, task: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> Any:
        """Of the job that this code runs in."""
        ctx = upnext.get_current_context()
        started_at = _moment(int(ctx.started_at.timestamp() * 1000))
        return self._task_result(
            task,
            ctx.job_id,
            list(args),
            dict(kwargs),
            status=_Status.RUNNING,
            enqueued_at=_moment(ids.parse(ctx.job_id).ms),
            started_at=started_at,
            last_attempted_at=started_at,
            worker_ids=_worker_ids(ctx.attempt, f"{socket.gethostname()}.{os.getpid()}"),
        )

    def _succeed(self, result: Any, value: Any) -> None:
        """Raises TypeError for a value that isn't JSON."""
        _set(result, _return_value=_base.normalize_json(value), status=_Status.SUCCESSFUL, finished_at=timezone.now())

    def _result(self, task: Any, job: views.Job, payload: bytes | None) -> Any:
        args, kwargs = _arguments(payload)
        waits = job.status in (JobStatus.QUEUED, JobStatus.DELAYED)
        errors = [] if job.error is None else [_task_error(job.error)]
        result = self._task_result(
            task,
            job.job_id,
            args,
            kwargs,
            status=_DJANGO_STATUS[job.status],
            enqueued_at=_moment(job.submitted_ms),
            started_at=_moment(job.started_ms),
            last_attempted_at=_moment(job.started_ms),
            finished_at=_moment(job.finished_ms),
            errors=errors,
            worker_ids=_worker_ids(job.attempt - 1 if waits else job.attempt, job.worker),
        )
        if job.value is not None:
            _set(result, _return_value=orjson.loads(job.value))
        return result

    def _task_result(self, task: Any, job_id: str, args: list[Any], kwargs: dict[str, Any], **known: Any) -> Any:
        """Raises TypeError for arguments that aren't JSON."""
        times = dict.fromkeys(("enqueued_at", "started_at", "finished_at", "last_attempted_at"))
        rest = {**times, "status": _Status.READY, "errors": [], "worker_ids": [], **known}
        return _base.TaskResult(task=task, id=job_id, args=args, kwargs=kwargs, backend=self.alias, **rest)


class Worker(upnext.Worker):
    """An `upnext.Worker` whose jobs find and leave no database connection that is too old, as Django's requests do.

    Sets Django up (`django.setup()`) where that wasn't done: DJANGO_SETTINGS_MODULE has to be set.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not apps.ready:
            django.setup()
        super().__init__(*args, **kwargs)

    def add_tasks(self, *, backend: str | None = None, queues: Collection[str] | None = None) -> None:
        """Serves Django's tasks of this backend (None: of each UpNextBackend in TASKS), declared with these queues (None: all).

        Imports the module `tasks` of every installed app first; tasks of modules that were imported before count, too.
        """
        autodiscover_modules("tasks")
        aliases = [backend] if backend is not None else list(settings.TASKS)
        served = {alias: found for alias in aliases if isinstance(found := _backend(alias), UpNextBackend)}
        if not served:
            raise ServiceError(f"TASKS has no {backend or 'backend'} with BACKEND upnext.contrib.django.UpNextBackend")
        for alias, found in served.items():
            for task in list(_declared.get(alias, {}).values()):
                wanted = queues is None or task.queue_name in queues
                if wanted and task.module_path not in self.tasks:  # one of `using(backend=…)` is the same task
                    declare(self, found, task)

    def _register(self, spec: TaskSpec) -> None:
        super()._register(replace(spec, function=_between_connections(spec.function)))


def declare(worker: upnext.Worker, backend: UpNextBackend, task: Any) -> upnext.Task[..., Any]:
    """Declare a task of Django on a worker, with the options of its backend -> its handle."""
    options = {**backend.job_options, "priority": _priority(task), "on_failure": backend.failed_for_good}
    return worker.task(name=task.module_path, **options)(backend.job_function(task))


def _between_connections(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, between two looks at the connections of the thread that it queries from: those too old (CONN_MAX_AGE) are closed."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    @functools.wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        await sync_to_async(close_old_connections)()
        try:
            return await function(*args, **kwargs)
        finally:
            await sync_to_async(close_old_connections)()

    return run_async if is_async(function) else run


def _backend(alias: str) -> Any:
    return importlib.import_module(FRAMEWORK).task_backends[alias]


def _nothing() -> None:
    """A function to try options on."""


def _signature(task: Any) -> inspect.Signature:
    parameters = [one.replace(annotation=one.empty) for one in inspect.signature(task.func).parameters.values()]
    return inspect.Signature(parameters[1:] if task.takes_context else parameters)


def _given(task: Any, result: Any) -> tuple[Any, ...]:
    """The positional arguments of a run."""
    return (_base.TaskContext(task_result=result), *result.args) if task.takes_context else tuple(result.args)


def _priority(task: Any) -> Priority:
    return "high" if task.priority > 0 else "normal"


def _aware(moment: datetime | None) -> datetime | None:
    """Without USE_TZ, Django's moments are of the current zone."""
    return timezone.make_aware(moment) if moment is not None and timezone.is_naive(moment) else moment


def _moment(ms: int | None) -> datetime | None:
    """As `timezone.now()` gives them: naive without USE_TZ."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def _worker_ids(attempts: int, last: str | None) -> list[str]:
    """One for each attempt, as Django counts by them; of earlier ones none is known."""
    return ["unknown"] * (attempts - 1) + [last or "unknown"] if attempts > 0 else []


def _arguments(payload: bytes | None) -> tuple[list[Any], dict[str, Any]]:
    given = orjson.loads(payload) if payload else {}
    return ([], given) if isinstance(given, dict) else (given[0], given[1])


def _task_error(error: ErrorInfo) -> Any:
    """Errors that are built in are kept without their module; some are words for what happened."""
    path = error.type
    if "." not in path:
        path = f"builtins.{path}" if hasattr(builtins, path) else f"{JobError.__module__}.{JobError.__qualname__}"
    return _base.TaskError(exception_class_path=path, traceback=error.traceback)


def _set(result: Any, **fields: Any) -> None:
    """TaskResults are frozen; Django's own backends change them so, too."""
    for name, value in fields.items():
        object.__setattr__(result, name, value)
