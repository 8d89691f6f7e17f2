"""When a child has used up what it may, and which one is replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.actors import NOW, World, child_of
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import Life, State
from upnextd.supervisor.fleet import Rollout
from upnextd.supervisor.recycling import RecycleLimits, Recycling, limits_of

MIB = 1 << 20


def test_without_limits_every_child_stays() -> None:
    assert limits_of(None, None, 1).used_up(1 << 40, 1 << 50) is None


def test_limits_are_jittered_to_the_safe_side() -> None:
    jobs = {limits_of(1000, None, token).jobs for token in range(200)}
    sizes = {limits_of(None, 1000, token).rss_bytes for token in range(200)}
    assert all(job is not None and 1000 <= job <= 1100 for job in jobs)
    assert all(size is not None and 900 <= size <= 1000 for size in sizes)
    assert len(jobs) > 50
    assert len(sizes) > 50
    assert limits_of(1000, 1000, 7) == limits_of(1000, 1000, 7)


def test_one_job_is_one_job() -> None:
    assert {limits_of(1, None, token).jobs for token in range(50)} == {1}


def test_used_up() -> None:
    limits = RecycleLimits(jobs=10, rss_bytes=100 << 20)
    assert limits.used_up(9, 100 << 20) is None
    assert limits.used_up(10, 0) == "10 jobs"
    assert limits.used_up(0, 101 << 20) == "101 MiB"


def recycling(world: World, max_jobs: int | None = 1, max_rss_bytes: int | None = None) -> Recycling:
    return Recycling(world.fleet, world.duties, world.kernel, world.log, max_jobs, max_rss_bytes)


def outdated(world: World) -> list[str]:
    return [instance.slot for instance in world.fleet.instances if instance.outdated]


def test_one_worker_at_a_time_is_replaced() -> None:
    world = World(workers=2)
    for instance in world.fleet.instances:
        child_of(instance).page.done = 1
    actor = recycling(world)
    actor.check(NOW)
    actor.check(NOW + 1.0)
    assert outdated(world) == ["worker-1"]
    assert world.fleet.instances[0].reason == "recycled"
    assert world.duties.wakes == 1


def test_failed_jobs_count() -> None:
    world = World()
    child_of(world.fleet.instances[0]).page.failed = 1
    recycling(world).check(NOW)
    assert outdated(world) == ["worker-1"]


@pytest.mark.parametrize("busy_with", ["a stop", "a reload", "workers that leave", "a child that isn't ready"])
def test_nothing_is_replaced_during(busy_with: str) -> None:
    world = World()
    child_of(world.fleet.instances[0]).page.done = 1
    match busy_with:
        case "a stop":
            world.fleet.desired = replace(world.fleet.desired, mode=Mode.STOP)
        case "a reload":
            world.fleet.rollouts.queued = Rollout(2, 1)
        case "workers that leave":
            for _ in range(2):
                world.instance("worker-1").leave_by = NOW
        case _:
            world.fleet.instances[0].life = Life(State.PAUSED)
    recycling(world).check(NOW)
    assert not outdated(world)


def test_a_big_process_of_an_api_is_replaced_one_at_a_time_beside_a_worker() -> None:
    world = World()
    apis = [world.instance(f"api-front-{number}", role=Role.API) for number in (1, 2)]
    for instance in world.fleet.instances:
        child = child_of(instance)
        assert child.pid is not None
        world.kernel.sizes[child.pid] = 200 * MIB
        child.page.ran_job = True
    actor = recycling(world, None, 100 * MIB)
    actor.check(NOW)
    assert outdated(world) == ["worker-1", "api-front-1"]
    actor.check(NOW + 1.0)
    assert outdated(world) == ["worker-1", "api-front-1"], "the next goes when the first was replaced"
    apis[0].leave_by = NOW
    actor.check(NOW + 2.0)
    assert outdated(world) == ["worker-1", "api-front-1", "api-front-2"]


def test_requests_are_no_jobs() -> None:
    world = World(workers=0)
    child_of(world.instance("api-front-1", role=Role.API)).page.done = 1000
    recycling(world).check(NOW)
    assert not outdated(world)


def test_a_big_worker_is_replaced_once_it_ran_a_job() -> None:
    world = World()
    child = child_of(world.fleet.instances[0])
    assert child.pid is not None
    world.kernel.sizes[child.pid] = 200 * MIB
    actor = recycling(world, None, 100 * MIB)
    actor.check(NOW)
    actor.check(NOW + 1.0)
    assert not outdated(world)
    assert len(world.log.cautions) == 1, "it is logged once that --max-rss is too small"
    child.page.ran_job = True
    actor.check(NOW + 2.0)
    assert outdated(world) == ["worker-1"]
