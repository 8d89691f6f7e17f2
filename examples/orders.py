"""A small shop: orders with items, a payment provider that fails now and then, an event with two handlers, a clock and a report.

upnextd start examples/orders.py --workers 2        # or: upnext run examples/orders.py
upnext call place_order --kwargs '{"order_id": "o-1", "items": [{"sku": "tea", "quantity": 2, "price": "4.50"}]}' --wait
"""

from __future__ import annotations

import asyncio
import csv
import io
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import upnext

worker = upnext.Worker("orders", concurrency=10)
order_placed = worker.event("order.placed")


@dataclass
class Item:
    sku: str
    quantity: int
    price: Decimal


@dataclass
class Receipt:
    order_id: str
    total: Decimal
    payment_id: str
    paid_at: datetime


class PaymentDeclinedError(Exception):
    """The card was refused: trying again won't help."""


@worker.task(timeout=60)
async def place_order(order_id: str, items: list[Item], card: str = "4242") -> Receipt:
    """Charges the card as a job of its own, then tells everybody who wants to know."""
    ctx = upnext.get_current_context()
    total = sum((item.price * item.quantity for item in items), Decimal(0))
    ctx.set_progress(0.5, "charging the card")
    payment_id = (await charge_card.wait(order_id, total, card)).value
    await order_placed.send(order_id=order_id, skus=[item.sku for item in items], total=total)
    ctx.log.info("order %s placed: %s", order_id, total)
    return Receipt(order_id, total, payment_id, datetime.now(UTC))


@worker.task(retries=8, retry_delay=0.2, no_retry_on=PaymentDeclinedError, max_concurrency=20)
async def charge_card(order_id: str, amount: Decimal, card: str = "4242") -> str:
    """A payment provider on a bad day: one call in three is lost, and tried again."""
    await asyncio.sleep(0.05)
    if card.startswith("0"):
        raise PaymentDeclinedError(f"card {card} was declined")
    if random.random() < 1 / 3:
        raise ConnectionError("the payment provider did not answer")
    return f"pay-{order_id}-{amount}"


@order_placed.on
async def send_confirmation(order_id: str, total: Decimal, **_rest: object) -> str:
    """Takes the fields it wants; the event may carry more."""
    await asyncio.sleep(0.02)
    return f"Thank you for order {order_id} over {total}"


@order_placed.on(retries=3, retry_delay=0.5)
async def reserve_stock(order_id: str, skus: list[str]) -> int:
    """A second handler of the same event, with a fate of its own."""
    await asyncio.sleep(0.02)
    upnext.get_current_context().log.info("reserved %s for %s", ", ".join(skus), order_id)
    return len(skus)


@worker.task
def render_invoice(order_id: str, items: list[Item]) -> str:
    """Plain blocking code: it runs in a thread, beside the others."""
    sheet = io.StringIO()
    rows = csv.writer(sheet)
    rows.writerow(["order", "sku", "quantity", "price", "total"])
    for item in items:
        rows.writerow([order_id, item.sku, item.quantity, item.price, item.price * item.quantity])
    return sheet.getvalue()


@worker.task(timeout=300)
async def pack_parcel(order_id: str, seconds: float = 5.0) -> str:
    """Takes its time: the one to be running when a worker dies."""
    ctx = upnext.get_current_context()
    steps = max(1, round(seconds / 0.1))
    for step in range(steps):
        await asyncio.sleep(seconds / steps)
        ctx.set_progress((step + 1) / steps, f"packing {order_id}")
    return f"{order_id} packed, attempt {ctx.attempt}, {ctx.crashes} crashes"


@worker.cron("* * * * * *")
async def tick() -> str:
    """Every second, once, however many workers and hosts there are."""
    return datetime.now(UTC).isoformat()
