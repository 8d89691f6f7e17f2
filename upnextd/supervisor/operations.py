"""Mutations under way: what was asked, how far it is, which clients wait for its end. They outlive the connection that asked."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is; `text` is one line for people."""

    text: str
    done: bool = False
    ok: bool = True
    data: Any = None


class Operation:
    """One mutation. `measure` finds out from the fleet how far it is."""

    def __init__(self, op_id: str, key: str, measure: Callable[[], Progress]) -> None:
        self.op_id = op_id
        self.key = key
        self.progress = Progress("")
        self.ended = asyncio.Event()
        self.watchers: set[Callable[[Operation], None]] = set()
        self._measure = measure

    def check(self) -> None:
        """Find out how far it is, and report what is new."""
        if not self.ended.is_set():
            self.report(self._measure())

    def report(self, progress: Progress) -> None:
        """Pass progress on to the watchers, if it is new."""
        if progress == self.progress or self.ended.is_set():
            return
        self.progress = progress
        if progress.done:
            self.ended.set()
        for watcher in tuple(self.watchers):
            watcher(self)


class Operations:
    """All operations of a daemon's life, the latest 256."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(3)
        self._known: dict[str, Operation] = {}

    def begin(self, key: str, measure: Callable[[], Progress]) -> Operation:
        """Return a new operation, or the one of the same key that is still under way."""
        for operation in self._known.values():
            if operation.key == key and not operation.ended.is_set():
                return operation
        operation = Operation(f"{self._prefix}-{next(self._numbers)}", key, measure)
        self._known[operation.op_id] = operation
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return operation

    @property
    def under_way(self) -> bool:
        return any(not operation.ended.is_set() for operation in self._known.values())

    def find(self, op_id: str) -> Operation | None:
        return self._known.get(op_id)

    def to_state(self) -> dict[str, Any]:
        """As JSON: those that have ended, for clients that still ask."""
        ended = [one for one in self._known.values() if one.ended.is_set()]
        return {
            "begun": next(self._numbers) - 1,
            "prefix": self._prefix,
            "ended": [[one.op_id, one.key, dataclasses.asdict(one.progress)] for one in ended],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `to_state` wrote."""
        operations = cls()
        operations._prefix = state["prefix"]
        operations._numbers = itertools.count(state["begun"] + 1)
        for op_id, key, progress in state["ended"]:
            operation = Operation(op_id, key, lambda: Progress(""))
            operation.report(Progress(**progress))
            operations._known[op_id] = operation
        return operations

    def supersede(self, key_prefixes: tuple[str, ...], by: str) -> None:
        """End operations that a new request contradicts."""
        for operation in list(self._known.values()):
            if operation.key.startswith(key_prefixes):
                operation.report(Progress(f"superseded by {by}", done=True, ok=False))

    def end(self, key: str, progress: Progress) -> None:
        """End the operation of that key, if there is one under way."""
        for operation in list(self._known.values()):
            if operation.key == key:
                operation.report(progress)

    def check(self) -> None:
        """Check each that is under way."""
        for operation in list(self._known.values()):
            operation.check()
