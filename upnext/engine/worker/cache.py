"""Results kept under a key of the caller's making: a job whose key is there ends with that value and doesn't run."""

from __future__ import annotations

import hashlib
import inspect
import logging
import string
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from upnext.core import outcome
from upnext.core.keys import Keys
from upnext.core.spec import TaskSpec
from upnext.engine.attempt import Attempt
from upnext.errors import QueueError

log = logging.getLogger("upnext.worker")

LONGEST_KEY_BYTES = 512


class Cache:
    """Of one task. Made by `of`."""

    def __init__(self, task: str, make: Callable[[tuple[Any, ...], Mapping[str, Any]], str], ttl_ms: int) -> None:
        self._task, self._make = task, make
        self.ttl_ms = ttl_ms

    @classmethod
    def of(cls, spec: TaskSpec) -> Cache | None:
        """None for a task that caches nothing."""
        key, options = spec.options.cache_key, spec.options
        ttl_s = options.result_ttl_s if options.cache_ttl_s is None else options.cache_ttl_s
        if key is None or ttl_s <= 0:
            return None
        ttl_ms = max(1, round(ttl_s * 1000))
        if not isinstance(key, str):
            return cls(spec.name, lambda args, kwargs: str(key(*args, **kwargs)), ttl_ms)
        signature, template = inspect.signature(spec.function), _pieces(key)

        def fill(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = dict(bound.arguments)
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    values |= values.pop(parameter.name)
            return "".join(text + (_measured(field.format_map(values)) if field else "") for text, field in template)

        return cls(spec.name, fill, ttl_ms)

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Key of these arguments, which no other task and no other values share. Each part has its length in front, whatever it contains.

        None, and a log line, when the user's function or template fails: the job then runs uncached.
        """
        try:
            made = self._make(args, kwargs)
        except Exception:  # user code: without a key the job is only slower, not wrong
            log.exception("the cache_key of task %s can't be made", self._task)
            return None
        raw = made.encode("utf-8", "surrogatepass")
        last = f"={made}" if len(raw) <= LONGEST_KEY_BYTES else f"#{hashlib.sha256(raw).hexdigest()}"
        return f"{_measured(self._task)}{last}"


def _measured(part: str) -> str:
    """A part of a key with its length: "a:b" beside "c" is not "a" beside "b:c"."""
    return f"{len(part)}:{part}"


def _pieces(template: str) -> list[tuple[str, str]]:
    """A format string as (text, field) pairs; a field is a format string of its own, "" where the last text ends the template."""
    pieces: list[tuple[str, str]] = []
    for text, name, spec, conversion in string.Formatter().parse(template):
        how = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        pieces.append((text, "" if name is None else f"{{{name}{how}}}"))
    return pieces


async def look(attempt: Attempt, keys: Keys, key: str) -> bytes | None:
    """The value under the key, encoded; None when it isn't there, or the broker can't say."""
    try:
        raw = await attempt.broker.link.command("GET", keys.cache(key))
    except QueueError as error:
        log.warning("the cache of %s can't be read: %s", attempt.spec.name, error)
        return None
    if raw is None:
        return None
    try:
        return outcome.decode(raw).value
    except (ValueError, orjson.JSONDecodeError):
        log.warning("the cache of %s holds something that is not an outcome", attempt.spec.name)
        return None
