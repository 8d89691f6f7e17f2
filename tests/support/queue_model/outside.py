"""Producers, waiters and operators: each wish is a machine of its own."""

from __future__ import annotations

from typing import Any

import orjson

from tests.support.queue_model.kernel import Ask, Host, Line, Sent, Sleep, Turn
from tests.support.queue_model.world import World
from upnext.core.submission import Submission
from upnext.engine.calls import admin
from upnext.engine.calls import client as client_calls
from upnext.errors import QueueError


class Outside:
    """Each wish is an actor of its own, with a line that may break."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._host = Host("outside")
        self._number = 0
        self._lines: dict[str, Line] = {}

    def _line(self, who: str) -> Line:
        line = self._lines.get(who)
        if line is None or line.broken:
            line = self._lines[who] = self._world.kernel.line(who)
        return line

    def submit(self, task: str, reply_to: str | None = None, **options: Any) -> None:
        self._number += 1
        number = self._number
        job = Submission(task, orjson.dumps({"n": number}), **options)
        call = client_calls.submit(self._world.keys, [(job, reply_to)], f"nonce{number}")
        repeats = job.idempotency_key is not None

        def turn() -> Turn:
            for _ in range(4):
                try:
                    answers: list[client_calls.Answer] = yield Ask(
                        self._line("producer"), call, f"submit {number} to {task} {options or ''}"
                    )
                    for answer in answers:
                        if isinstance(answer, str):
                            self._world.truth.jobs.setdefault(answer, number)
                    return
                except QueueError:
                    if not repeats:
                        return
                yield Sleep(0.1)

        self._world.kernel.start("producer", self._host, turn())

    def sudden(self, task: str, priority: str) -> Sent:
        """A job that arrives at once, of a producer that doesn't wait for the answer."""
        self._number += 1
        job = Submission(task, orjson.dumps({"n": self._number}), priority=priority)
        call = client_calls.submit(self._world.keys, [(job, None)], f"nonce{self._number}")
        return Sent(Ask(self._line("producer"), call, f"submit {self._number} to {task} suddenly"), None)

    def once(self, who: str, call: Any, note: str) -> None:
        def turn() -> Turn:
            try:
                yield Ask(self._line(who), call, note)
            except QueueError:
                return

        self._world.kernel.start(who, self._host, turn())

    def purge_delayed(self, task: str) -> None:
        def turn() -> Turn:
            cursor = "0"
            try:
                while True:
                    call = admin.purge_delayed(self._world.keys, task, cursor)
                    after, _, again = yield Ask(self._line("operator"), call, f"purge delayed of {task}")
                    if again:
                        continue
                    cursor = after
                    if cursor == "0":
                        return
            except QueueError:
                return

        self._world.kernel.start("operator", self._host, turn())
