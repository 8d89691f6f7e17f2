"""The queue's scripts under many orders of events; see `tests.support.queue_model`.

Another seed, or more of them: `scripts/chaos/queue --seed N`, `--seeds N`, `--shrink`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing

import pytest
import redis

from tests.support.queue_model.kernel import Change
from tests.support.queue_model.play import play
from tests.support.queue_model.truth import BrokenError
from tests.support.queue_model.world import Rules
from tests.support.servers import Server
from upnext.core.fetchplan import FetchPlan
from upnext.engine.worker.results import CLEARED

SEEDS = 200
A_PART = 50


@pytest.fixture(scope="module")
def own() -> Iterator[redis.Redis]:
    """A server for the model alone: it empties it before each seed."""
    logging.disable(logging.CRITICAL)
    with Server() as server, closing(server.client()) as client:
        yield client
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, A_PART))
def test_queue(own: redis.Redis, first: int) -> None:
    for seed in range(first, first + A_PART):
        play(own, seed)


def test_a_seed_is_replayed_to_the_letter(own: redis.Redis) -> None:
    assert play(own, 7) == play(own, 7)
    assert play(own, 7) != play(own, 8)


# --- a model that can't fail holds whatever the scripts do: each of these takes a mend back


def changed(name: str, *changes: tuple[str, str]) -> Change:
    def change(script: str, text: str) -> str:
        for old, new in changes if script == name else ():
            assert text.count(old) == 1, f"{name}.lua has no longer one {old!r}"
            text = text.replace(old, new)
        return text

    return change


class ByTurn(FetchPlan):
    """Order and lanes turn with the number of the fetch."""

    def turn(
        self, near: str | None = None, *, everywhere: bool = False, always: Collection[str] = ()
    ) -> tuple[list[str], list[str]]:
        self._turn += 1
        start = self._turn % len(self._tasks)
        tasks = self._tasks[start:] + self._tasks[:start]
        return tasks, ["bhn" if self._turn % 2 else "hnb"] * len(tasks)

    def gave(self, tasks: Iterable[str]) -> None:
        pass


READ_FIRST = "local found = redis.call('XRANGE', stream, entry, entry)\n"
FIND_FIRST = "local packed = redis.call('HGET', KEYS[3], job)\n"
SHARE = "local share = tasks > 1 and math.ceil(most / 2) or most"

FAULTS: dict[str, tuple[Rules, Change | None]] = {
    "a late backlog read": (Rules(backlog_over_cut_line=False, sweeps=False), None),
    "queue_ttl bounds reruns after a crash": (Rules(), changed("reap", ("meta.q = nil", "meta.q = meta.q"))),
    "queue_ttl bounds retries": (
        Rules(cleared={name: value for name, value in CLEARED.items() if name != "expires_ms"}),
        None,
    ),
    "reap acknowledges first": (
        Rules(),
        changed("reap", (READ_FIRST, READ_FIRST + "redis.call('XACK', stream, 'w', entry)\n")),
    ),
    "promote removes first": (
        Rules(),
        changed("promote", (FIND_FIRST, FIND_FIRST + "redis.call('ZREM', KEYS[2], job)\nredis.call('HDEL', KEYS[3], job)\n")),
    ),
    "lanes turn with the fetch": (Rules(plan=ByTurn), None),
    "limited tasks come first": (Rules(limited_first=True), changed("fetch", (SHARE, "local share = most"))),
}  # fmt: skip


FOUND = {
    "a late backlog read": [78, 133],
    "queue_ttl bounds reruns after a crash": [3, 58],
    "queue_ttl bounds retries": [22, 72],
    "reap acknowledges first": [2, 7],
    "promote removes first": [58, 157],
    "lanes turn with the fetch": [11, 15],
    "limited tasks come first": [11, 15],
}
"""Seeds that find each fault."""


def test_a_broken_seed_shows_its_trace_and_breaks_alike_again(own: redis.Redis) -> None:
    fault = "a late backlog read"
    rules, change = FAULTS[fault]
    traces: list[list[str]] = []
    for _ in range(2):
        with pytest.raises(BrokenError, match="stuck") as broken:
            play(own, FOUND[fault][0], rules=rules, change=change)
        traces.append(broken.value.__notes__)
    assert traces[0] == traces[1]
    assert "calm" in traces[0][0]


@pytest.mark.parametrize(
    "rules", [Rules(backlog_over_cut_line=False), Rules(sweeps=False)], ids=["swept", "over the line that is cut"]
)
def test_each_mend_of_a_late_backlog_read_is_enough(own: redis.Redis, rules: Rules) -> None:
    for seed in FOUND["a late backlog read"]:
        play(own, seed, rules=rules)


@pytest.mark.parametrize("fault", FOUND)
def test_a_mend_taken_back_is_found(own: redis.Redis, fault: str) -> None:
    rules, change = FAULTS[fault]
    for seed in FOUND[fault]:
        try:
            play(own, seed, rules=rules, change=change)
        except BrokenError:
            return
    pytest.fail(f"{fault}: no seed of {FOUND[fault]} breaks")
