"""What several jobs share must not run in the context of the one that happened to start it.

A task, a timer or a connection keeps the context in which it was made: its log lines would carry that job's id, what it traces would be
part of that job's trace, and the job's variables would live as long as it does.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def none_of_a_job() -> contextvars.Context:
    """For `call_soon`, `call_later` and the like: a context in which nothing is set."""
    return contextvars.Context()


def shared_task(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task in such a context."""
    return asyncio.create_task(work, name=name, context=none_of_a_job())
