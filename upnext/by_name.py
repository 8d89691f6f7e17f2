"""Submit and send by name, from programs that don't import the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from upnext import access
from upnext.before_submitting import EVERYWHERE, own_of_event, see
from upnext.core import codec, signatures
from upnext.core.submission import Submission
from upnext.engine import tracing
from upnext.engine.requests import CURRENT_REQUEST, marked
from upnext.engine.views import tasks
from upnext.errors import InvalidArgumentsError
from upnext.future import Future

KNOWN_FOR_S = 30.0
"""So long a task's definition is believed before it is read again."""


class _Known:
    """What was read by one client: definitions of tasks, and handlers of events; each with until when it is believed."""

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[Mapping[str, Any], float]] = {}
        self.handlers: dict[str, tuple[list[tuple[str, str]], float]] = {}


_known: WeakKeyDictionary[access.LookingClient, _Known] = WeakKeyDictionary()
_UNKNOWN: Mapping[str, Any] = {}


async def submit(task_name: str, /, *args: Any, check: bool = True, **kwargs: Any) -> Future[Any]:
    """Queue a job of the task that is registered under this name, with the arguments of its function -> its Future.

    Names, presence and plain types of the arguments are checked by the registered signature, which is read at most every 30 s; the job has
    the task's priority. `check=False`: for a task that is not registered yet; nothing is checked, and arguments are given by name.
    A task with a parameter `check` can't be given it this way.

    Raises UsageError for a task that is not registered (with those of a similar name), InvalidArgumentsError, EncodingError, and what
    `Task.submit` raises when the broker can't take it.
    """
    definition = await asyncio.to_thread(_definition, task_name) if check else _UNKNOWN
    job_id = await access.async_broker(None).submit(_submission(task_name, definition, args, kwargs))
    return Future(job_id)


def submit_sync(task_name: str, /, *args: Any, check: bool = True, **kwargs: Any) -> Future[Any]:
    """`submit` for plain code."""
    definition = _definition(task_name) if check else _UNKNOWN
    return Future(access.sync_broker(None).submit(_submission(task_name, definition, args, kwargs)))


async def send(event_name: str, /, *, check: bool = True, **fields: Any) -> int:
    """Queue a job for each handler of this event, in whatever service -> how many.

    `check=False`: also where no handler is registered (0 jobs then), and whatever the handlers take. Else: raises UsageError for an event
    without handlers, InvalidArgumentsError for a field that no handler takes, or that one of them needs and that is missing or of another
    plain type. EncodingError and broker errors as `submit`.
    """
    if check:
        await asyncio.to_thread(_check_fields, event_name, fields)
    payload, parent, root = _fields(fields), *access.lineage()
    own = own_of_event((), event_name, payload, None, parent)
    trace = tracing.submitted(event_name)
    return len(await access.async_broker(None).send(event_name, payload, (), parent, root, trace=trace, own=own))


def send_sync(event_name: str, /, *, check: bool = True, **fields: Any) -> int:
    """`send` for plain code."""
    if check:
        _check_fields(event_name, fields)
    payload, parent, root = _fields(fields), *access.lineage()
    own = own_of_event((), event_name, payload, None, parent)
    trace = tracing.submitted(event_name)
    return len(access.sync_broker(None).send(event_name, payload, (), parent, root, trace=trace, own=own))


def planned(
    task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, check: bool, redis_url: str | None
) -> Submission:
    """A job of a task by its name that is to be submitted later, by a schedule. Raises as `submit` does."""
    return _submission(task_name, _definition(task_name, redis_url) if check else _UNKNOWN, args, kwargs)


def _definition(task_name: str, redis_url: str | None = None) -> Mapping[str, Any]:
    """What the task's service registered. Raises UsageError when none has."""
    broker = access.looking_client(redis_url)
    cache = _known.setdefault(broker, _Known()).tasks
    known = cache.get(task_name)
    if known is None or known[1] < time.monotonic():
        found = tasks.one(broker, broker.keys, task_name).definition
        known = cache[task_name] = found, time.monotonic() + KNOWN_FOR_S
    return known[0]


def _submission(name: str, definition: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Submission:
    signature = definition.get("signature")
    if signature:
        payload = signatures.payload(signature, kwargs, args)
    elif args:
        raise InvalidArgumentsError(f"task {name} has no known signature: give its arguments by name")
    else:
        payload = codec.dumps(dict(kwargs), "argument ")
    options: Mapping[str, Any] = definition.get("options") or {}
    job = Submission(name, payload, options.get("priority") or "normal")
    job.limited = bool(definition.get("limits"))
    job.parent_id, job.root_id = access.lineage()
    job.trace = tracing.submitted(name)
    if job.parent_id is None and (request := CURRENT_REQUEST.get(None)) is not None:
        job.own = marked(job.own, request)
    if EVERYWHERE:
        see(EVERYWHERE, job, lambda: str(signature))
    return job


def _fields(fields: Mapping[str, Any]) -> bytes:
    return codec.dumps(dict(fields), "field ")


def _check_fields(event_name: str, fields: Mapping[str, Any]) -> None:
    broker = access.looking_client(None)
    cache = _known.setdefault(broker, _Known()).handlers
    known = cache.get(event_name)
    if known is None or known[1] < time.monotonic():
        found = tasks.handlers_of(broker, broker.keys, event_name)
        known = cache[event_name] = found, time.monotonic() + KNOWN_FOR_S
    taken: set[str] = set()
    anything = False
    for handler, signature in known[0]:
        declared = signatures.parameters(signature)
        anything = anything or declared.extra or not signature
        for one in declared.named:
            taken.add(one.name)
            if one.required and one.name not in fields:
                raise InvalidArgumentsError(
                    f"event {event_name}: handler {handler} needs field {one.name!r}; it is {signature}"
                )
            if one.name in fields and not signatures.fits(one.kind, fields[one.name]):
                raise InvalidArgumentsError(
                    f"event {event_name}: field {one.name!r} must be {one.kind}, not {fields[one.name]!r:.80};"
                    f" handler {handler} is {signature}"
                )
    unknown = [name for name in fields if name not in taken]
    if unknown and not anything:
        raise InvalidArgumentsError(
            f"event {event_name}: no handler takes field {unknown[0]!r}; fields: {', '.join(sorted(taken))}"
        )
