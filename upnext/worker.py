"""`Worker`: what a service declares its tasks, crons and events on."""

from __future__ import annotations

import difflib
import functools
import inspect
import pkgutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Never, ParamSpec, TypeVar, Unpack, cast, overload

from upnext import config
from upnext.before_submitting import BeforeSubmit, checked
from upnext.core.binding import Signature
from upnext.core.schedules import MOST_ARGUMENTS_BYTES
from upnext.core.spec import (
    CronSpec,
    Hooks,
    MissedRunPolicy,
    OpenLifespan,
    SyncExecutor,
    TaskKind,
    TaskSpec,
    WorkerSpec,
)
from upnext.declare import (
    MOST_CONCURRENCY,
    CronSettings,
    TaskSettings,
    check_names,
    checked_name,
    declared_secrets,
    function_name,
    is_async,
    missed_run_policy,
    seconds,
    task_options,
    whole,
    yes_or_no,
)
from upnext.errors import ConflictError, ServiceError, UsageError
from upnext.event import Event
from upnext.hooks import hook, hooks
from upnext.lifespan import open_lifespan
from upnext.task import AsyncTask, SyncTask, Task, TaskDecorator

if TYPE_CHECKING:
    from upnext.running import Running

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Worker:
    """A set of tasks, crons and event handlers that run together, and how much of them at once.

    name: shown in status and taken by `--only`; without one it is "worker", numbered when a service has several.
    concurrency: jobs that each worker process runs at the same time.
    prefetch: unstarted jobs a process may hold; None: tuned to how long tasks take; 0: none.
    sync_executor: where plain `def` tasks run, in threads or in pool processes. Those import the service by themselves, once each, and are
    replaced when they die, which is a crash of the job that they ran and of no other. A cancel or a timeout ends them at once.
    sync_pool_size: threads or processes of that pool; None: as many as `concurrency`.
    redis_url: used when neither a flag nor the environment names one.
    secrets: names of the secrets that its jobs use; each process reads them before its first job, `upnext.secret(name)` gives them.

    Raises ServiceError for a value that can't be meant, UsageError for a URL of an unknown kind.
    """

    def __init__(
        self,
        name: str | None = None,
        concurrency: int = 2,
        prefetch: int | None = None,
        sync_executor: SyncExecutor | Literal["thread", "process"] = SyncExecutor.THREAD,
        sync_pool_size: int | None = None,
        redis_url: str | None = None,
        secrets: Sequence[str] = (),
        **unknown: Never,
    ) -> None:
        for option in unknown:
            known = [one for one in inspect.signature(Worker).parameters if one != "unknown"]
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ServiceError(f"Worker: there is no option {option!r}; {hint}")
        what = "Worker" if name is None else f"worker {name!r}"
        self.auto_named = name is None
        self.name = "worker" if name is None else checked_name(what, name)
        self.concurrency = whole(what, "concurrency", concurrency, most=MOST_CONCURRENCY)
        self.prefetch = None if prefetch is None else whole(what, "prefetch", prefetch, least=0)
        self.sync_executor = _executor(what, sync_executor)
        self.sync_pool_size = None if sync_pool_size is None else whole(what, "sync_pool_size", sync_pool_size)
        if redis_url is not None:
            config.validate_url(redis_url)
        self.redis_url = redis_url
        self.secrets = declared_secrets(what, secrets)
        self._specs: dict[str, TaskSpec] = {}
        self._tasks: dict[str, Task[..., Any]] = {}
        self._crons: dict[str, Task[..., Any]] = {}
        self._events: dict[str, Event] = {}
        self._running: Running | None = None
        self._lifespan: OpenLifespan | None = None
        self._hooks = Hooks()
        self._before_submit: list[BeforeSubmit] = []

    # -- declaring ---------------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncTask[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def task(self, function: Callable[P, T], /) -> SyncTask[P, T]: ...
    @overload
    def task(self, /, **settings: Unpack[TaskSettings]) -> TaskDecorator: ...
    def task(self, function: Any = None, /, **settings: Any) -> Any:
        """Declares a task: `@worker.task`, or `@worker.task(retries=3, timeout=30)`. -> its handle, with `submit`, `wait`, `options`, ...

        The function is an `async def`, which runs on the worker's event loop, or a plain `def`, which runs in a thread (or a pool process).
        Durations are seconds or a timedelta.

        name: unique in the namespace; default the function's `__name__`.

        Trying again:
        retries=0: further attempts after one that failed; None: for ever.
        retry_delay=1.0, retry_backoff=2.0: attempt n is followed by a pause of retry_delay x retry_backoff^(n-1) seconds, give or take
        20 %, at most retry_max_delay=3600. retry_delay=[1, 5, 30] gives each retry its own pause, and further ones the last.
        retry_jitter=True: False leaves the 20 % out.
        retry_on, no_retry_on: exception types; only these, all but these. retry_on can be a function, too: of the error, true for one
        that is retried. `raise upnext.Retry(delay=5)` asks for another attempt in any
        case.
        executor: "thread" or "process", for a plain function, where it is to differ from the Worker's sync_executor.
        max_crashes=3: a job whose worker died that often while running it is buried. Crashes are not attempts.

        Limits:
        timeout=1800: seconds one attempt may take; None: no limit. It is enforced, for threads and processes too, if need be by
        replacing the worker process.
        rate_limit: starts per time over all workers of the namespace, at most so many in any such time: "100/s", "10/minute", "5/2h";
        upnext.RateLimit(100, 1, burst=20) lets 20 start at once after a lull, on top of that.
        max_concurrency: running jobs of this task over all workers of the namespace.
        priority="normal": or "high", taken first; `options(priority=)` decides for a single job.

        Results:
        result_ttl=600: seconds for which the result is kept; 0: not at all, and no caller can wait for it.
        cache_key, cache_ttl: a result is kept under this key for cache_ttl seconds (default: result_ttl), and a later job that makes
        the same key ends with that value, without running and without hooks. The key is a template over the arguments
        ("user:{user_id}") or a function of them.

        Hooks: on_start(ctx), on_success(ctx, result), on_failure(ctx, error), on_retry(ctx, error), on_complete(ctx, result or error):
        plain or async
        functions, each called with as many of these as it takes. `on_complete` comes at the end of the job, however it ended.

        shared=False: whether another service may declare a task of this name too.
        redact=(): arguments that no page, command or error text shows, redact=("card",): their values, and what stands under these
        names in other arguments and in results. The function gets them as they were submitted.

        Raises ServiceError for an option that doesn't exist or can't be meant, ConflictError when the worker has a task of that name.
        """
        if function is None:
            return functools.partial(self._declare_task, settings=settings)
        return self._declare_task(function, settings)

    def _declare_task(self, function: Callable[..., Any], settings: dict[str, Any]) -> Task[..., Any]:
        name = function_name("task", function, settings.get("name"))
        check_names(f"task {name!r}", settings, TaskSettings)
        handle = self._handle(self._spec(name, TaskKind.TASK, function, settings))
        self._tasks[name] = handle
        return handle

    def cron(self, schedule: str, /, **settings: Unpack[CronSettings]) -> TaskDecorator:
        """Declares a function that runs by the clock: `@worker.cron("0 9 * * *", timezone="Europe/Berlin")`. -> its handle, as of a task.

        schedule: 5 fields (minute hour day month weekday), or 6 with the second first. Each tick runs once, however many schedulers and
        hosts there
        are. The function is called with `args` and `kwargs`, by default with none.

        timezone="UTC": an IANA name. A fixed hour fires once on the night the clock goes back, and right after the gap when it goes
        forward over it.
        missed_run_policy=MissedRunPolicy.LATEST_ONLY: what happens to ticks that fell due while no scheduler was there.
        max_catch_up_seconds: missed ticks older than this are left out; None: none is too old.
        overlap=True: whether a tick starts a job while that of an earlier tick still waits, runs or is to be tried again; False: it is
        skipped, and counted.
        args=(), kwargs={}: arguments of each tick's job, checked now; at most 64 KiB as JSON.

        The other options are those of `task`. Raises ServiceError for a schedule or zone that doesn't exist.
        """
        if not isinstance(schedule, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the likely `@worker.cron` without a schedule
            raise ServiceError('cron: expects a schedule, as in @worker.cron("0 9 * * *")')
        return functools.partial(self._declare_cron, schedule=schedule, settings=dict(settings))

    def _declare_cron(self, function: Callable[..., Any], schedule: str, settings: dict[str, Any]) -> Any:
        name = function_name("cron", function, settings.get("name"))
        what = f"cron {name!r}"
        check_names(what, settings, CronSettings)
        catch_up = settings.get("max_catch_up_seconds")
        when = CronSpec(
            schedule=schedule,
            timezone=settings.get("timezone", "UTC"),
            missed=missed_run_policy(what, settings.get("missed_run_policy", MissedRunPolicy.LATEST_ONLY)),
            max_catch_up_s=None if catch_up is None else seconds(what, "max_catch_up_seconds", catch_up),
            overlap=yes_or_no(what, "overlap", settings.get("overlap", True)),
            payload=_cron_payload(what, function, settings.get("args", ()), settings.get("kwargs", {})),
        )
        from upnext.core import cron  # noqa: PLC0415 - croniter is slow to import, and most services have no cron

        try:
            never = cron.parse(when).next_after(0) is None
        except UsageError as error:
            raise ServiceError(f"{what}: {error}") from None
        if never:
            raise ServiceError(f"{what}: cron {schedule!r} is never due: there is no such day")
        handle = self._handle(self._spec(name, TaskKind.CRON, function, settings, when))
        self._crons[name] = handle
        return handle

    def event(self, name: str) -> Event:
        """The event of that name, to declare handlers with `on` and to send:

        `order_placed = worker.event("order.placed")`. The same name is the same Event.
        """
        if name not in self._events:
            self._events[checked_name("event", name)] = Event(name, self.redis_url, self._register, self._before_submit)
        return self._events[name]

    def autodiscover(self, *packages: str) -> None:
        """Imports the named modules, and every module in those that are packages, so that what they declare is registered.

        Raises ServiceError for one that doesn't exist; an error inside a module comes as it is.
        """
        for name in packages:
            try:
                package = import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise
                raise ServiceError(f"worker {self.name!r}: autodiscover: there is no module {name!r}") from None
            for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}.", onerror=_reraise):
                import_module(module.name)

    def lifespan(self, function: F) -> F:
        """Declares what each process sets up before its first job, and takes down after its last one:

            @worker.lifespan
            async def pool():
                async with asyncpg.create_pool(dsn) as pool:
                    yield pool

        An async generator function, or one over which `asynccontextmanager` was put; of no argument, or of the worker. What it yields is
        `ctx.state` in every job. It is entered in each worker process (pool processes too, on a loop of their own), never in the
        scheduler. It has 30 s to yield, and 8 s to end.

        When it raises, the process is not ready: a reload is given up and the old code goes on; else it is tried again, ever more seldom,
        without end.

        Raises ServiceError for a function that never yields or takes more, ConflictError for a second lifespan.
        """
        what = f"worker {self.name!r}"
        if self._lifespan is not None:
            raise ConflictError(f"{what}: has a lifespan already")
        self._lifespan = open_lifespan(what, function, self)
        return function

    def before_submit(self, function: F) -> F:
        """Has `function(job)` called for every job of this Worker's tasks, and for its events, before they are submitted.

        It can change `job.labels`, or refuse the job by what it raises: see `upnext.before_submit`, whose functions come first. It runs
        where the job is submitted; not for a submit by name, nor for the ticks of crons, which any scheduler makes, without your code.
        """
        self._before_submit.append(checked(f"worker {self.name!r}: before_submit", function))
        return function

    def on_start(self, function: F) -> F:
        """Has `function(ctx)` called before every attempt of every task, cron and handler, besides a hook of its own."""
        return self._hook("on_start", function)

    def on_success(self, function: F) -> F:
        """Has `function(ctx, result)` called for every job that ends with a value."""
        return self._hook("on_success", function)

    def on_failure(self, function: F) -> F:
        """Has `function(ctx, error)` called for every job whose last attempt failed."""
        return self._hook("on_failure", function)

    def on_retry(self, function: F) -> F:
        """Has `function(ctx, error)` called for every attempt that failed and is followed by another."""
        return self._hook("on_retry", function)

    def on_complete(self, function: F) -> F:
        """Has `function(ctx, result or error)` called at the end of every job, however it ended."""
        return self._hook("on_complete", function)

    def _hook(self, name: str, function: F) -> F:
        added = hook(f"worker {self.name!r}", name, function)
        self._hooks = replace(self._hooks, **{name: (*getattr(self._hooks, name), added)})
        return function

    # -- what was declared -----------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks by name."""
        return MappingProxyType(self._tasks)

    @property
    def crons(self) -> Mapping[str, Task[..., Any]]:
        """The crons by name."""
        return MappingProxyType(self._crons)

    @property
    def events(self) -> Mapping[str, Event]:
        """The events by name."""
        return MappingProxyType(self._events)

    def spec(self) -> WorkerSpec:
        """What was declared so far, as plain data."""
        return WorkerSpec(
            name=self.name,
            concurrency=self.concurrency,
            tasks={name: replace(spec, hooks=spec.hooks.within(self._hooks)) for name, spec in self._specs.items()},
            prefetch=self.prefetch,
            sync_executor=self.sync_executor,
            sync_pool_size=self.sync_pool_size,
            redis_url=self.redis_url,
            lifespan=self._lifespan,
            secrets=self.secrets,
        )

    def _spec(
        self,
        name: str,
        kind: TaskKind,
        function: Callable[..., Any],
        settings: dict[str, Any],
        when: CronSpec | None = None,
    ) -> TaskSpec:
        what = f"{kind.value} {name!r}"
        arguments = Signature.of(function, name=name)
        arguments.check()
        return TaskSpec(
            name=name,
            kind=kind,
            function=function,
            is_async=is_async(function),
            arguments=arguments,
            options=task_options(what, function, settings),
            hooks=hooks(what, settings),
            cron=when,
        )

    def _handle(self, spec: TaskSpec) -> Task[..., Any]:
        self._register(spec)
        return (AsyncTask if spec.is_async else SyncTask)(spec, self.redis_url, self._before_submit)

    def _register(self, spec: TaskSpec) -> None:
        known = self._specs.get(spec.name)
        if known is not None:
            places = " and ".join(filter(None, (_place(known.function), _place(spec.function))))
            raise ConflictError(
                f"worker {self.name!r}: two tasks are named {spec.name!r}" + (f": {places}" if places else "")
            )
        self._specs[spec.name] = spec

    # -- running it in this process -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Runs the worker, with a scheduler of its own, in this process and event loop until `stop`. Returns when it takes jobs.

        For a program that is a worker among other things; `upnext run` and `upnextd start` run whole services.

        Raises UsageError when it runs already, NoBrokerError when no Redis URL is known, BrokerUnavailableError or BrokerRefusedError
        when the broker can't be used. What happens later, `stop` raises.
        """
        from upnext.running import Running  # noqa: PLC0415 - it knows Worker, and producers need no runtime

        if self._running is not None:
            raise UsageError(f"worker {self.name!r} is running already")
        self._running = await Running.start((self,))

    async def stop(self, timeout: float = 30.0) -> None:
        """Stops what `start` started:

        takes no new jobs, gives running ones `timeout` seconds, returns when it is done. Does nothing if it isn't running.
        """
        running, self._running = self._running, None
        if running is not None:
            await running.stop(timeout)

    def __repr__(self) -> str:
        return f"<Worker {self.name}: {len(self._specs)} tasks>"


def _executor(what: str, value: Any) -> SyncExecutor:
    try:
        return SyncExecutor(value)
    except ValueError:
        raise ServiceError(f"{what}: sync_executor must be 'thread' or 'process', not {value!r}") from None


def _cron_payload(what: str, function: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    """The encoded arguments of each tick's job. Raises ServiceError for what the function doesn't take."""
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise ServiceError(f"{what}: args is a list or a tuple and kwargs a dict, not {args!r:.80} and {kwargs!r:.80}")
    positional, named = tuple(cast("Sequence[Any]", args)), cast("Mapping[str, Any]", kwargs)
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        given = "with args and kwargs" if positional or named else "without arguments"
        raise ServiceError(f"{what}: is called {given}, but {error}") from None
    if not positional and not named:
        return b"{}"
    try:
        payload = Signature.of(function).encode(positional, named)
    except UsageError as error:  # given in a declaration, not in a call
        raise ServiceError(f"{what}: {error}") from None
    if len(payload) > MOST_ARGUMENTS_BYTES:
        raise ServiceError(f"{what}: its arguments are {len(payload):,} bytes as JSON, over {MOST_ARGUMENTS_BYTES:,}")
    return payload


def _place(function: Callable[..., Any]) -> str | None:
    """FILE:LINE of a function that has one."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else None


def _reraise(_name: str) -> None:
    """walk_packages swallows ImportError without an `onerror`. Called while the error is handled."""
    raise  # noqa: PLE0704
