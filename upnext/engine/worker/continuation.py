"""The rest of a job whose first step has run."""

from __future__ import annotations

import contextvars
from collections.abc import Coroutine, Generator
from typing import Any

from upnext.engine.cost import Meter


class Continuation:
    """Awaits the rest of a coroutine, each further step in the job's own context. `first` is what its first step waits for."""

    __slots__ = ("_context", "_coroutine", "_first", "_meter")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, first: Any, meter: Meter
    ) -> None:
        self._coroutine, self._context, self._first, self._meter = coroutine, context, first, meter

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw = self._context.run, self._coroutine.send, self._coroutine.throw
        look, count = self._meter.clock.look, self._meter.step
        waited, self._first = self._first, None
        while True:
            try:
                value = yield waited
                waited = None  # a future that failed holds its error, and the error this frame
            except BaseException as error:  # noqa: BLE001 - a cancel or whatever the loop throws in: the job's to handle
                waited = None
                began_ns = look()
                try:
                    waited = run(throw, error)
                except StopIteration as stop:
                    return stop.value
                finally:
                    count(began_ns)
            else:
                began_ns = look()
                try:
                    waited = run(send, value)
                except StopIteration as stop:
                    return stop.value
                finally:
                    count(began_ns)
