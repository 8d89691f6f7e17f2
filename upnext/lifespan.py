"""`@worker.lifespan`: checks the user's function, and makes of it what the engine opens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from upnext.core.spec import OpenLifespan
from upnext.errors import ServiceError


def open_lifespan(what: str, function: Any, owner: object) -> OpenLifespan:
    """What opens it: the function, called with `owner` where it takes an argument. An async generator function becomes a context manager.

    Raises ServiceError for one that can't be meant.
    """
    if not callable(function):
        raise ServiceError(f"{what}: lifespan must be a function, not {function!r}")
    inner = inspect.unwrap(function)
    name = getattr(inner, "__name__", repr(function))
    if inspect.iscoroutinefunction(inner):
        raise ServiceError(f"{what}: its lifespan {name} never yields: what it sets up has to be yielded")
    if inspect.isgeneratorfunction(inner):
        raise ServiceError(f"{what}: its lifespan {name} must be an `async def`")
    opens: Callable[..., Any] = function
    if inner is function and inspect.isasyncgenfunction(function):
        opens = asynccontextmanager(function)
    return partial(opens, owner) if _takes_one(what, name, function) else opens


def _takes_one(what: str, name: str, function: Callable[..., Any]) -> bool:
    """Whether it is called with an argument, the Worker or Api."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # built in, and silent about what it takes
        return False
    for arguments in ((), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        positional = [
            p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        return bool(arguments) or bool(positional)
    raise ServiceError(f"{what}: its lifespan {name} is called with nothing or with its owner, and takes {signature}")
