"""When a daemon reports: at a change and for a while after, once a minute, and with each beat while it is looked at."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import pytest

from tests.support import virtual_time
from upnext.core.keys import Keys
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import Call
from upnext.engine.scheduler.reports import APART_S, SETTLING_S, Reports
from upnext.errors import BrokerUnavailableError

BEAT_S = 2.5


class Broker:
    """In the place of a Link. `refuses` is raised by the next call."""

    def __init__(self) -> None:
        self.live: object | None = object()
        self.at_s: list[float] = []
        self.refuses: Exception | None = None

    async def run(self, call: Call[Any]) -> None:
        assert call.script.name == "report"
        refuses, self.refuses = self.refuses, None
        if refuses is not None:
            raise refuses
        self.at_s.append(round(asyncio.get_running_loop().time() - virtual_time.START_S, 1))


def times(
    *, until_s: float, watched: Callable[[float], bool] = lambda _: False, script: Mapping[int, str] | None = None
) -> list[float]:
    """When reports were written, with a beat every BEAT_S. `script`: what happens at which beat."""
    broker = Broker()

    async def ask() -> dict[str, Any]:
        return {"children": []}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Reports(cast("Link", broker), Keys(), lambda: "epoch", lambda: "d", "h", "t", returns=True)
        one.ask = ask
        running = loop.create_task(one.run())
        for beat in range(int(until_s / BEAT_S)):
            match (script or {}).get(beat):
                case "changed":
                    one.changed()
                case "look":
                    one.look()
                case "away":
                    broker.live = None
                case "back":
                    broker.live = object()
                    one.changed()
                case "refused":
                    broker.refuses = ReplyError("OOM full")
                case "cut":
                    broker.refuses = BrokerUnavailableError("cut")
                case _:
                    pass
            one.beat(watched=watched(beat * BEAT_S))
            await asyncio.sleep(BEAT_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    virtual_time.run(main, random.Random(7))
    return broker.at_s


def test_without_looks_once_a_minute() -> None:
    assert times(until_s=190) == pytest.approx([60.0, 120.5, 181.0])


def test_a_change_is_reported_at_once_and_followed_for_a_while() -> None:
    found = times(until_s=60, script={4: "changed"})
    assert found[0] == 10.0
    assert found[-1] <= 10.0 + SETTLING_S
    assert len(found) == SETTLING_S / BEAT_S


def test_while_it_is_looked_at_with_each_beat() -> None:
    assert times(until_s=20, watched=lambda at_s: 5 <= at_s < 15) == [5.0, 7.5, 10.0, 12.5]
    assert times(until_s=20, script={2: "look"}) == [5.0]


def test_reports_are_apart() -> None:
    found = times(until_s=10, watched=lambda _: True, script=dict.fromkeys(range(4), "changed"))
    assert min(later - before for before, later in pairwise(found)) >= APART_S


@pytest.mark.parametrize("trouble", ["refused", "cut"])
def test_one_that_was_not_written_does_not_end_it(trouble: str) -> None:
    assert times(until_s=20, watched=lambda _: True, script={1: trouble}) == [0.0, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5]


def test_the_next_connection_is_a_change() -> None:
    found = times(until_s=30, watched=lambda _: True, script={1: "away", 4: "back"})
    assert found[:2] == [0.0, 10.0]


def test_it_reports_nothing_when_it_is_not_asked_what() -> None:
    one = Reports(cast("Link", Broker()), Keys(), lambda: "e", lambda: "d", "h", "t", returns=True)
    virtual_time.run(one.run, random.Random(1))
