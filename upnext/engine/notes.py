"""What running jobs note, progress and checkpoints, on its way to the broker: one write at a time for each job, always of the newest.

A write holds all that is known of the job (progress, message, checkpoint), because it replaces what the broker has. What is noted right
before an attempt ends goes with its end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Protocol

from upnext.errors import QueueError

_log = logging.getLogger("upnext.progress")

_unwritten: set[str] = set()
_writers: dict[str, asyncio.Task[None]] = {}
_lock = threading.Lock()


class Noting(Protocol):
    """An attempt that notes something: `state` is all of it, `noted` whether this attempt has."""

    state: dict[str, Any] | None
    noted: bool

    @property
    def job_id(self) -> str: ...

    async def write_notes(self, state: dict[str, Any], /) -> None: ...


def write(attempt: Noting, loop: asyncio.AbstractEventLoop, fields: dict[str, Any]) -> None:
    """Set `fields` of the attempt's job; from any thread. What the broker doesn't take is logged, and lost."""
    with _lock:
        attempt.state = {**(attempt.state or {}), **fields}
        attempt.noted = True
        if attempt.job_id in _unwritten:
            return
        _unwritten.add(attempt.job_id)
    loop.call_soon_threadsafe(_start, attempt, loop)


def _start(attempt: Noting, loop: asyncio.AbstractEventLoop) -> None:
    """One writer a job, owned by `_writers` until it has nothing left to write."""
    if attempt.job_id not in _writers:
        _writers[attempt.job_id] = loop.create_task(_drain(attempt), name=f"progress of {attempt.job_id}")


async def _drain(attempt: Noting) -> None:
    job_id = attempt.job_id
    try:
        while (notes := _take(attempt)) is not None:
            await attempt.write_notes(notes)
    except QueueError as error:
        _take(attempt)
        _log.warning("progress of %s was not written: %s", job_id, error)
    except BaseException:
        _take(attempt)
        raise
    finally:
        del _writers[job_id]


def _take(attempt: Noting) -> dict[str, Any] | None:
    with _lock:
        if attempt.job_id not in _unwritten:
            return None
        _unwritten.discard(attempt.job_id)
        return attempt.state
