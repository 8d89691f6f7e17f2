"""Events: one `send`, one job for each handler, in whatever service it lives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from upnext import access
from upnext.before_submitting import BeforeSubmit, own_of_event
from upnext.core.binding import Signature
from upnext.core.spec import TaskKind, TaskSpec
from upnext.core.submission import checked_key
from upnext.declare import HandlerSettings, check_names, checked_name, function_name, is_async, task_options
from upnext.engine import tracing
from upnext.errors import ServiceError
from upnext.hooks import hooks

P = ParamSpec("P")
T = TypeVar("T")


class Event:
    """An event of a worker: `order_placed = worker.event("order.placed")`.

    Its handlers are tasks named EVENT.FUNCTION, each with options, retries and a fate of its own. A handler takes the fields it has
    parameters for:
    fields it doesn't name are left out, unless it has `**kwargs`; a field it needs and doesn't get fails that handler's job. Values are
    checked when the event is sent, by the annotations of the handlers declared here; handlers elsewhere check their own.

    Sending makes a job for every handler that is registered with the broker, also of other services and of workers that are away right
    now (their jobs wait), and for those declared here.
    """

    def __init__(
        self,
        name: str,
        redis_url: str | None,
        register: Callable[[TaskSpec], None],
        before: Sequence[BeforeSubmit] = (),
    ) -> None:
        self.name = name
        self._redis_url = redis_url
        self._register = register
        self._before = before
        self._handlers: dict[str, Signature] = {}

    @property
    def handlers(self) -> tuple[str, ...]:
        """Task names of the handlers declared on this object."""
        return tuple(self._handlers)

    @overload
    def on(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncHandler[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def on(self, function: Callable[P, T], /) -> SyncHandler[P, T]: ...
    @overload
    def on(self, /, **settings: Unpack[HandlerSettings]) -> HandlerDecorator: ...
    def on(self, function: Any = None, /, **settings: Any) -> Any:
        """Declares a handler: `@order_placed.on`, or `@order_placed.on(retries=3)` with the options of `Worker.task` (all but the cache's).

        `name=` replaces the function's name after the event's. -> an EventHandler, whose `send` has the handler's own parameters.
        Raises ServiceError for a wrong option, ConflictError for a second handler of one name.
        """
        if function is None:
            return functools.partial(self._handler, settings=settings)
        return self._handler(function, settings)

    def _handler(self, function: Callable[..., Any], settings: dict[str, Any]) -> EventHandler[..., Any]:
        what = f"handler of event {self.name!r}"
        own = function_name(what, function, settings.get("name"))
        what = f"handler {self.name}.{own}"
        check_names(what, settings, HandlerSettings)
        signature = Signature.of(function)
        signature.check()
        spec = TaskSpec(
            name=checked_name(what, f"{self.name}.{own}"),
            kind=TaskKind.EVENT,
            function=function,
            is_async=is_async(function),
            arguments=signature,
            options=task_options(what, function, settings),
            hooks=hooks(what, settings),
            event=self.name,
        )
        self._register(spec)
        self._handlers[spec.name] = signature
        return (AsyncHandler if spec.is_async else SyncHandler)(spec, signature, self)

    async def send(self, /, **fields: Any) -> int:
        """Queues a job for each handler -> how many. Returns when the broker has them.

        Raises InvalidArgumentsError for a value that a handler declared on this object refuses, EncodingError for one that has no JSON
        form or would not come back from it, and what `Task.submit` raises when the broker can't take it.
        """
        return await self.send_payload(self._payload(fields))

    def send_sync(self, /, **fields: Any) -> int:
        """`send` for plain code: blocks the thread."""
        return self.send_payload_sync(self._payload(fields))

    async def send_idempotent(self, idempotency_key: str, /, **fields: Any) -> int:
        """`send`, once per handler while its job of this key is queued, delayed or running -> how many new jobs.

        None new: raises DuplicateJobError.
        """
        return await self.send_payload(self._payload(fields), checked_key(idempotency_key))

    def send_idempotent_sync(self, idempotency_key: str, /, **fields: Any) -> int:
        """`send_idempotent` for plain code: blocks the thread."""
        return self.send_payload_sync(self._payload(fields), checked_key(idempotency_key))

    async def send_payload(self, payload: bytes, idempotency_key: str | None = None) -> int:
        """Sends fields that are encoded already (a JSON object)."""
        broker = access.async_broker(self._redis_url)
        parent, root = access.lineage()
        own = own_of_event(self._before, self.name, payload, idempotency_key, parent)
        sent = await broker.send(
            self.name,
            payload,
            self.handlers,
            parent,
            root,
            idempotency_key=idempotency_key,
            trace=tracing.submitted(self.name),
            own=own,
        )
        return len(sent)

    def send_payload_sync(self, payload: bytes, idempotency_key: str | None = None) -> int:
        """`send_payload` for plain code: blocks the thread."""
        broker = access.sync_broker(self._redis_url)
        parent, root = access.lineage()
        own = own_of_event(self._before, self.name, payload, idempotency_key, parent)
        sent = broker.send(
            self.name,
            payload,
            self.handlers,
            parent,
            root,
            idempotency_key=idempotency_key,
            trace=tracing.submitted(self.name),
            own=own,
        )
        return len(sent)

    def _payload(self, fields: dict[str, Any]) -> bytes:
        return Signature.encode_fields(fields, self._handlers.values(), f"event {self.name}: ")

    def __call__(self, *_given: object, **_named: object) -> NoReturn:
        """Raises ServiceError: an event is not a decorator, its `on` is."""
        raise ServiceError(
            f'event {self.name!r}: declare a handler with @worker.event("{self.name}").on, send it with send'
        )

    def __repr__(self) -> str:
        return f"<Event {self.name}>"


class EventHandler(Generic[P, T]):
    """A handler, and a typed way to send its event: `send` takes the handler's parameters and reaches all handlers of the event.

    Calling it runs the function here and now.
    """

    __name__: str

    def __init__(self, spec: TaskSpec, signature: Signature, event: Event) -> None:
        self.spec = spec
        self._signature = signature
        self.event = event
        functools.update_wrapper(cast("Callable[..., Any]", self), spec.function)

    @property
    def name(self) -> str:
        """The handler's task name, EVENT.FUNCTION."""
        return self.spec.name

    @property
    def function(self) -> Callable[P, Any]:
        """The function as it was written."""
        return self.spec.function

    async def send(self, /, *args: P.args, **kwargs: P.kwargs) -> int:
        """Sends the event to all its handlers -> how many.

        Raises InvalidArgumentsError when the fields don't fit this handler's signature.
        """
        return await self.event.send_payload(self._signature.encode_event(args, kwargs))

    def send_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> int:
        """`send` for plain code: blocks the thread."""
        return self.event.send_payload_sync(self._signature.encode_event(args, kwargs))

    async def send_idempotent(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> int:
        """`send`, once per handler while its job of this key is queued, delayed or running -> how many new jobs.

        None new: raises DuplicateJobError.
        """
        return await self.event.send_payload(self._signature.encode_event(args, kwargs), checked_key(idempotency_key))

    def send_idempotent_sync(self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs) -> int:
        """`send_idempotent` for plain code: blocks the thread."""
        return self.event.send_payload_sync(self._signature.encode_event(args, kwargs), checked_key(idempotency_key))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.arguments.describe()} on {self.event.name}>"


class AsyncHandler(EventHandler[P, T]):
    """A handler that is an `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Runs the function inline."""
        return self.spec.function(*args, **kwargs)


class SyncHandler(EventHandler[P, T]):
    """A handler that is a plain `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the function inline, in this thread."""
        return self.spec.function(*args, **kwargs)


class HandlerDecorator(Protocol):
    """What `@event.on(...)` with options is: takes the function, gives its handle."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncHandler[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: Callable[P, T], /) -> SyncHandler[P, T]: ...
