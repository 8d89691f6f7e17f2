"""Where asyncio tasks stand: for each, the chain of coroutines down to what it awaits. For people."""

from __future__ import annotations

import asyncio
import linecache
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from upnext.engine.attempt import Attempt

_OURS = str(Path(__file__).parents[3])
_OUR_PACKAGES = (f"{_OURS}/upnext/", f"{_OURS}/upnextd/")
_DEPTH = 60
_TASK_CAP = 200
_TEXT_CAP = 48 << 10


def describe(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Jobs first, then what they started; tasks of the worker itself are only counted. At most 48 KiB."""
    jobs: list[str] = []
    others: list[str] = []
    own = 0
    for task in tasks:
        frames = list(_frames(task.get_coro()))
        job = next((found for frame in frames if (found := _job(frame)) is not None), None)
        if job is not None:
            jobs.append(_lines(f"job {job}", task, frames))
        elif any(not frame.f_code.co_filename.startswith(_OUR_PACKAGES) for frame in frames[:1]):
            others.append(_lines("task", task, frames))
        else:
            own += 1
    lines = [*jobs, *others][:_TASK_CAP]
    if own:
        lines.append(f"and {own} tasks of the worker itself\n")
    return "\n".join(lines)[:_TEXT_CAP].encode("utf-8", "replace").decode()


def _lines(head: str, task: asyncio.Task[Any], frames: list[types.FrameType]) -> str:
    lines = [f"{head} ({task.get_name()}), the latest call last:"]
    for frame in frames:
        code = frame.f_code
        if code.co_filename.startswith(_OUR_PACKAGES) and len(frames) > 1:
            continue
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}')
        source = linecache.getline(code.co_filename, frame.f_lineno).strip()
        if source:
            lines.append(f"    {source}")
    awaited = getattr(task, "_fut_waiter", None)
    if isinstance(awaited, asyncio.Task):
        lines.append(f"  waits for the task {awaited.get_name()}")
    elif awaited is not None:
        lines.append(f"  waits for {awaited!r}")
    return "\n".join(lines) + "\n"


def _frames(coroutine: Any) -> Iterator[types.FrameType]:
    """Of a suspended coroutine, the outermost first."""
    for _ in range(_DEPTH):
        frame: types.FrameType | None = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        yield frame
        inner = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
        if inner is None:
            # The executor steps a job's coroutine by hand: its `send` is all that points to it.
            inner = getattr(frame.f_locals.get("send"), "__self__", None)
        coroutine = inner


def _job(frame: types.FrameType) -> str | None:
    attempt = frame.f_locals.get("attempt")
    return attempt.job_id if isinstance(attempt, Attempt) else None
