"""Submit and send by name, without the service's code."""

from __future__ import annotations

from typing import Any

import pytest

import upnext
from tests.support.service import serving
from upnext import by_name


@pytest.fixture(autouse=True)
def _place(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)


def shop() -> upnext.Worker:
    worker = upnext.Worker("w", concurrency=4)
    placed = worker.event("order.placed")

    @worker.task(priority="high")
    async def charge(order_id: str, cents: int = 1, *, note: str | None = None) -> list[object]:
        return [order_id, cents, note]

    @worker.task
    async def anything(first: int, /, *rest: int, **more: int) -> list[object]:
        return [first, rest, more]

    @worker.task(max_concurrency=1)
    async def limited() -> str:
        return upnext.get_current_context().parent_id or ""

    @worker.task
    async def parent() -> object:
        return await (await upnext.submit("limited")).value(timeout=20)

    @placed.on
    async def confirm(order_id: str) -> str:
        return order_id

    @placed.on
    async def count(items: list[str], order_id: str = "") -> int:
        return len(items)

    return worker


async def test_jobs_run_with_their_arguments(redis_url: str, namespace: str) -> None:
    async with serving(shop(), redis_url, namespace):
        future = await upnext.submit("charge", "A1", 500, note="x")
        assert await future.value(timeout=30) == ["A1", 500, "x"]
        assert await (await upnext.submit("charge", order_id="A2")).value(timeout=30) == ["A2", 1, None]
        assert await (await upnext.submit("anything", 1, check=True)).value(timeout=30) == [1, [], {}]
        parent = await upnext.submit("parent")
        assert await parent.value(timeout=30) == parent.job_id


async def test_what_does_not_fit_is_refused(redis_url: str, namespace: str) -> None:
    async with serving(shop(), redis_url, namespace):
        wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
            ((), {}, "missing argument 'order_id'; the task is charge"),
            (("A1",), {"cent": 5}, "unexpected argument 'cent'"),
            (("A1", "many"), {}, "argument 'cents' must be int, not 'many'"),
            ((7,), {}, "argument 'order_id' must be str, not 7"),
            (("A1",), {"order_id": "A2"}, "argument 'order_id' is given twice"),
            (("A1", 1, "x"), {}, "2 positional arguments are taken, not 3"),
        ]
        for args, kwargs, words in wrong:
            with pytest.raises(upnext.InvalidArgumentsError, match=words):
                await upnext.submit("charge", *args, **kwargs)
        with pytest.raises(upnext.UsageError, match="no task 'charg' is registered here; did you mean charge"):
            await upnext.submit("charg")


async def test_a_task_that_is_not_registered_yet(redis_url: str, namespace: str) -> None:
    future = await upnext.submit("charge", check=False, order_id="A1")
    with pytest.raises(upnext.InvalidArgumentsError, match="give its arguments by name"):
        await upnext.submit("charge", "A1", check=False)
    assert await upnext.send("order.placed", check=False, order_id="A1") == 0
    async with serving(shop(), redis_url, namespace):
        assert await future.value(timeout=30) == ["A1", 1, None]


async def test_events_by_name(redis_url: str, namespace: str) -> None:
    async with serving(shop(), redis_url, namespace):
        assert await upnext.send("order.placed", order_id="A1", items=["tea"]) == 2
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"order_id": "A1"}, "handler order.placed.count needs field 'items'"),
            ({"order_id": "A1", "items": [], "itms": 1}, "no handler takes field 'itms'; fields: items, order_id"),
            ({"order_id": "A1", "items": "tea"}, "field 'items' must be list"),
        ]
        for fields, words in wrong:
            with pytest.raises(upnext.InvalidArgumentsError, match=words):
                await upnext.send("order.placed", **fields)
        with pytest.raises(
            upnext.UsageError, match="no handler of event 'order.place' is registered here; did you mean"
        ):
            await upnext.send("order.place")


async def test_the_blocking_forms(redis_url: str, namespace: str) -> None:
    async with serving(shop(), redis_url, namespace):
        future = upnext.submit_sync("charge", "A1", 2)
        assert await future.value(timeout=30) == ["A1", 2, None]
        assert upnext.send_sync("order.placed", order_id="A1", items=[]) == 2


async def test_a_definition_is_read_once_in_a_while(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = by_name.tasks.one

    def one(broker: object, keys: object, name: str) -> object:
        reads.append(name)
        return real(broker, keys, name)  # type: ignore[arg-type]

    monkeypatch.setattr(by_name.tasks, "one", one)
    async with serving(shop(), redis_url, namespace):
        for _ in range(5):
            await upnext.submit("charge", "A1")
    assert reads == ["charge"]
