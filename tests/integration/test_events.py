"""Events at full length: across services and absences, each handler with a fate of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

import upnext
from tests.support.serving import broker_is, running
from tests.support.waiting import wait_until_async
from upnext import DuplicateJobError, Worker
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.engine.client.per_loop import aclose
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs
from upnext.errors import EncodingError, InvalidArgumentsError


class Shop:
    """Two services that hear of the same orders; `heard` is (handler, fields, attempt)."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any], int]] = []
        self.hold, self.hold_others = asyncio.Event(), threading.Event()
        self.hold.set()
        self.hold_others.set()
        self.mail, self.stock = Worker("mail"), Worker("stock")
        placed, placed_there = self.mail.event("order.placed"), self.stock.event("order.placed")

        @placed.on
        async def confirm(order_id: str, total: int = 0) -> None:
            await self.hold.wait()
            self._note("confirm", order_id=order_id, total=total)

        @placed.on(retries=3, retry_delay=0.02)
        async def flaky(order_id: str, **rest: Any) -> None:
            await asyncio.to_thread(self.hold_others.wait, 60)
            self._note("flaky", order_id=order_id, **rest)
            if upnext.get_current_context().attempt < 3:
                raise ConnectionError("the mail server is away")

        @placed_there.on
        def reserve(order_id: str, skus: list[str]) -> int:
            self.hold_others.wait(60)
            self._note("reserve", order_id=order_id, skus=skus)
            return len(skus)

        self.placed = placed
        self.confirm = confirm

    def _note(self, handler: str, **fields: Any) -> None:
        self.heard.append((handler, fields, upnext.get_current_context().attempt))

    def by(self, handler: str) -> list[dict[str, Any]]:
        return [fields for name, fields, _ in self.heard if name == handler]


async def test_one_send_reaches_handlers_of_other_services_and_of_workers_that_are_away(
    redis_url: str, namespace: str
) -> None:
    shop, sender = Shop(), Worker("web").event("order.placed")  # the sender knows no handler at all
    with broker_is(redis_url, namespace):
        assert await sender.send(order_id="o-0") == 0
        async with running(redis_url, namespace, shop.stock, name="stock"):
            assert await sender.send(order_id="o-1", skus=["tea"]) == 1
            await wait_until_async(lambda: shop.by("reserve") == [{"order_id": "o-1", "skus": ["tea"]}], 5)
        async with running(redis_url, namespace, shop.mail, name="mail"):
            assert await sender.send(order_id="o-2", skus=["tea", "milk"], total=5) == 3, (
                "stock's handler is away, not gone"
            )
            await wait_until_async(lambda: shop.by("confirm") == [{"order_id": "o-2", "total": 5}], 5)
            await wait_until_async(lambda: len(shop.by("flaky")) == 3, 5)
            assert [attempt for name, _, attempt in shop.heard if name == "flaky"] == [1, 2, 3], (
                "its retries are its own"
            )
            assert shop.by("flaky")[0] == {"order_id": "o-2", "skus": ["tea", "milk"], "total": 5}, (
                "**rest takes everything"
            )
            assert len(shop.by("reserve")) == 1
        async with running(redis_url, namespace, shop.stock, name="stock"):
            await wait_until_async(lambda: len(shop.by("reserve")) == 2, 5, "the job that waited for stock")
        assert len(shop.by("confirm")) == 1
        await aclose()


async def test_fields_that_are_missing_or_wrong_are_refused_with_a_clear_record(redis_url: str, namespace: str) -> None:
    shop, keys = Shop(), Keys(namespace)
    broker = SyncQueueClient(redis_url, namespace)
    with broker_is(redis_url, namespace):
        async with running(redis_url, namespace, shop.mail, shop.stock):
            assert await shop.placed.send(order_id="o-1", unknown=True) == 3
            await wait_until_async(
                lambda: shop.by("confirm") == [{"order_id": "o-1", "total": 0}], 5, "extra fields to be dropped"
            )
            letters = await wait_until_async(
                lambda: asyncio.to_thread(jobs.dead_letters, broker, keys, "order.placed.reserve"),
                5,
                "the handler that wants skus",
            )
            [letter] = letters
            assert letter.status is JobStatus.DEAD or letter.status is JobStatus.FAILED
            assert letter.error is not None
            assert letter.error.type.endswith("InvalidArgumentsError")
            assert "skus" in letter.error.message
            assert "order.placed.reserve(" in letter.error.message or "reserve(" in letter.error.message
            with pytest.raises(InvalidArgumentsError):  # the typed way to send is checked at once
                await shop.confirm.send(order="o-2")  # type: ignore[call-arg]
            with pytest.raises(EncodingError, match=r"event order\.placed"):
                await shop.placed.send(order_id=object())
        await aclose()
    broker.close()


async def test_send_idempotent_holds_each_handlers_job_apart(redis_url: str, namespace: str) -> None:
    shop = Shop()
    with broker_is(redis_url, namespace):
        async with running(redis_url, namespace, shop.mail, shop.stock):
            shop.hold.clear()
            shop.hold_others.clear()
            assert await shop.placed.send_idempotent("k", order_id="o-1", skus=[]) == 3
            with pytest.raises(DuplicateJobError):
                await shop.confirm.event.send_idempotent("k", order_id="o-3", skus=[])
            shop.hold_others.set()
            await wait_until_async(lambda: len(shop.by("reserve")) == 1 and len(shop.by("flaky")) == 3, 5)

            async def again() -> bool:
                """confirm still runs, so only the other two are taken, once the ends of both are known."""
                with suppress(DuplicateJobError):
                    return await shop.placed.send_idempotent("k", order_id="o-2", skus=[]) == 2
                return False

            await wait_until_async(again, 5)
            assert shop.by("confirm") == []
            shop.hold.set()
            await wait_until_async(lambda: len(shop.by("confirm")) == 1, 5)
            sent = await wait_until_async(lambda: asyncio.to_thread(sent_again, shop), 5, "confirm's key to be free")
            assert sent
        await aclose()


def sent_again(shop: Shop) -> bool:
    try:
        shop.placed.send_idempotent_sync("k", order_id="o-4", skus=[])
    except DuplicateJobError:
        return False
    return any(fields["order_id"] == "o-4" for fields in shop.by("confirm"))


async def test_a_handler_that_the_new_code_dropped_gets_no_more(redis_url: str, namespace: str) -> None:
    def service(*names: str) -> Worker:
        worker = Worker("w")
        event = worker.event("e")
        for name in names:

            async def handler() -> None: ...

            handler.__name__ = name
            event.on(handler)
        return worker

    sender = Worker("web").event("e")
    with broker_is(redis_url, namespace):
        async with running(redis_url, namespace, service("old", "kept")):
            assert await sender.send() == 2

        async def only_kept() -> bool:
            return await sender.send() == 1

        async with running(redis_url, namespace, service("kept")):
            await wait_until_async(only_kept, 5, "the old handler to be forgotten")
        await aclose()
