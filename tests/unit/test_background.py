"""The owner of background tasks."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest

from upnext.engine.background import BackgroundTasks


async def test_it_keeps_a_task_until_it_is_done() -> None:
    background = BackgroundTasks("unit")
    go = asyncio.Event()
    task = background.start(go.wait(), "one")
    assert (len(background), task.get_name()) == (1, "one")
    go.set()
    await asyncio.wait_for(background.finished(), 5)
    assert len(background) == 0


async def test_a_failure_is_logged_and_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("no")

    background = BackgroundTasks("unit")
    go = asyncio.Event()
    other = background.start(go.wait())
    failed = background.start(fail(), "the one")
    with caplog.at_level(logging.ERROR):
        await asyncio.wait([failed])
        await asyncio.sleep(0)
    assert "the one failed: OSError('no')" in caplog.text
    assert not other.done()
    await background.aclose()


async def test_closing_cancels_the_rest_and_waits_for_it() -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.append("ended")

    background = BackgroundTasks("unit")
    background.start(slow())
    await begun.wait()
    await asyncio.wait_for(background.aclose(), 5)
    assert (ended, len(background)) == (["ended"], 0)


async def test_tasks_run_in_no_job_s_context() -> None:
    variable = contextvars.ContextVar("variable", default="nothing")
    variable.set("a job's")

    async def read() -> str:
        return variable.get()

    assert await BackgroundTasks("unit").start(read()) == "nothing"
