"""From a call of a handle to what the broker is asked (a stand-in: see standin.py), and back from an outcome to a TaskResult."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

import upnext
from tests.unit.sdk.fake_broker import StandIn, StandInAttempt
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.core.submission import Submission
from upnext.engine.attempt import CURRENT
from upnext.errors import DuplicateJobError, EncodingError, InvalidArgumentsError, UsageError

worker = upnext.Worker("shop", redis_url="redis://shop:6379")


@dataclass
class Receipt:
    order_id: str
    total: Decimal


@worker.task(priority="high", max_concurrency=3)
async def charge(order_id: str, amount: Decimal = Decimal(1)) -> Receipt:
    return Receipt(order_id, amount)


@worker.task
def render(order_id: str) -> str:
    return order_id


@worker.task
async def sleepy(wait_timeout: float) -> float:
    return wait_timeout


@asynccontextmanager
async def inside(standin: StandIn, **fields: Any) -> AsyncGenerator[StandInAttempt]:
    """As if in a job of `render`."""
    attempt = StandInAttempt(standin, render.spec, asyncio.get_running_loop())
    for name, value in fields.items():
        setattr(attempt, name, value)
    token = CURRENT.set(attempt)  # pyright: ignore[reportArgumentType]
    try:
        yield attempt
    finally:
        CURRENT.reset(token)


# -- submit


async def test_a_submit_says_what_the_task_says(standin: StandIn) -> None:
    future = await charge.submit("o-1", amount=Decimal("4.50"))
    assert future.job_id == "charge:n1-0"
    (sent,) = standin.submitted
    assert sent == Submission(task="charge", payload=sent.payload, priority="high", limited=True)
    assert orjson.loads(sent.payload) == {"order_id": "o-1", "amount": "4.50"}
    assert standin.urls == ["redis://shop:6379"]


def test_submit_sync_says_the_same(standin: StandIn) -> None:
    assert render.submit_sync("o-1").job_id == "render:n1-0"
    assert render.submit_sync(order_id="o-1").job_id == "render:n2-0"
    assert standin.submitted == [Submission(task="render", payload=b'{"order_id":"o-1"}')] * 2


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("o-1",), {"order": 1}), (("o-1", 1, 2), {}), (("o-1",), {"order_id": "o-2"})]
)
async def test_wrong_arguments_fail_here_and_show_the_signature(
    standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentsError, match=r"charge\(order_id: str, amount: Decimal"):
        await charge.submit(*args, **kwargs)
    with pytest.raises(InvalidArgumentsError):
        charge.wait_sync(*args, **kwargs)
    assert standin.submitted == []


async def test_what_has_no_json_form_fails_here(standin: StandIn) -> None:
    with pytest.raises(EncodingError, match="order_id"):
        await render.submit(object())  # pyright: ignore[reportArgumentType]
    assert standin.submitted == []


async def test_options_of_one_submit(standin: StandIn) -> None:
    await charge.options(delay=5, priority="normal", queue_ttl=timedelta(minutes=1)).submit("o-1")
    at = datetime(2030, 1, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    await charge.options(at=at, idempotency_ttl=60).submit_idempotent("k", "o-2")
    first, second = standin.submitted
    assert (first.delay_s, first.at_us, first.priority, first.queue_ttl_s) == (5.0, None, "normal", 60.0)
    assert (second.delay_s, second.at_us, second.priority, second.queue_ttl_s) == (None, 1893499200500000, "high", None)
    assert (first.idempotency_key, second.idempotency_key, second.idempotency_ttl_s) == (None, "k", 60.0)


async def test_options_add_up_and_leave_the_task_alone(standin: StandIn) -> None:
    soon = render.options(delay=5)
    await soon.options(priority="high").submit("o-1")
    await soon.options(at=datetime(2030, 1, 1, tzinfo=UTC)).submit("o-1")
    await render.submit("o-1")
    assert [(s.delay_s, s.priority) for s in standin.submitted] == [(5.0, "high"), (None, "normal"), (None, "normal")]
    assert standin.submitted[1].at_us == 1893456000000000


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"delay": -1}, "render.options: delay must be 0 or more seconds, not -1"),
        ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, "render.options: give delay= or at=, not both"),
        ({"at": datetime(2030, 1, 1)}, "render.options: at needs a time zone"),
        ({"at": 5}, "render.options: at must be a datetime, not 5"),
        ({"priority": "low"}, "render.options: priority must be 'normal' or 'high', not 'low'"),
        ({"queue_ttl": 0}, "render.options: queue_ttl must be more than 0 seconds, not 0"),
        ({"idempotency_ttl": 0}, "render.options: idempotency_ttl must be more than 0 seconds, not 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        render.options(**options)
    assert str(refused.value).startswith(line)


async def test_idempotent(standin: StandIn) -> None:
    assert (await render.submit_idempotent("k", "o-1")).job_id == "render:n1-0"
    with pytest.raises(DuplicateJobError) as held:
        render.submit_idempotent_sync("k", order_id="o-1")
    assert held.value.job_id == "render:n1-0"
    with pytest.raises(DuplicateJobError):
        await render.wait_idempotent("k", "o-1", wait_timeout=1)
    assert render.wait_idempotent_sync("k2", "o-1", wait_timeout=3).value == "done"
    assert standin.waits == [("render:n2-0", 3.0)]
    for wrong in ("", "x" * 513, 5):
        with pytest.raises(UsageError, match="an idempotency key is text of 1 to 512 characters"):
            await render.submit_idempotent(wrong, "o-1")  # pyright: ignore[reportArgumentType]


async def test_submit_many_takes_names_or_positions(standin: StandIn) -> None:
    futures = await upnext.submit_many(charge, [{"order_id": "o-1"}, ("o-2", Decimal(2)), ["o-3"]])
    assert [future.job_id for future in futures] == ["charge:n1-0", "charge:n2-0", "charge:n3-0"]
    assert [orjson.loads(s.payload) for s in standin.submitted] == [
        {"order_id": "o-1"},
        {"order_id": "o-2", "amount": "2"},
        {"order_id": "o-3"},
    ]
    assert all(s.priority == "high" for s in standin.submitted)
    assert await charge.submit_many([]) == []


def test_submit_many_sync_checks_all_before_it_sends_any(standin: StandIn) -> None:
    with pytest.raises(InvalidArgumentsError):
        upnext.submit_many_sync(charge, [{"order_id": "o-1"}, {"order": "o-2"}])
    with pytest.raises(
        UsageError, match="an input is a dict of named arguments or a tuple of positional ones, not 'o-1'"
    ):
        charge.submit_many_sync(["o-1"])
    assert standin.submitted == []
    assert len(charge.options(delay=1).submit_many_sync([{"order_id": "o-1"}])) == 1
    assert standin.submitted[0].delay_s == 1.0


# -- inside a job


async def test_children_know_their_parent_and_root(standin: StandIn) -> None:
    async with inside(standin) as attempt:
        await render.submit("o-1")
        attempt.parent_id, attempt.root_id = "a:n1-0", "root:n1-0"
        await render.submit("o-1")
        await asyncio.to_thread(render.submit_sync, "o-1")
    lineages = [(s.parent_id, s.root_id) for s in standin.submitted]
    assert lineages == [("render:n77-0", "render:n77-0")] + [("render:n77-0", "root:n1-0")] * 2


async def test_a_waiting_job_gives_its_slot_back(standin: StandIn) -> None:
    async with inside(standin) as attempt:
        assert (await render.wait("o-1")).value == "done"
        future = await render.submit("o-1")
        assert attempt.given_back == 1
        assert await future == "done"
        assert (attempt.given_back, attempt.open) == (2, 0)
        assert await future == "done"  # known by now: nothing to wait for
        assert attempt.given_back == 2


async def test_a_thread_task_gives_its_slot_back_on_the_workers_loop(standin: StandIn) -> None:
    import threading

    def body() -> None:
        render.wait_sync("o-1")
        render.submit_sync("o-1").value_sync()
        asyncio.run(other_loop())

    async def other_loop() -> None:
        await render.wait("o-1")

    async with inside(standin) as attempt:
        await asyncio.to_thread(body)
        assert (attempt.given_back, attempt.open) == (3, 0)
        assert attempt.threads == {threading.get_ident()}


async def test_a_blocking_wait_on_the_loop_thread_does_not_hang(standin: StandIn) -> None:
    async with inside(standin) as attempt:
        assert render.wait_sync("o-1").value == "done"
        assert attempt.given_back == 0


async def test_a_pool_process_asks_its_worker_to_give_the_slot_back(standin: StandIn) -> None:
    async with inside(standin, loop=None) as attempt:
        await render.wait("o-1")
        assert (attempt.given_back, attempt.parkings) == (0, 1)
        render.wait_sync("o-1")
        assert (attempt.given_back, attempt.parkings, attempt.open) == (0, 2, 0)


# -- wait


async def test_wait_gives_the_result(standin: StandIn) -> None:
    standin.outcomes["charge:n1-0"] = Outcome(
        JobStatus.DONE,
        value=b'{"order_id":"o-1","total":"4.50"}',
        attempt=2,
        crashes=1,
        begun_ms=1_700_000_000_250,
        finished_ms=1_700_000_001_000,
        parent_id="place:n1-0",
        root_id="place:n1-0",
    )
    result = await charge.wait("o-1")
    assert result == upnext.TaskResult(
        value=Receipt("o-1", Decimal("4.50")),
        job_id="charge:n1-0",
        function="charge",
        function_name="charge",
        status=JobStatus.DONE,
        started_at=datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC),
        completed_at=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
        attempts=2,
        crashes=1,
        parent_id="place:n1-0",
        root_id="place:n1-0",
    )
    assert result.ok
    assert standin.waits == [("charge:n1-0", None)]


async def test_wait_timeout_by_call_and_by_option(standin: StandIn) -> None:
    await render.wait("o-1", wait_timeout=2)
    await render.options(wait_timeout=3).wait("o-1")
    await render.options(wait_timeout=3).wait("o-1", wait_timeout=None)
    render.wait_sync("o-1", wait_timeout=0)
    assert [timeout for _, timeout in standin.waits] == [2.0, 3.0, None, 0.0]
    with pytest.raises(UsageError, match="render.wait: wait_timeout must be 0 or more seconds, not 'x'"):
        await render.wait("o-1", wait_timeout="x")  # pyright: ignore[reportArgumentType]


async def test_a_future_waits_for_a_duration_and_takes_no_other(standin: StandIn) -> None:
    future = await render.submit("o-1")
    for timeout in (2, timedelta(seconds=3), -1, None, math.inf):
        await render.future(future.job_id).result(timeout)
    assert [timeout for _, timeout in standin.waits] == [2.0, 3.0, 0.0, None, None]
    for wrong in ("1", math.nan):
        with pytest.raises(UsageError, match="result: timeout must be seconds, or None for no limit, not"):
            await future.result(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="a job id is text, not None"):
        upnext.Future(None)  # pyright: ignore[reportArgumentType]


async def test_no_key_is_no_idempotency_key(standin: StandIn) -> None:
    for call in (render.submit_idempotent, render.wait_idempotent):
        with pytest.raises(UsageError, match="an idempotency key is text of 1 to 512 characters, not None"):
            await call(None, "o-1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="an idempotency key is text of 1 to 512 characters, not None"):
        await upnext.Worker("w").event("placed").send_idempotent(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="an idempotency key is Unicode text"):
        await render.submit_idempotent("\ud800", "o-1")
    assert not standin.submitted


async def test_a_parameter_called_wait_timeout_stays_the_functions(standin: StandIn) -> None:
    standin.default_outcome = Outcome(JobStatus.DONE, value=b"1.5")
    assert (await sleepy.wait(wait_timeout=1.5)).value == 1.5
    assert orjson.loads(standin.submitted[0].payload) == {"wait_timeout": 1.5}
    assert standin.waits == [("sleepy:n1-0", None)]


ENDS = [
    (
        Outcome(
            JobStatus.FAILED, attempt=3, error=ErrorInfo("ValueError", "bad", "Trace…"), reason=FailureReason.ERROR
        ),
        upnext.TaskExecutionError,
        "job render:n1-0 failed at attempt 3: ValueError: bad",
    ),
    (
        Outcome(JobStatus.FAILED, reason=FailureReason.TIMEOUT),
        upnext.TaskTimeoutError,
        "job render:n1-0 ran longer than its timeout",
    ),
    (
        Outcome(JobStatus.DEAD, crashes=3, reason=FailureReason.CRASH, cause="signal:SIGSEGV"),
        upnext.TaskExecutionError,
        "job render:n1-0 was buried: its worker died 3 times (signal:SIGSEGV)",
    ),
    (
        Outcome(JobStatus.CANCELLED, reason=FailureReason.CANCELLED),
        upnext.TaskExecutionError,
        "job render:n1-0 was cancelled",
    ),
    (
        Outcome(JobStatus.FAILED, reason=FailureReason.EXPIRED),
        upnext.TaskExecutionError,
        "job render:n1-0 expired before it started",
    ),
    (Outcome(JobStatus.FAILED), upnext.TaskExecutionError, "job render:n1-0 failed"),
]


@pytest.mark.parametrize(("outcome", "kind", "line"), ENDS)
async def test_an_end_without_a_value_is_raised(
    standin: StandIn, outcome: Outcome, kind: type[upnext.TaskExecutionError], line: str
) -> None:
    standin.default_outcome = outcome
    for ending in (render.wait("o-1"), upnext.Future("render:n1-0").result()):
        with pytest.raises(upnext.TaskExecutionError) as ended:
            await ending
        assert type(ended.value) is kind
        assert str(ended.value) == line
        result = ended.value.task_result
        assert (result.status, result.failure_reason, result.value) == (outcome.status, outcome.reason, None)
        assert not result.ok
        assert result.root_id == "render:n1-0"


def test_every_reason_has_its_words() -> None:
    from upnext.future import _ENDS

    assert set(FailureReason) <= set(_ENDS)


# -- futures


async def test_a_future_by_id(standin: StandIn) -> None:
    standin.outcomes["charge:n9-0"] = Outcome(JobStatus.DONE, value=b'{"order_id":"o-9","total":"2"}')
    plain: upnext.Future[Any] = upnext.Future("charge:n9-0")
    assert await plain == {"order_id": "o-9", "total": "2"}
    result = await plain.result()
    assert (result.function, result.function_name) == ("charge", "charge")
    typed = charge.future("charge:n9-0")
    assert await typed.value(timeout=4) == Receipt("o-9", Decimal(2))
    assert typed.value_sync() == Receipt("o-9", Decimal(2))
    assert standin.waits == [("charge:n9-0", None), ("charge:n9-0", 4)]
    assert repr(typed) == "<Future charge:n9-0>"
    with pytest.raises(UsageError, match="'nonsense' is not a job id"):
        await upnext.Future("nonsense").result()


async def test_cancel(standin: StandIn) -> None:
    future = await render.submit("o-1")
    assert await future.cancel() is True
    assert await asyncio.to_thread(future.cancel_sync) is True
    assert standin.cancelled == ["render:n1-0"] * 2


async def test_a_failure_is_asked_for_again_since_a_dead_letter_may_be_retried(standin: StandIn) -> None:
    future = await render.submit("o-1")
    standin.default_outcome = Outcome(JobStatus.FAILED)
    with pytest.raises(upnext.TaskExecutionError):
        await future
    standin.default_outcome = Outcome(JobStatus.DONE, value=b'"at last"')
    assert await future == "at last"


# -- events


placed = worker.event("order.placed")


@placed.on
async def confirm(order_id: str, total: Decimal = Decimal(0), **rest: Any) -> None: ...


@placed.on(retries=2)
def reserve(order_id: str) -> None: ...


async def test_send_reaches_the_known_handlers(standin: StandIn) -> None:
    handlers = ("order.placed.confirm", "order.placed.reserve")
    assert await placed.send(order_id="o-1", at=datetime(2030, 1, 1, tzinfo=UTC), self=1) == 2
    assert placed.send_sync(order_id="o-2") == 2
    assert await placed.send_idempotent("k", order_id="o-3") == 2
    assert placed.send_idempotent_sync("k", order_id="o-4") == 2
    assert [sent["handlers"] for sent in standin.sent] == [handlers] * 4
    assert [sent["idempotency_key"] for sent in standin.sent] == [None, None, "k", "k"]
    assert {sent["event"] for sent in standin.sent} == {"order.placed"}
    assert orjson.loads(standin.sent[0]["payload"]) == {"order_id": "o-1", "at": "2030-01-01T00:00:00+00:00", "self": 1}
    assert standin.urls == ["redis://shop:6379"] * 4


async def test_a_typed_send_is_checked_against_the_handler(standin: StandIn) -> None:
    assert await confirm.send("o-1", Decimal("2.5"), note="gift") == 2
    assert reserve.send_sync("o-2") == 2
    assert await reserve.send_idempotent("k", "o-3") == 2
    assert confirm.send_idempotent_sync("k", order_id="o-4") == 2
    assert [orjson.loads(sent["payload"]) for sent in standin.sent] == [
        {"order_id": "o-1", "total": "2.5", "note": "gift"},
        {"order_id": "o-2"},
        {"order_id": "o-3"},
        {"order_id": "o-4"},
    ]
    with pytest.raises(InvalidArgumentsError, match=r"reserve\(order_id: str\)"):
        await reserve.send("o-1", note="gift")  # pyright: ignore[reportCallIssue]


async def test_an_event_sent_in_a_job_has_its_lineage(standin: StandIn) -> None:
    async with inside(standin):
        await placed.send(order_id="o-1")
    assert standin.sent[0]["lineage"] == ("render:n77-0", "render:n77-0")


async def test_an_event_with_a_bad_field_is_refused(standin: StandIn) -> None:
    with pytest.raises(EncodingError, match=r"event order\.placed: .*when"):
        await placed.send(when=object())
    assert standin.sent == []
