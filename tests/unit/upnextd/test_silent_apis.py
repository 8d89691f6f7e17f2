"""When connects to an Api are refused, and when they are taken again."""

from __future__ import annotations

import pytest

from tests.support.actors import NOW, World, child_of
from upnext.address import Address
from upnextd.rules.hangs import Heart
from upnextd.rules.plan import Role
from upnextd.rules.slots import Life, State
from upnextd.shared.messages import DeclaredApi
from upnextd.supervisor.instances import Instance
from upnextd.supervisor.silent_apis import NO_PROCESS_S, SilentApis

FRONT = DeclaredApi(name="front", host="127.0.0.1", port=8000, path=None, processes=2, graceful_timeout_s=1.0)
THERE = Address("127.0.0.1", 8000)
HANG_S = 20.0


class Case:
    """An Api of two processes, which serve."""

    def __init__(self) -> None:
        self.world = World(workers=0)
        self.world.fleet.generations.clear()
        self.world.template(1, apis=(FRONT,))
        self.world.duties.edit(apis=(("front", 2),))
        self.world.fleet.listeners.bind([FRONT])
        self.both = [self.world.instance(f"api-front-{number}", role=Role.API) for number in (1, 2)]
        self.actor = SilentApis(self.world.fleet, self.world.duties, self.world.log, HANG_S)

    def refuses(self, after_s: float) -> bool:
        """Whether it does, at so many seconds."""
        self.actor.check(NOW + after_s)
        return self.world.fleet.listeners.refuses(THERE)

    def beat(self, *instances: Instance, after_s: float) -> None:
        for instance in instances:
            child_of(instance).heart = Heart(1, NOW + after_s)


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.mark.parametrize("state", [State.STARTING, State.BACKOFF, State.PAUSED, State.KILLING])
def test_without_a_process_that_is_ready_connects_fail_after_a_while(case: Case, state: State) -> None:
    assert not case.refuses(0.0)
    for instance in case.both:
        instance.life = Life(state)
    assert not case.refuses(NO_PROCESS_S - 0.1)
    assert case.refuses(NO_PROCESS_S)
    assert case.refuses(100.0)
    assert len(case.world.log.faults) == 1
    assert "api 'front' at http://127.0.0.1:8000: no process has taken connections" in case.world.log.faults[0]


def test_one_of_two_is_enough(case: Case) -> None:
    case.both[0].life = Life(State.BACKOFF)
    for after_s in range(60):
        case.beat(case.both[1], after_s=after_s)
        assert not case.refuses(after_s)


def test_a_process_whose_generation_is_known_no_more_counts_while_it_serves(case: Case) -> None:
    """A reload was given up, and the code before it has no template: nothing takes the place of the processes of the newer code."""
    case.world.fleet.generations.clear()
    for after_s in range(10):
        case.beat(*case.both, after_s=after_s)
        assert not case.refuses(after_s)


def test_they_are_taken_again_once_a_process_is_ready(case: Case) -> None:
    for instance in case.both:
        instance.life = Life(State.BACKOFF)
    assert not case.refuses(0.0)
    assert case.refuses(30.0)
    case.both[1].life = Life(State.READY)
    case.beat(case.both[1], after_s=31.0)
    assert not case.refuses(31.0)
    assert case.world.log.notes == ["api 'front' at http://127.0.0.1:8000: connections are taken again"]
    assert case.world.duties.events == [
        ("api", {"api": "front", "listening": False}),
        ("api", {"api": "front", "listening": True}),
    ]


def test_where_every_process_hangs_they_are_replaced(case: Case) -> None:
    case.beat(*case.both, after_s=0.0)
    assert not case.refuses(0.0)
    assert not case.refuses(HANG_S)
    assert not any(instance.outdated for instance in case.both)
    assert case.refuses(HANG_S + 0.1), "nothing was taken since the last beat"
    assert all(instance.outdated for instance in case.both)
    case.beat(*case.both, after_s=HANG_S + 1.0)
    assert case.refuses(HANG_S + 1.0), "one that goes on may have lost its socket"


def test_one_that_is_to_be_replaced_serves_until_its_successor_is_there(case: Case) -> None:
    for instance in case.both:
        instance.outdated = True
    for after_s in range(60):
        case.beat(*case.both, after_s=after_s)
        assert not case.refuses(after_s)


def test_where_one_hangs_the_other_serves(case: Case) -> None:
    case.beat(case.both[0], after_s=0.0)
    case.beat(case.both[1], after_s=50.0)
    assert not case.refuses(50.0)
    assert not case.both[0].outdated


def test_an_address_that_another_process_took_is_logged_once_and_tried_again(case: Case) -> None:
    for instance in case.both:
        instance.life = Life(State.BACKOFF)
    assert not case.refuses(0.0)
    assert case.refuses(30.0)
    case.world.kernel.taken = True
    case.both[0].life = Life(State.READY)
    for after_s in range(31, 41):
        case.beat(case.both[0], after_s=after_s)
        assert case.refuses(after_s)
    assert len(case.world.log.faults) == 2
    case.world.kernel.taken = False
    assert not case.refuses(41.0)


def test_an_address_of_the_former_code_alone_is_quiet(case: Case) -> None:
    case.world.duties.edit(apis=())
    case.world.fleet.instances.clear()
    assert not case.refuses(0.0)
    assert case.refuses(NO_PROCESS_S)
    assert not case.world.log.faults
