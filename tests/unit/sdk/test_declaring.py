"""Declaring workers, tasks, crons and handlers: what becomes of each option, and the line for each that can't be meant."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast

import pydantic
import pytest

import upnext
from upnext.core.spec import CronSpec, MissedRunPolicy, RateLimit, SyncExecutor, TaskKind, TaskOptions
from upnext.errors import ConflictError, EncodingError, InvalidArgumentsError, ServiceError, UsageError
from upnext.hooks import Hook


@pytest.fixture
def worker() -> upnext.Worker:
    return upnext.Worker("shop")


async def charge(order_id: str, amount: int = 1) -> str:
    return f"{order_id}-{amount}"


def render(order_id: str) -> str:
    """Renders."""
    return order_id


# -- tasks


def test_a_bare_task_has_the_documented_defaults(worker: upnext.Worker) -> None:
    task = worker.task(charge)
    assert task.name == "charge"
    assert task.spec.kind is TaskKind.TASK
    assert task.spec.is_async
    assert task.spec.options == TaskOptions(
        retries=0, retry_delay_s=1.0, retry_backoff=2.0, timeout_s=1800.0, result_ttl_s=600.0, max_crashes=3
    )
    assert dict(worker.tasks) == {"charge": task}
    assert worker.spec().tasks == {"charge": task.spec}


async def test_calling_a_handle_runs_the_function_here(worker: upnext.Worker) -> None:
    assert await worker.task(charge)("o-1", amount=3) == "o-1-3"
    assert worker.task(render)("o-1") == "o-1"


def test_a_handle_looks_like_its_function(worker: upnext.Worker) -> None:
    task = worker.task(name="invoice")(render)
    assert task.name == "invoice"
    assert task.__name__ == "render"
    assert task.__doc__ == "Renders."
    assert task.function is render
    assert not task.spec.is_async
    assert repr(task) == "<SyncTask invoice(order_id: str) -> str>"


def test_every_option_is_carried(worker: upnext.Worker) -> None:
    def hook(ctx: upnext.Context) -> None: ...

    task = worker.task(
        name="pay",
        retries=3,
        retry_delay=timedelta(milliseconds=500),
        retry_backoff=3,
        retry_on=OSError,
        no_retry_on=(KeyError, ValueError),
        timeout=None,
        rate_limit="10/minute",
        max_concurrency=4,
        priority="high",
        result_ttl=0,
        max_crashes=5,
        cache_key="pay:{order_id}",
        cache_ttl=60,
        on_start=hook,
        on_success=hook,
        on_failure=hook,
        on_retry=hook,
        on_complete=hook,
        shared=True,
    )(charge)
    assert task.spec.options == TaskOptions(
        retries=3,
        retry_delay_s=0.5,
        retry_backoff=3.0,
        timeout_s=None,
        rate_limit=RateLimit(10, 60.0),
        max_concurrency=4,
        priority="high",
        result_ttl_s=0.0,
        max_crashes=5,
        retry_on=(OSError,),
        no_retry_on=(KeyError, ValueError),
        cache_key="pay:{order_id}",
        cache_ttl_s=60.0,
        shared=True,
    )
    hooks = task.spec.hooks
    made = [hooks.on_start, hooks.on_success, hooks.on_failure, hooks.on_retry, hooks.on_complete]
    assert [cast("Hook", hook_).function for (hook_,) in made] == [hook] * 5


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"retries": -1}, "task 'charge': retries must be a whole number of at least 0, not -1"),
        ({"retries": True}, "task 'charge': retries must be a whole number of at least 0, not True"),
        ({"retries": 1.5}, "task 'charge': retries must be a whole number of at least 0, not 1.5"),
        ({"retry_delay": -1}, "task 'charge': retry_delay must be 0 or more seconds, not -1"),
        ({"retry_delay": "1"}, "task 'charge': retry_delay must be 0 or more seconds, not '1'"),
        ({"retry_backoff": 0.5}, "task 'charge': retry_backoff must be a number of at least 1, not 0.5"),
        ({"timeout": 0}, "task 'charge': timeout must be more than 0 seconds, not 0"),
        ({"timeout": float("inf")}, "task 'charge': timeout must be more than 0 seconds, not inf"),
        ({"max_concurrency": 0}, "task 'charge': max_concurrency must be a whole number of at least 1, not 0"),
        ({"rate_limit": 10}, "task 'charge': rate_limit must be text like '10/minute', not 10"),
        ({"priority": "urgent"}, "task 'charge': priority must be 'normal' or 'high', not 'urgent'"),
        ({"max_crashes": 0}, "task 'charge': max_crashes must be a whole number of at least 1, not 0"),
        ({"retry_on": "ValueError"}, "task 'charge': retry_on takes exception types, not 'ValueError'"),
        ({"no_retry_on": [int]}, "task 'charge': no_retry_on takes exception types, not <class 'int'>"),
        ({"cache_ttl": 5}, "task 'charge': cache_ttl needs a cache_key"),
        (
            {"cache_key": "pay:{user}"},
            "task 'charge': cache_key 'pay:{user}' names 'user', which is not a parameter of the function",
        ),
        ({"on_start": 5}, "task 'charge': on_start must be a function, not 5"),
        ({"retires": 3}, "task 'charge': there is no option 'retires'; did you mean 'retries'?"),
        ({"name": "two words"}, "task: name 'two words': use 1 to 200 characters without spaces"),
        ({"name": 5}, "task: its name must be text, not 5"),
        ({"name": "\ud800"}, r"task: name '\ud800': use 1 to 200 characters without spaces"),
        ({"name": "pay\u200bment"}, r"task: name 'pay\u200bment': use 1 to 200 characters without spaces"),
        ({"timeout": 1e300}, "task 'charge': timeout must be at most 100 years"),
        ({"result_ttl": 10**400}, "task 'charge': result_ttl must be at most 100 years"),
        ({"max_concurrency": 10**30}, "task 'charge': max_concurrency must be at most 1000000000"),
        (
            {"rate_limit": RateLimit(0, 1.0)},
            "task 'charge': rate limit RateLimit(count=0, period_s=1.0, burst=None): the count and",
        ),
        (
            {"rate_limit": RateLimit(1, float("nan"))},
            "task 'charge': rate limit RateLimit(count=1, period_s=nan, burst=None): the",
        ),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(worker: upnext.Worker, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ServiceError) as refused:
        worker.task(**settings)(charge)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert not worker.tasks


def test_a_bad_rate_is_refused_at_declaration(worker: upnext.Worker) -> None:
    with pytest.raises(ServiceError, match="task 'charge': .*ten"):
        worker.task(rate_limit="ten a day")(charge)


def test_what_is_no_function_is_refused(worker: upnext.Worker) -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def events() -> AsyncIterator[int]:
        yield 1

    for wrong, line in (
        (5, "task: expects a function, not int"),
        (lambda: None, "task: a function without a name of its own needs name="),
        (rows, "task 'rows': is a generator"),
        (events, "task 'events': is a generator"),
        (max, "task 'max': doesn't say what arguments it takes; call it from a function"),
    ):
        with pytest.raises(ServiceError, match=line):
            worker.task(wrong)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_hook_that_is_a_generator_is_refused(worker: upnext.Worker) -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def events() -> AsyncIterator[int]:
        yield 1

    for wrong in (rows, events):
        with pytest.raises(ServiceError, match="task 'charge': on_start is a generator"):
            worker.task(on_start=wrong)(charge)
        with pytest.raises(ServiceError, match="on_failure is a generator"):
            worker.on_failure(wrong)


def test_a_lambda_with_a_name_and_a_callable_object_are_tasks(worker: upnext.Worker) -> None:
    class Send:
        async def __call__(self, to: str) -> str:
            return to

    def shout(text: str) -> str:
        return text.upper()

    assert not worker.task(name="shout")(shout).spec.is_async
    assert worker.task(name="send")(Send()).spec.is_async


def test_two_tasks_of_one_name_are_refused_with_both_places(worker: upnext.Worker) -> None:
    worker.task(charge)
    with pytest.raises(ConflictError, match="worker 'shop': two tasks are named 'charge': .*:\\d+ and .*:\\d+"):
        worker.task(name="charge")(render)
    with pytest.raises(ConflictError):
        worker.cron("* * * * *", name="charge")(lambda: None)


# -- crons


def test_a_cron_has_its_schedule(worker: upnext.Worker) -> None:
    @worker.cron(
        "*/5 * * * * *", timezone="Europe/Berlin", missed_run_policy="skip", max_catch_up_seconds=60, timeout=5
    )
    async def tick() -> int:
        return 1

    assert tick.spec.kind is TaskKind.CRON
    assert tick.spec.cron == CronSpec("*/5 * * * * *", "Europe/Berlin", MissedRunPolicy.SKIP, 60.0)
    assert tick.spec.options.timeout_s == 5.0
    assert dict(worker.crons) == {"tick": tick}
    assert not worker.tasks


def test_a_crons_defaults(worker: upnext.Worker) -> None:
    @worker.cron("0 9 * * *")
    def report() -> None: ...

    assert report.spec.cron == CronSpec("0 9 * * *", "UTC", MissedRunPolicy.LATEST_ONLY, None)
    assert report.spec.options == TaskOptions()


@pytest.mark.parametrize(
    ("schedule", "settings", "line"),
    [
        ("61 * * * *", {}, "cron 'now': "),
        ("every day", {}, "cron 'now': "),
        ("* * * * *", {"timezone": "Mars/Olympus"}, "cron 'now': .*Mars/Olympus"),
        ("* * * * *", {"timezone": None}, "cron 'now': .*no time zone None; use an IANA name"),
        ("0 0 30 2 *", {}, r"cron 'now': cron '0 0 30 2 \*' is never due: there is no such day"),
        ("* * * * *", {"missed_run_policy": "later"}, "cron 'now': missed_run_policy must be one of catch_up, "),
        ("* * * * *", {"max_catch_up_seconds": 0}, "cron 'now': max_catch_up_seconds must be more than 0 seconds"),
        ("* * * * *", {"cache_key": "x"}, "cron 'now': there is no option 'cache_key'"),
    ],
)
def test_a_wrong_cron_is_refused_in_one_line(
    worker: upnext.Worker, schedule: str, settings: dict[str, Any], line: str
) -> None:
    def now() -> None: ...

    with pytest.raises(ServiceError, match=line) as refused:
        worker.cron(schedule, **settings)(now)
    assert "\n" not in str(refused.value)


def test_a_cron_needs_a_schedule_and_takes_no_arguments(worker: upnext.Worker) -> None:
    with pytest.raises(ServiceError, match="cron: expects a schedule"):
        worker.cron(charge)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ServiceError, match="cron 'charge': is called without arguments, but missing .*'order_id'"):
        worker.cron("* * * * *")(charge)


def test_a_cron_with_arguments(worker: upnext.Worker) -> None:
    @worker.cron("* * * * *", args=("sales",), kwargs={"copies": 2})
    def report(kind: str, copies: int = 1) -> None: ...

    assert report.spec.cron is not None
    assert report.spec.cron.payload == b'{"kind":"sales","copies":2}'


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"args": ()}, "cron 'one': is called without arguments, but missing .*'count'"),
        ({"args": (1, "a", 3)}, "cron 'one': is called with args and kwargs, but too many"),
        ({"kwargs": {"counts": 1}}, "cron 'one': is called with args and kwargs, but .*'count'"),
        ({"args": ("many",)}, "cron 'one': .*argument 'count' doesn't fit"),
        ({"args": "many"}, "cron 'one': args is a list or a tuple and kwargs a dict"),
        ({"kwargs": [1]}, "cron 'one': args is a list or a tuple and kwargs a dict"),
        ({"args": (1, "x" * 70_000)}, "cron 'one': its arguments are .* bytes as JSON, over 65,536"),
    ],
)
def test_wrong_arguments_of_a_cron(worker: upnext.Worker, settings: dict[str, Any], line: str) -> None:
    def one(count: int, text: str = "") -> None: ...

    with pytest.raises(ServiceError, match=line):
        worker.cron("* * * * *", **settings)(one)


# -- events


def test_a_handler_is_named_after_its_event(worker: upnext.Worker) -> None:
    placed = worker.event("order.placed")
    confirm = placed.on(charge)
    reserve = placed.on(retries=3, retry_delay=0.5, rate_limit="5/s", name="reserve")(render)
    assert (confirm.name, reserve.name) == ("order.placed.charge", "order.placed.reserve")
    assert placed.handlers == ("order.placed.charge", "order.placed.reserve")
    assert confirm.spec.kind is TaskKind.EVENT
    assert confirm.spec.event == "order.placed"
    assert reserve.spec.options == TaskOptions(retries=3, retry_delay_s=0.5, rate_limit=RateLimit(5, 1.0))
    assert worker.spec().tasks.keys() == {"order.placed.charge", "order.placed.reserve"}
    assert not worker.tasks
    assert dict(worker.events) == {"order.placed": placed}


def test_the_same_event_is_the_same_object(worker: upnext.Worker) -> None:
    assert worker.event("order.placed") is worker.event("order.placed")


def test_wrong_handlers_are_refused(worker: upnext.Worker) -> None:
    placed = worker.event("order.placed")
    with pytest.raises(ServiceError, match=r"handler order\.placed\.charge: there is no option 'cache_key'"):
        placed.on(cache_key="x")(charge)  # pyright: ignore[reportCallIssue]
    placed.on(charge)
    with pytest.raises(ConflictError, match=r"two tasks are named 'order\.placed\.charge'"):
        placed.on(charge)
    with pytest.raises(ServiceError, match="event: name 'order placed'"):
        worker.event("order placed")
    with pytest.raises(ServiceError, match="use 1 to 200 characters"):
        worker.event("e" * 200).on(charge)


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


def fields_of(event: upnext.Event, **fields: Any) -> Any:
    """What `send` would put on its way."""
    return json.loads(event._payload(fields))


def test_a_field_that_would_not_come_back_is_refused(worker: upnext.Worker) -> None:
    signed_in = worker.event("signed.in")
    login = Login(password=pydantic.SecretStr("hunter2"))
    with pytest.raises(EncodingError, match=r"event signed\.in: login: .*password would not come back"):
        fields_of(signed_in, login=login)

    @signed_in.on
    def note(logins: list[Login], when: date, count: int) -> None: ...

    with pytest.raises(EncodingError, match=r"event signed\.in: logins: "):
        fields_of(signed_in, logins=[login], when=date(2026, 1, 2), count=1)
    assert "hunter2" not in repr(note)


def test_fields_are_checked_by_the_handlers_that_are_known(worker: upnext.Worker) -> None:
    placed = worker.event("order.placed")

    @placed.on
    def book(count: int, when: date) -> None: ...

    @placed.on
    def note(when: str, more: object = None, **rest: int) -> None: ...

    when = date(2026, 1, 2)
    assert fields_of(placed, count="5", when=when, more=when, size=1) == {
        "count": "5", "when": "2026-01-02", "more": "2026-01-02", "size": 1,
    }  # fmt: skip
    assert fields_of(placed, when="2026-01-02") == {"when": "2026-01-02"}, "what is missing is for its job to say"
    for fields in ({"count": "zz"}, {"count": when}, {"count": None}, {"when": "soon"}, {"when": 5.5}):
        with pytest.raises(InvalidArgumentsError, match=r"event order\.placed: field '\w+' doesn't fit: .*book\(count"):
            fields_of(placed, **fields)
    with pytest.raises(EncodingError, match=r"event order\.placed: when: object has no JSON form"):
        fields_of(placed, when=object())


def test_what_a_handler_takes_by_any_name_is_checked_when_the_event_is_sent(worker: upnext.Worker) -> None:
    placed = worker.event("order.placed")

    @placed.on
    def note(count: int = 0, **days: date) -> None: ...

    assert fields_of(placed, count=1, first=date(2026, 1, 2)) == {"count": 1, "first": "2026-01-02"}
    for fields in ({"first": "soon"}, {"count": 1, "first": "soon"}, {"first": date(2026, 1, 2), "second": True}):
        with pytest.raises(InvalidArgumentsError, match=r"field '(first|second)' doesn't fit: .*note\(count"):
            fields_of(placed, **fields)


@pytest.mark.parametrize(
    ("value", "function", "line"),
    [
        ("fiber", render, "task 'render': executor must be 'thread' or 'process', not 'fiber'"),
        ("process", charge, "task 'charge': executor is for plain functions; an async one runs on"),
    ],
)
def test_an_executor_that_cannot_be_meant(worker: upnext.Worker, value: Any, function: Any, line: str) -> None:
    with pytest.raises(ServiceError, match=line):
        worker.task(executor=value)(function)


async def test_a_handler_can_be_called(worker: upnext.Worker) -> None:
    placed = worker.event("order.placed")
    assert await placed.on(charge)("o-1") == "o-1-1"
    assert placed.on(render)("o-1") == "o-1"


# -- workers


def test_a_workers_options() -> None:
    worker = upnext.Worker(
        "shop", concurrency=7, prefetch=0, sync_executor="process", sync_pool_size=3, redis_url="redis://localhost:6379"
    )
    spec = worker.spec()
    assert (spec.name, spec.concurrency, spec.prefetch, spec.sync_pool_size) == ("shop", 7, 0, 3)
    assert spec.sync_executor is SyncExecutor.PROCESS
    assert spec.redis_url == "redis://localhost:6379"


def test_a_workers_defaults() -> None:
    spec = upnext.Worker().spec()
    assert (spec.name, spec.concurrency, spec.prefetch, spec.sync_pool_size) == ("worker", 2, None, None)
    assert spec.sync_executor is SyncExecutor.THREAD
    assert spec.redis_url is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"concurrency": 0}, "Worker: concurrency must be a whole number of at least 1, not 0"),
        ({"name": "shop", "prefetch": -1}, "worker 'shop': prefetch must be a whole number of at least 0, not -1"),
        ({"sync_pool_size": 0}, "Worker: sync_pool_size must be a whole number of at least 1, not 0"),
        ({"sync_executor": "fiber"}, "Worker: sync_executor must be 'thread' or 'process', not 'fiber'"),
        ({"name": "a b"}, "worker 'a b': "),
        ({"redis_url": "http://localhost"}, ".*http"),
        ({"redis_url": 6379}, "a Redis URL is text, not int"),
        ({"concurrency": 10**9}, "Worker: concurrency must be at most 100000"),
    ],
)
def test_wrong_worker_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        upnext.Worker(**options)


def test_autodiscover_imports_every_module_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shop_of_tests"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("import upnext\nworker = upnext.Worker('shop')\n")
    (package / "mail.py").write_text("from shop_of_tests import worker\n@worker.task\ndef send(to: str): ...\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "tax.py").write_text("from shop_of_tests import worker\n@worker.task\ndef levy(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = upnext.Worker("finder")
    try:
        worker.autodiscover("shop_of_tests")
        assert sys.modules["shop_of_tests"].worker.tasks.keys() == {"send", "levy"}
        with pytest.raises(ServiceError, match="there is no module 'shop_of_tests.sales'"):
            worker.autodiscover("shop_of_tests.sales")
        (package / "broken.py").write_text("import not_there_at_all\n")
        with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
            worker.autodiscover("shop_of_tests")
    finally:
        for name in [name for name in sys.modules if name.startswith("shop_of_tests")]:
            del sys.modules[name]


def test_a_plain_decorator_around_an_async_function_is_refused() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return inner

    async def body() -> None: ...

    with pytest.raises(ServiceError, match="never run its body"):
        upnext.Worker("w").task(logged(body))


def test_slips_of_a_declaration_name_the_right_word() -> None:
    worker = upnext.Worker("w", redis_url="redis://127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"no option 'concurency'; did you mean 'concurrency'\?"):
        upnext.Worker("x", concurency=3)  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match=r'@worker\.event\("paid"\)\.on'):
        worker.event("paid")(print)
    with pytest.raises(ServiceError, match="a cron belongs to one service"):
        worker.cron("* * * * *", shared=True)(print_nothing)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="use submit"):
        worker.task(print_nothing).delay()  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentsError, match=r"input 1: other\(\) takes 0"):
        worker.task(name="other")(print_nothing).submit_many_sync([(), (1,)])


def print_nothing() -> None: ...


def test_the_shapes_of_retries() -> None:
    worker = upnext.Worker("w")

    def busy(error: Exception) -> bool:
        return bool(error)

    options = worker.task(retries=None, retry_delay=[1, timedelta(hours=2)], retry_on=busy, retry_jitter=False)(
        print_nothing
    )
    assert options.spec.options.retries is None
    assert options.spec.options.retry_delays_s == (1.0, 7200.0)
    assert options.spec.options.retry_max_delay_s == 7200.0
    assert options.spec.options.retry_if is busy
    assert not options.spec.options.retry_jitter

    async def later(error: Exception) -> bool:
        return bool(error)

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"retry_delay": []}, "lists no delay"),
        ({"retry_delay": [1, -1]}, "retry_delay must be 0 or more seconds"),
        ({"retry_delay": [1], "retry_backoff": 2}, "nothing for retry_backoff to grow"),
        ({"retry_max_delay": 0}, "retry_max_delay must be more than 0"),
        ({"retry_jitter": 1}, "retry_jitter must be True or False"),
        ({"retry_on": later}, "must be a plain function"),
        ({"retry_on": print_nothing}, "is called with the error, but"),
        ({"retries": -1}, "retries must be a whole number"),
    ]
    for settings, why in wrong:
        with pytest.raises(ServiceError, match=why):
            worker.task(name="x", **settings)(print_nothing)
