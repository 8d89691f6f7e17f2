"""Lifecycle hooks: functions of the user that are called with as many of (ctx, result | error) as they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from upnext.context import Context
from upnext.core.spec import Hooks
from upnext.errors import ServiceError

_GIVEN = {
    "on_start": ("ctx",),
    "on_success": ("ctx", "result"),
    "on_failure": ("ctx", "error"),
    "on_retry": ("ctx", "error"),
    "on_complete": ("ctx", "result or error"),
}


class Hook:
    """What the engine calls: makes the Context, and leaves out what the function doesn't take."""

    __slots__ = ("function", "takes")

    def __init__(self, function: Callable[..., Any], takes: int) -> None:
        self.function, self.takes = function, takes

    def __call__(self, attempt: Any, value: Any) -> Any:
        return self.function(*(Context(attempt), value)[: self.takes])


def hooks(what: str, given: Mapping[str, Any]) -> Hooks:
    """Raises ServiceError for one that is no function, or needs more than it gets."""
    return Hooks(**{name: (hook(what, name, given[name]),) for name in _GIVEN if given.get(name) is not None})


def hook(what: str, name: str, function: Any) -> Hook:
    """One of them, checked. Raises ServiceError as `hooks` does."""
    if not callable(function):
        raise ServiceError(f"{what}: {name} must be a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ServiceError(f"{what}: {name} is a generator, whose body a call doesn't run: {function!r}")
    available = _GIVEN[name]
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # built in, and silent about what it takes
        return Hook(function, len(available))
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in by_position if p.default is p.empty]
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > len(available) or named:
        raise ServiceError(f"{what}: {name} is called with ({', '.join(available)}), and {function!r} needs more")
    rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return Hook(function, len(available) if rest else min(len(by_position), len(available)))
