"""Hooks before a submit: what they see, what they leave, whom they reach, and what comes of what they raise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

import upnext
from tests.unit.sdk.fake_broker import StandIn
from upnext import before_submitting
from upnext.errors import ServiceError, UsageError


@pytest.fixture(autouse=True)
def everywhere() -> Iterator[None]:
    yield
    before_submitting.EVERYWHERE.clear()


def shop() -> tuple[upnext.Worker, upnext.Task[..., str], upnext.Event]:
    worker = upnext.Worker("shop", redis_url="redis://shop:6379")

    @worker.task(priority="high")
    async def charge(order_id: str, cents: int = 1) -> str:
        return order_id

    return worker, charge, worker.event("placed")


def own_labels(standin: StandIn) -> list[Any]:
    return [(one.own or {}).get("labels") for one in standin.submitted]


async def test_every_way_to_submit_is_seen_once(standin: StandIn) -> None:
    _, charge, placed = shop()
    seen: list[tuple[str | None, str | None, dict[str, Any], str | None]] = []

    @upnext.before_submit
    def _tenant(job: upnext.NewJob) -> None:
        seen.append((job.task, job.event, dict(job.arguments), job.idempotency_key))
        job.labels["tenant"] = "acme"

    @placed.on
    def book(order_id: str) -> None: ...

    await charge.submit("o-1")
    charge.submit_sync("o-2", cents=3)
    await charge.submit_idempotent("k", "o-3")
    await charge.wait("o-4")
    charge.wait_sync("o-5")
    await charge.submit_many([("o-6",), {"order_id": "o-7"}])
    await charge.options(delay=5, labels={"kind": "late", "tenant": "?"}).submit("o-8")
    assert [one[2]["order_id"] for one in seen] == [f"o-{number}" for number in range(1, 9)]
    assert {one[:2] for one in seen} == {("charge", None)}
    assert [one[3] for one in seen].count("k") == 1
    assert own_labels(standin) == [{"tenant": "acme"}] * 7 + [{"kind": "late", "tenant": "acme"}]
    seen.clear()
    assert await placed.send(order_id="o-9") == placed.send_sync(order_id="o-9") == 1
    await book.send("o-9")
    await placed.send_idempotent("once", order_id="o-9")
    assert seen == [(None, "placed", {"order_id": "o-9"}, None)] * 3 + [(None, "placed", {"order_id": "o-9"}, "once")]
    assert [one["own"] for one in standin.sent] == [{"labels": {"tenant": "acme"}}] * 4


async def test_a_worker_s_own_come_after_and_are_of_its_tasks_alone(standin: StandIn) -> None:
    worker, charge, placed = shop()
    _, other, _ = shop()
    order: list[str] = []

    @worker.before_submit
    def _second(job: upnext.NewJob) -> None:
        order.append("worker's")
        assert job.labels == {"by": "all"}
        job.labels["by"] = "shop"

    @upnext.before_submit
    def _first(job: upnext.NewJob) -> None:
        order.append("all")
        job.labels["by"] = "all"

    await charge.options(timeout=3).submit("o-1")
    await other.submit("o-2")
    await placed.send()
    assert order == ["all", "worker's", "all", "all", "worker's"]
    assert [one.own for one in standin.submitted] == [
        {"timeout_s": 3, "labels": {"by": "shop"}},
        {"labels": {"by": "all"}},
    ]


async def test_what_it_raises_comes_to_the_caller_and_nothing_is_sent(standin: StandIn) -> None:
    worker, charge, placed = shop()

    @worker.before_submit
    def _refuse(job: upnext.NewJob) -> None:
        if job.event or job.arguments["order_id"] == "bad":
            raise PermissionError(f"not for {job!r}")

    with pytest.raises(PermissionError, match="not for <NewJob of charge>"):
        await charge.submit_many([("good",), ("bad",), ("good",)])
    with pytest.raises(PermissionError):
        charge.wait_sync("bad")
    with pytest.raises(PermissionError, match="event placed"):
        placed.send_sync(order_id="o-1")
    assert (standin.submitted, standin.sent) == ([], [])
    await charge.submit("good")
    assert len(standin.submitted) == 1


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"tenant": 7}, "before_submit of charge: label tenant has text"),
        ({"": "x"}, "a label's name is text"),
        ({str(number): "x" for number in range(17)}, "at most 16 labels, not 17"),
    ],
)
async def test_labels_that_can_not_be(standin: StandIn, labels: dict[str, Any], line: str) -> None:
    worker, charge, _ = shop()
    worker.before_submit(lambda job: job.labels.update(labels))
    with pytest.raises(UsageError, match=line):
        await charge.submit("o-1")
    assert standin.submitted == []


async def test_it_can_take_labels_away_and_change_no_argument(standin: StandIn) -> None:
    worker, charge, _ = shop()

    @worker.before_submit
    def _clear(job: upnext.NewJob) -> None:
        job.labels.clear()
        with pytest.raises(TypeError):
            job.arguments["order_id"] = "x"  # pyright: ignore[reportIndexIssue]

    await charge.options(labels={"a": "b"}).submit("o-1")
    assert [one.own for one in standin.submitted] == [None]


@pytest.mark.parametrize("labels", [None, 3, "tenant", ["tenant"], [("tenant", "acme")]])
async def test_labels_that_are_no_dict(standin: StandIn, labels: Any) -> None:
    worker, charge, _ = shop()
    worker.before_submit(lambda job: setattr(job, "labels", labels))
    with pytest.raises(UsageError, match="before_submit of charge: labels are names and their texts"):
        await charge.submit("o-1")
    with pytest.raises(UsageError, match=r"charge.options: labels are names and their texts"):
        charge.options(labels=labels or cast("Any", ("tenant",)))
    assert standin.submitted == []


async def test_arguments_by_position_have_their_names(standin: StandIn) -> None:
    worker = upnext.Worker("shop", redis_url="redis://shop:6379")
    seen: list[dict[str, Any]] = []
    worker.before_submit(lambda job: seen.append(dict(job.arguments)))

    @worker.task
    def pack(order_id: str, /, *items: int, gift: bool = False, **more: str) -> None: ...

    @worker.task
    def ship(order_id: str, /, to: str) -> None: ...

    await pack.submit("o-1", 2, 3, gift=True, note="n")
    await pack.submit("o-2")
    ship.submit_sync("o-3", to="home")
    assert seen == [
        {"order_id": "o-1", "items": [2, 3], "gift": True, "note": "n"},
        {"order_id": "o-2"},
        {"order_id": "o-3", "to": "home"},
    ]


class _ClosedError(UsageError):
    def __init__(self, tenant: str, *, until: int) -> None:
        super().__init__(f"{tenant} is closed until {until}")


async def test_an_error_of_its_own_comes_out_of_submit_many_as_it_is(standin: StandIn) -> None:
    worker, charge, _ = shop()

    def refuse(job: upnext.NewJob) -> None:
        raise _ClosedError("acme", until=5)

    worker.before_submit(refuse)
    with pytest.raises(_ClosedError, match="acme is closed until 5"):
        await charge.submit_many([("o-1",)])
    assert standin.submitted == []


async def test_a_coroutine_that_it_gives_would_never_run(standin: StandIn) -> None:
    worker, charge, _ = shop()

    def plain_around(job: upnext.NewJob) -> object:
        return _asynchronous(job)

    worker.before_submit(plain_around)
    with pytest.raises(ServiceError, match="which nothing awaits"):
        await charge.submit("o-1")
    assert standin.submitted == []


async def _asynchronous(job: upnext.NewJob) -> None: ...


def _generator(job: upnext.NewJob) -> Iterator[int]:
    yield 1


async def _asynchronous_generator(job: upnext.NewJob) -> AsyncIterator[int]:
    yield 1


def _of_two(job: upnext.NewJob, more: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (7, "must be a function of the job, not 7"),
        (_asynchronous, "must be a plain def"),
        (_generator, "is a generator"),
        (_asynchronous_generator, "is a generator"),
        (_of_two, r"is called with \(job\)"),
        (lambda: None, r"is called with \(job\)"),
    ],
)
def test_what_can_be_no_hook(function: Any, line: str) -> None:
    declare: list[Callable[[Any], Any]] = [upnext.before_submit, upnext.Worker("w").before_submit]
    for one in declare:
        with pytest.raises(ServiceError, match=line):
            one(function)
    assert before_submitting.EVERYWHERE == []
