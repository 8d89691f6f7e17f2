"""The clients' one submit and one wait, driven by a script of results: no broker, no clock of the machine. Both drivers do the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus, Outcome
from upnext.core.submission import Submission
from upnext.engine.calls.client import Held, Standing
from upnext.engine.client import waiting
from upnext.engine.client.waiting import (
    REREAD_S,
    SUBMIT_PATIENCE_S,
    Await,
    Connect,
    Pause,
    Run,
    Step,
    Steps,
    Subscribe,
    Watch,
    drive,
    drive_blocking,
)
from upnext.engine.redis.replies import LostReplyError
from upnext.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DuplicateJobError,
    JobNotFoundError,
    SubmitUncertain,
)

KEYS = Keys("unit")
DONE = Outcome(JobStatus.DONE)
AWAY = BrokerUnavailableError("away")
LOST = LostReplyError("lost")


class World:
    """A clock, and what each kind of step comes to: results in turn, the last one again and again."""

    def __init__(self, **results: list[Any]) -> None:
        self.now_s = 100.0
        self.steps: list[Step] = []
        self._results = results

    def clock(self) -> float:
        return self.now_s

    def do(self, step: Step) -> Any:
        self.steps.append(step)
        match step:
            case Pause(seconds):
                self.now_s += seconds
                return None
            case Await(until_s) if not self._results.get("Await"):
                self.now_s = max(self.now_s, until_s)
                return None
            case _:
                results = self._results.get(type(step).__name__, [None])
                result = results.pop(0) if len(results) > 1 else results[0]
                if isinstance(result, BaseException):
                    raise result
                return result

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(step, kind) for step in self.steps)


def by_a_thread(steps: Steps[Any], world: World) -> Any:
    return drive_blocking(steps, world.do)


def on_asyncio(steps: Steps[Any], world: World) -> Any:
    async def do(step: Step) -> Any:
        await asyncio.sleep(0)
        return world.do(step)

    return asyncio.run(drive(steps, do))


Driver = Callable[[Steps[Any], World], Any]
both = pytest.mark.parametrize("run", [by_a_thread, on_asyncio])


def job(key: str | None = None) -> Submission:
    return Submission("ship", b"[]", idempotency_key=key)


# --- submit


@both
def test_a_submit_goes_on_while_the_broker_is_away(run: Driver) -> None:
    world = World(Run=[AWAY, AWAY, ["ship:n1-0"]])
    assert run(waiting.submit(KEYS, job(), None, world.clock), world) == "ship:n1-0"
    assert (world.count(Run), world.count(Pause)) == (3, 2)


@both
def test_a_submit_gives_up_after_its_patience(run: Driver) -> None:
    world = World(Run=[AWAY])
    with pytest.raises(BrokerUnavailableError, match="away"):
        run(waiting.submit(KEYS, job(), None, world.clock), world)
    assert 0 <= world.now_s - 100 - SUBMIT_PATIENCE_S < 1.3


@both
def test_a_submit_without_a_connection_says_why_the_last_one_failed(run: Driver) -> None:
    world = World(Connect=[None, TimeoutError()], Run=[AWAY])
    with pytest.raises(BrokerUnavailableError, match="away"):
        run(waiting.submit(KEYS, job(), None, world.clock), world)
    world = World(Connect=[TimeoutError()])
    with pytest.raises(BrokerUnavailableError, match="gives no reply"):
        run(waiting.submit(KEYS, job(), None, world.clock), world)


@both
def test_a_lost_reply_is_uncertain_without_a_key(run: Driver) -> None:
    world = World(Run=[LOST])
    with pytest.raises(SubmitUncertain):
        run(waiting.submit(KEYS, job(), None, world.clock), world)
    assert world.count(Run) == 1, "it is not sent again"


@both
def test_a_lost_reply_is_sent_again_with_a_key(run: Driver) -> None:
    world = World(Run=[LOST, AWAY, ["ship:n1-0"]])
    assert run(waiting.submit(KEYS, job("k"), None, world.clock), world) == "ship:n1-0"
    world = World(Run=[LOST, AWAY])
    with pytest.raises(SubmitUncertain):
        run(waiting.submit(KEYS, job("k"), None, world.clock), world)


@both
def test_a_broker_that_refuses_is_not_asked_again(run: Driver) -> None:
    world = World(Run=[BrokerRefusedError("NOAUTH")])
    with pytest.raises(BrokerRefusedError):
        run(waiting.submit(KEYS, job(), None, world.clock), world)
    assert world.count(Run) == 1


@both
def test_a_key_that_another_submit_holds(run: Driver) -> None:
    world = World(Run=[[Held("ship:n9-0", "other")]])
    with pytest.raises(DuplicateJobError):
        run(waiting.submit(KEYS, job("k"), None, world.clock), world)


@both
def test_many_jobs_go_in_parts_of_a_thousand(run: Driver) -> None:
    world = World(Run=[[f"a{number}" for number in range(1000)], ["b"]])
    ids = run(waiting.submit_many(KEYS, [job()] * 1001, world.clock), world)
    assert (len(ids), ids[-1], world.count(Run)) == (1001, "b", 2)
    assert run(waiting.submit_many(KEYS, [], world.clock), world) == []


# --- subscribe


@both
def test_a_subscription_is_tried_until_it_stands_or_patience_ends(run: Driver) -> None:
    world = World(Subscribe=[AWAY, AWAY, "ear"])
    assert run(waiting.subscribe(None, world.clock, lambda: False), world) == "ear"
    world = World(Subscribe=[AWAY])
    with pytest.raises(BrokerUnavailableError):
        run(waiting.subscribe(2.0, world.clock, lambda: False), world)
    assert world.now_s >= 102
    world = World(Subscribe=[AWAY])
    with pytest.raises(BrokerUnavailableError):
        run(waiting.subscribe(None, world.clock, lambda: True), world)
    assert world.count(Subscribe) == 1, "a closed client tries no more"


# --- wait


def wait(world: World, timeout_s: float | None, *, registered: bool = False) -> Steps[Outcome]:
    return waiting.wait("ship:n1-0", timeout_s, world.clock, registered=registered, begun_s=world.now_s)


@both
def test_a_job_that_has_ended_needs_no_wait(run: Driver) -> None:
    world = World(Watch=[Standing(True, DONE)])
    assert run(wait(world, None), world) is DONE
    assert world.count(Await) == 0


@both
def test_an_unknown_job(run: Driver) -> None:
    world = World(Watch=[Standing(False, None)])
    with pytest.raises(JobNotFoundError):
        run(wait(world, None), world)


@both
def test_a_registered_waiter_asks_the_broker_only_when_no_message_comes(run: Driver) -> None:
    world = World(Await=[DONE])
    assert run(wait(world, 9.0, registered=True), world) is DONE
    assert world.steps == [Await(100 + REREAD_S)]
    world = World(Watch=[Standing(True, DONE)])
    assert run(wait(world, None, registered=True), world) is DONE
    assert world.steps == [Await(100 + REREAD_S), Watch()]


@both
def test_a_wait_ends_at_its_timeout(run: Driver) -> None:
    world = World(Watch=[Standing(True, None)])
    with pytest.raises(TimeoutError) as caught:
        run(wait(world, 12.0), world)
    assert world.now_s == 112
    assert caught.value.job_id == "ship:n1-0"  # type: ignore[attr-defined]


@both
def test_a_broker_that_is_away_ends_a_wait_only_at_its_timeout(run: Driver) -> None:
    world = World(Watch=[AWAY, AWAY, Standing(True, DONE)])
    assert run(wait(world, None), world) is DONE
    world = World(Watch=[AWAY])
    with pytest.raises(BrokerUnavailableError):
        run(wait(world, 3.0), world)
    assert world.now_s >= 103
    world = World(Watch=[BrokerRefusedError("NOAUTH")])
    with pytest.raises(BrokerRefusedError):
        run(wait(world, None), world)


def test_a_cancelled_driver_closes_its_steps() -> None:
    closed: list[str] = []

    def steps() -> Steps[None]:
        try:
            yield Connect(0.0)
        finally:
            closed.append("closed")

    async def never(_: Step) -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        task = asyncio.create_task(drive(steps(), never))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert closed == ["closed"]
