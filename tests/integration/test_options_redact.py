"""`redact=`: no command shows what such arguments hold, whatever becomes of the job; the function gets them as they were submitted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from upnext.cli import main
from upnext.core.redaction import HIDDEN

CARD = "4111-2222-3333"


class DeclinedError(Exception):
    pass


async def commands(redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str], *asked: tuple[str, ...]) -> str:
    """What these print, as text and as JSON."""
    printed = ""
    for arguments in asked:
        for extra in ((), ("--json",)):
            flags = ["--redis-url", redis_url, "--namespace", namespace, *arguments, *extra]
            assert await asyncio.to_thread(main.run, flags) == 0
            out, err = capsys.readouterr()
            printed += out + err
    return printed


async def test_no_command_shows_it(
    redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    worker = upnext.Worker("shop")
    got: list[Any] = []

    @worker.task(redact=("card",), retries=0)
    async def pay(card: str, order: dict[str, Any]) -> dict[str, Any]:
        got.append((card, order["card"]))
        if order["fails"]:
            raise DeclinedError(f"{card} was declined")
        return {"paid": True, "card": card}

    caplog.set_level(logging.DEBUG)
    async with serving(worker, redis_url, namespace):
        paid = await pay.submit(card=CARD, order={"card": CARD, "fails": False})
        assert (await paid.value(30))["card"] == CARD, "the caller gets the value"
        failed = await pay.submit(card=CARD, order={"card": CARD, "fails": True})
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await failed.result(30)
        assert caught.value.task_result.error == f"{__name__}.DeclinedError: {HIDDEN} was declined"
        waits = await pay.options(delay=600).submit(card=CARD, order={"card": CARD, "fails": False})
        printed = await commands(
            redis_url,
            namespace,
            capsys,
            *(("job", one.job_id) for one in (paid, failed, waits)),
            ("dead", "show", failed.job_id),
            ("dead", "list"),
            ("jobs",),
        )
    assert got == [(CARD, CARD)] * 2, "the function gets what was submitted"
    assert HIDDEN in printed
    assert CARD not in printed
    assert CARD not in caplog.text


async def test_a_dead_letter_is_retried_with_its_own_arguments(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("shop")
    got: list[str] = []

    @worker.task(redact=("card",))
    async def pay(card: str) -> None:
        got.append(card)
        if len(got) == 1:
            raise DeclinedError("first")

    async with serving(worker, redis_url, namespace):
        future = await pay.submit(card=CARD)
        with pytest.raises(upnext.TaskExecutionError):
            await future.result(30)
        flags = ["--redis-url", redis_url, "--namespace", namespace, "dead", "retry", future.job_id]
        assert await asyncio.to_thread(main.run, flags) == 0
        await future.result(30)
    assert got == [CARD, CARD]
