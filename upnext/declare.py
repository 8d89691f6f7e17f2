"""The options of a declaration of a task, cron or handler, by name, and their check with one clear line each.

Durations are seconds (int or float) or a `timedelta`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from string import Formatter
from typing import Any, Literal, TypedDict, cast

from upnext.core import ids, limits, secret_names
from upnext.core.spec import LONGEST_S, MissedRunPolicy, RateLimit, SyncExecutor, TaskOptions
from upnext.errors import ServiceError, UsageError

Duration = float | timedelta
Priority = Literal["normal", "high"]
Hook = Callable[..., Any]
Errors = type[BaseException] | Sequence[type[BaseException]]
RetryOn = Errors | Callable[[Any], object]

MOST = 1_000_000_000
MOST_CONCURRENCY = 100_000


class CommonSettings(TypedDict, total=False):
    """Options that every kind of task has; `Worker.task` documents them."""

    name: str | None
    retries: int | None
    retry_delay: Duration | Sequence[Duration]
    retry_backoff: float
    retry_max_delay: Duration
    retry_jitter: bool
    retry_on: RetryOn
    no_retry_on: Errors
    timeout: Duration | None
    rate_limit: str | RateLimit | None
    max_concurrency: int | None
    priority: Priority
    result_ttl: Duration
    max_crashes: int
    executor: SyncExecutor | Literal["thread", "process"] | None
    redact: Sequence[str]
    on_start: Hook | None
    on_success: Hook | None
    on_failure: Hook | None
    on_retry: Hook | None
    on_complete: Hook | None


class HandlerSettings(CommonSettings, total=False):
    """Options of an event's handler."""


class CronSettings(CommonSettings, total=False):
    """Options of a cron."""

    timezone: str
    missed_run_policy: MissedRunPolicy | Literal["catch_up", "latest_only", "skip"]
    max_catch_up_seconds: Duration | None
    overlap: bool
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class TaskSettings(CommonSettings, total=False):
    """Options of a task."""

    cache_key: str | Callable[..., str] | None
    cache_ttl: Duration | None
    shared: bool


def check_names(what: str, given: Collection[str], known: type) -> None:
    """Raises ServiceError for an option that isn't among `known`'s, with the one that was probably meant."""
    names = inspect.get_annotations(known).keys() | CommonSettings.__annotations__.keys()
    for name in given:
        if name not in names:
            raise ServiceError(f"{what}: there is no option {name!r}; {_hint(name, known, names)}")


def _hint(name: str, known: type, names: Collection[str]) -> str:
    if name == "shared" and known is CronSettings:
        return "a cron belongs to one service: declare it in one and have it submit a shared task, or give each its own name="
    if name == "shared" and known is HandlerSettings:
        return "every service may handle an event: give each handler its own name="
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names))}"


def function_name(what: str, function: Callable[..., Any], name: str | None) -> str:
    """The name a function is registered under. Raises ServiceError when it can't be a task at all."""
    if not callable(function):
        raise ServiceError(f"{what}: expects a function, not {type(function).__name__}")
    if name is None:
        name = getattr(function, "__name__", None)
        if name is None or name == "<lambda>":
            raise ServiceError(f"{what}: a function without a name of its own needs name=")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ServiceError(f"{what} {name!r}: is a generator; a task returns one value")
    if not is_async(function) and is_async(inspect.unwrap(function)):
        raise ServiceError(
            f"{what} {name!r}: a plain decorator around an `async def` would never run its body; "
            "have the decorator return an `async def` that awaits the function"
        )
    try:
        inspect.signature(function)
    except ValueError:  # built in, and silent about what it takes
        raise ServiceError(f"{what} {name!r}: doesn't say what arguments it takes; call it from a function") from None
    return checked_name(what, name)


def checked_name(what: str, name: str) -> str:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
        raise ServiceError(f"{what}: its name must be text, not {name!r}")
    try:
        return ids.check_task_name(name)
    except UsageError as error:
        raise ServiceError(f"{what}: {error}") from None


def is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def task_options(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> TaskOptions:
    """Raises ServiceError for a value that can't be meant."""
    defaults = TaskOptions()
    cache_key, cache_ttl = given.get("cache_key"), given.get("cache_ttl")
    if cache_ttl is not None and cache_key is None:
        raise ServiceError(f"{what}: cache_ttl needs a cache_key")
    result_ttl_s = seconds(what, "result_ttl", given.get("result_ttl", defaults.result_ttl_s), zero=True)
    backoff = given.get("retry_backoff", defaults.retry_backoff)
    if not is_number(backoff) or backoff < 1:
        raise ServiceError(f"{what}: retry_backoff must be a number of at least 1, not {backoff!r}")
    delay_s, delays_s = _delays(what, given)
    longest_s = max(defaults.retry_max_delay_s, *delays_s) if delays_s else defaults.retry_max_delay_s
    retry_on = given.get("retry_on", ())
    retry_if = _predicate(what, retry_on)
    return TaskOptions(
        retries=_or_none(functools.partial(whole, least=0), what, "retries", given.get("retries", defaults.retries)),
        retry_delay_s=delay_s,
        retry_backoff=float(backoff),
        retry_delays_s=delays_s,
        retry_max_delay_s=seconds(what, "retry_max_delay", given.get("retry_max_delay", longest_s)),
        retry_jitter=yes_or_no(what, "retry_jitter", given.get("retry_jitter", defaults.retry_jitter)),
        retry_if=retry_if,
        timeout_s=_or_none(seconds, what, "timeout", given.get("timeout", defaults.timeout_s)),
        rate_limit=_rate(what, given.get("rate_limit")),
        max_concurrency=_or_none(whole, what, "max_concurrency", given.get("max_concurrency")),
        priority=priority(what, given.get("priority", defaults.priority)),
        result_ttl_s=result_ttl_s,
        max_crashes=whole(what, "max_crashes", given.get("max_crashes", defaults.max_crashes), least=1),
        retry_on=() if retry_if is not None else _errors(what, "retry_on", retry_on),
        no_retry_on=_errors(what, "no_retry_on", given.get("no_retry_on", ())),
        cache_key=_cache_key(what, function, cache_key),
        cache_ttl_s=_or_none(seconds, what, "cache_ttl", cache_ttl),
        shared=bool(given.get("shared", False)),
        executor=_executor(what, function, given.get("executor")),
        redact=_redact(what, function, given.get("redact", ())),
    )


def _redact(what: str, function: Callable[..., Any], names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ServiceError(
            f"{what}: redact must be a sequence of names of arguments, as in redact=('card',), not {names!r}"
        )
    known = inspect.signature(function).parameters
    any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for name in cast("Sequence[Any]", names):
        if not isinstance(name, str) or (name not in known and not any_name):
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ServiceError(f"{what}: redact names {name!r}, which is not an argument of it; {hint}")
    return tuple(str(name) for name in cast("Sequence[Any]", names))


def _executor(what: str, function: Callable[..., Any], value: Any) -> SyncExecutor | None:
    if value is None:
        return None
    try:
        executor = SyncExecutor(value)
    except ValueError:
        raise ServiceError(f"{what}: executor must be 'thread' or 'process', not {value!r}") from None
    if is_async(function):
        raise ServiceError(f"{what}: executor is for plain functions; an async one runs on the worker's event loop")
    return executor


def whole(what: str, name: str, value: Any, *, least: int = 1, most: int = MOST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ServiceError(f"{what}: {name} must be a whole number of at least {least}, not {value!r}")
    if value > most:
        raise ServiceError(f"{what}: {name} must be at most {most}")
    return value


def seconds(what: str, name: str, value: Any, *, zero: bool = False) -> float:
    """A duration as seconds. `zero`: whether 0 is one."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(number) or number < 0 or (number == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ServiceError(f"{what}: {name} must be {least} seconds, not {value!r}")
    if number > LONGEST_S:
        raise ServiceError(f"{what}: {name} must be at most 100 years")
    return float(number)


def priority(what: str, value: Any) -> str:
    if value not in ("normal", "high"):
        raise ServiceError(f"{what}: priority must be 'normal' or 'high', not {value!r}")
    return value


def yes_or_no(what: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ServiceError(f"{what}: {name} must be True or False, not {value!r}")
    return value


def missed_run_policy(what: str, value: Any) -> MissedRunPolicy:
    try:
        return MissedRunPolicy(value)
    except ValueError:
        names = ", ".join(policy.value for policy in MissedRunPolicy)
        raise ServiceError(f"{what}: missed_run_policy must be one of {names}, not {value!r}") from None


def _or_none(check: Callable[[str, str, Any], Any], what: str, name: str, value: Any) -> Any:
    return None if value is None else check(what, name, value)


def is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _rate(what: str, value: Any) -> RateLimit | None:
    if value is None:
        return None
    if not isinstance(value, (str, RateLimit)):
        raise ServiceError(f"{what}: rate_limit must be text like '10/minute', not {value!r}")
    try:
        return limits.parse_rate(value) if isinstance(value, str) else limits.checked(value, repr(value))
    except UsageError as error:
        raise ServiceError(f"{what}: {error}") from None


def _errors(what: str, name: str, value: Any) -> tuple[type[BaseException], ...]:
    kinds: tuple[Any, ...] = (value,)
    if isinstance(value, (tuple, list, set, frozenset)):
        kinds = tuple(cast("Collection[Any]", value))
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ServiceError(f"{what}: {name} takes exception types, not {kind!r}")
    return kinds


def _delays(what: str, given: Mapping[str, Any]) -> tuple[float, tuple[float, ...]]:
    """(a delay to grow by the backoff, or a delay for each retry)"""
    value = given.get("retry_delay", TaskOptions().retry_delay_s)
    if not isinstance(value, (list, tuple)):
        return seconds(what, "retry_delay", value, zero=True), ()
    delays = tuple(seconds(what, "retry_delay", one, zero=True) for one in cast("Sequence[Any]", value))
    if not delays:
        raise ServiceError(
            f"{what}: retry_delay lists no delay; give one for each retry, the last serves all further ones"
        )
    if "retry_backoff" in given:
        raise ServiceError(f"{what}: retry_delay lists the delays, so there is nothing for retry_backoff to grow")
    return delays[0], delays


def _predicate(what: str, value: Any) -> Callable[[BaseException], object] | None:
    """`retry_on` as a function of the error; None where it names types."""
    if isinstance(value, type) or not callable(value):
        return None
    if is_async(value):
        raise ServiceError(f"{what}: retry_on must be a plain function of the error, not an async one")
    try:
        inspect.signature(value).bind(ValueError())
    except TypeError as error:
        raise ServiceError(f"{what}: retry_on is called with the error, but {error}") from None
    except ValueError:  # built in, and silent about what it takes
        pass
    return value


def _cache_key(what: str, function: Callable[..., Any], value: Any) -> str | Callable[..., str] | None:
    """A template names parameters of the function, so that a typing error shows here and not at each submit."""
    if value is None or (callable(value) and not isinstance(value, str)):
        return cast("Callable[..., str] | None", value)
    if not isinstance(value, str) or not value:
        raise ServiceError(f"{what}: cache_key must be text like 'user:{{user_id}}' or a function, not {value!r}")
    parameters = inspect.signature(function).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    try:
        fields = [field for _, field, _, _ in Formatter().parse(value) if field is not None]
    except ValueError as error:
        raise ServiceError(f"{what}: cache_key {value!r}: {error}") from None
    for field in fields:
        root = field.partition(".")[0].partition("[")[0]
        if not root or (root not in parameters and not open_ended):
            raise ServiceError(f"{what}: cache_key {value!r} names {field!r}, which is not a parameter of the function")
    return value


def declared_secrets(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names in a declaration, each once. Raises ServiceError."""
    if isinstance(names, str):
        raise ServiceError(f"{what}: secrets is a list of names, not {names!r}")
    try:
        return tuple(secret_names.checked_name(what, name) for name in dict.fromkeys(names))
    except UsageError as error:  # given in a declaration, not in a call
        raise ServiceError(str(error)) from None
