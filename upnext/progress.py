"""Progress and checkpoints on their way to the broker: one write at a time for each job, always of the newest.

A write holds all that is known of the job (progress, message, checkpoint), because it replaces what the broker has.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from upnext import access
from upnext.errors import QueueError

_log = logging.getLogger("upnext.progress")

TTL_S = 86_400.0
"""How long it is kept beyond the attempt and its result: a checkpoint has to outlive the pause before the next attempt."""

_unwritten: set[str] = set()
_writers: dict[str, asyncio.Task[None]] = {}
_lock = threading.Lock()


def write(attempt: access.RunningAttempt, fields: dict[str, Any]) -> None:
    """Sets `fields` of the attempt's job; from any thread. What the broker doesn't take is logged, and lost."""
    loop = attempt.loop
    with _lock:
        attempt.state = {**(attempt.state or {}), **fields}
        if loop is not None:
            if attempt.job_id in _unwritten:
                return
            _unwritten.add(attempt.job_id)
    if loop is not None:
        loop.call_soon_threadsafe(_start, attempt, loop)
        return
    try:  # a pool process: nothing else runs here
        access.sync_broker(None).progress(attempt.job_id, attempt.state, _ttl_s(attempt))
    except QueueError as error:
        _lost(attempt.job_id, error)


def _start(attempt: access.RunningAttempt, loop: asyncio.AbstractEventLoop) -> None:
    """One writer a job, owned by `_writers` until it has nothing left to write."""
    if attempt.job_id not in _writers:
        _writers[attempt.job_id] = loop.create_task(_drain(attempt), name=f"progress of {attempt.job_id}")


async def _drain(attempt: access.RunningAttempt) -> None:
    job_id = attempt.job_id
    try:
        while (state := _take(attempt)) is not None:
            await attempt.broker.progress(job_id, state, _ttl_s(attempt))
    except QueueError as error:
        _take(attempt)
        _lost(job_id, error)
    except BaseException:
        _take(attempt)
        raise
    finally:
        del _writers[job_id]


def _take(attempt: access.RunningAttempt) -> dict[str, Any] | None:
    with _lock:
        if attempt.job_id not in _unwritten:
            return None
        _unwritten.discard(attempt.job_id)
        return attempt.state


def _ttl_s(attempt: access.RunningAttempt) -> float:
    options = attempt.spec.options
    return TTL_S + (options.timeout_s or TTL_S) + options.result_ttl_s


def _lost(job_id: str, error: QueueError) -> None:
    _log.warning("progress of %s was not written: %s", job_id, error)
