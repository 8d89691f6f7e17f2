"""The law of cost: no script runs for longer than 10 ms (median of 20, on an idle server) or holds more than 4 MiB, whatever is queued."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

import upnext
from tests.integration.lua_harness import CONSUMER, Taken, Workbench, task
from tests.integration.owning import announce, register, statement
from tests.support.servers import Server
from tests.support.service import serving
from tests.support.waiting import PATIENCE, wait_until_async
from upnext.core.batches import batches
from upnext.core.outcome import JobStatus
from upnext.core.spec import CronSpec
from upnext.core.submission import Submission
from upnext.engine.calls import admin, inspect, lease, ownership, worker
from upnext.engine.calls import client as client_calls
from upnext.engine.calls.worker import Finish
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.client.waiting import BATCH_JOBS, size_of
from upnext.engine.redis.scripts import Call, run_calls_blocking

LONGEST_MS = 10 * PATIENCE
MOST_HELD_BYTES = 4 * 1024 * 1024
CALLS = 20

Shape = tuple[int, int]
"""How many jobs, and how many bytes each has."""
SHAPES: dict[str, Shape] = {"many": (20_000, 30), "fat": (300, 150_000)}


def _payload(size: int) -> bytes:
    return b'"%s"' % (b"x" * size)


def _fill(work: Workbench, shape: Shape, **options: Any) -> list[str]:
    count, size = shape
    job = Submission("ship", _payload(size), **options)
    return work.broker.submit_many([job] * count)


def _fetch(work: Workbench, budget: int) -> Call[worker.Fetched]:
    return worker.fetch(work.keys, work.epoch, CONSUMER, work.names, budget=budget, lanes=["nhb"], most_limited=1)


def _take_all(work: Workbench, most: int = 4400) -> list[Taken]:
    taken: list[Taken] = []
    while len(taken) < most and (more := work.fetch(min(500, most - len(taken)))):
        taken += more
    return taken


def _share(jobs: Sequence[Any]) -> int:
    """So many are there for each call."""
    return min(200, len(jobs) // (CALLS + 2))


def _triples(taken: list[Taken]) -> list[tuple[str, str, bytes]]:
    return [(one.task, one.lane, one.entry_id) for one in taken]


def _dead(work: Workbench, shape: Shape) -> list[str]:
    """Dead letters; -> their ids."""
    ids = _fill(work, (min(shape[0], 4400), shape[1]))
    taken = _take_all(work)
    for start in range(0, len(taken), 20):
        part = taken[start : start + 20]
        ends = [Finish(t.task, t.lane, t.entry_id, JobStatus.FAILED, b"{}", t.meta, bury=True) for t in part]
        assert work.broker.run(work.finish_call(*ends)) == []
    return ids


def _ends(work: Workbench, shape: Shape) -> None:
    _fill(work, (min(shape[0], 4000), 30))
    taken = _take_all(work)
    outcome = b'{"s":"done","v":%s}' % _payload(shape[1])
    for start in range(0, len(taken), 20):
        part = taken[start : start + 20]
        work.broker.run(work.finish_call(*(Finish(t.task, t.lane, t.entry_id, JobStatus.DONE, outcome) for t in part)))


Maker = Callable[[Workbench, Shape], Callable[[], Call[Any]]]
"""Fills the queue; -> what makes the next call."""


def _of_queue(call: Callable[[Workbench, list[str]], Call[Any]], **options: Any) -> Maker:
    def fill(work: Workbench, shape: Shape) -> Callable[[], Call[Any]]:
        ids = _fill(work, shape, **options)
        return lambda: call(work, ids)

    return fill


def _of_held(call: Callable[[Workbench, list[Taken]], Call[Any]]) -> Maker:
    """`call` gets those that are still held."""

    def fill(work: Workbench, shape: Shape) -> Callable[[], Call[Any]]:
        _fill(work, (min(shape[0], 4400), shape[1]))
        taken = _take_all(work)

        def following() -> Call[Any]:
            held = work.broker.run(worker.own_pending(work.keys, work.epoch, CONSUMER, ["ship"], 300))
            ids = {entry_id for _, lane, entry_id in held if lane == "n"}
            return call(work, [one for one in taken if one.entry_id in ids][: _share(taken)])

        return following

    return fill


def _of_dead(call: Callable[[Workbench, list[str]], Call[Any]]) -> Maker:
    def fill(work: Workbench, shape: Shape) -> Callable[[], Call[Any]]:
        most = _share(_dead(work, shape))
        return lambda: call(work, work.dead_ids()[:most])

    return fill


def _gates(work: Workbench, job_id: str) -> Call[Any]:
    return inspect.gates(work.keys, "ship", "n", job_id.partition(":n")[2])


def _recent(work: Workbench, shape: Shape) -> Callable[[], Call[Any]]:
    _ends(work, shape)
    return lambda: inspect.recent_ends(work.keys, None, [JobStatus.DONE], 10_000)


def _submits(work: Workbench, shape: Shape, delay_s: float | None = 60.0) -> Callable[[], Call[Any]]:
    count, size = shape
    jobs = [Submission("ship", _payload(size), delay_s=delay_s)] * count
    [first, *_] = batches(jobs, size_of, BATCH_JOBS)
    return lambda: client_calls.submit(work.keys, [(job, None) for job in first], "n")


SCRIPTS: dict[str, Maker] = {
    "gates, the last": _of_queue(lambda work, ids: _gates(work, ids[-1])),
    "gates, in the middle": _of_queue(lambda work, ids: _gates(work, ids[len(ids) // 2])),
    "find_job": _of_queue(lambda work, ids: inspect.find_job(work.keys, ids[0])),
    "jobs_of_key": _of_queue(lambda work, ids: next(inspect.jobs_of_key(work.keys, "k", None))),
    "cancel": _of_queue(lambda work, ids: client_calls.cancel(work.keys, ids.pop())),
    "queued_jobs": _of_queue(lambda work, ids: inspect.queued_jobs(work.keys, "ship", "n", "", 10_000)),
    "purge_queued": _of_queue(lambda work, ids: admin.purge_queued(work.keys, "ship", "n")),
    "fetch": _of_queue(lambda work, ids: _fetch(work, 500)),
    "promote": _of_queue(lambda work, ids: lease.promote(work.keys, work.epoch, 200), delay_s=0.0),
    "purge_delayed": _of_queue(lambda work, ids: admin.purge_delayed(work.keys, "ship", "0"), delay_s=60.0),
    "count_by_task": _of_queue(
        lambda work, ids: inspect.count_by_task(work.keys, dead=False, cursor="0", look=2000), delay_s=60.0
    ),
    "page_jobs": _of_queue(
        lambda work, ids: inspect.page_jobs(work.keys, dead=False, task=None, rank=0, look=2000, limit=2000),
        delay_s=60.0,
    ),
    "page_jobs of another task": _of_queue(
        lambda work, ids: inspect.page_jobs(work.keys, dead=False, task="pack", rank=0, look=2000, limit=2000),
        delay_s=60.0,
    ),
    "running_jobs": _of_held(lambda work, held: inspect.running_jobs(work.keys, "ship", "n", "", 10_000)),
    "hand_back": _of_held(lambda work, held: worker.hand_back(work.keys, work.epoch, _triples(held))),
    "retry": _of_held(lambda work, held: worker.retry(work.keys, work.epoch, [work.put_back(t) for t in held])),
    "reap": _of_held(lambda work, held: work.reap_call(final=False, charge="host", cause="lost host")),
    "finish": _of_held(
        lambda work, held: work.finish_call(
            *(Finish(t.task, t.lane, t.entry_id, JobStatus.DONE, b"{}", t.meta) for t in held)
        )
    ),
    "retry_dead": _of_dead(lambda work, ids: admin.retry_dead(work.keys, ids)),
    "purge_dead": _of_dead(lambda work, ids: admin.purge_dead(work.keys, ids)),
    "read_dead": _of_dead(lambda work, ids: inspect.read_dead(work.keys, ids[0])),
    "recent_ends": _recent,
    "submit": _submits,
    "submit at once": lambda work, shape: _submits(work, shape, None),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_no_script_holds_the_broker_up(own_server: Server, namespace: str, name: str, shape: str) -> None:
    broker = SyncQueueClient(own_server.url, namespace)
    try:
        work = Workbench(broker)
        work.register(*(task(f"other-{number}") for number in range(40)), task("pack"), task("ship"), lease_ms=10**9)
        work.names = ["ship"]
        following = SCRIPTS[name](work, SHAPES[shape])
        broker.run(following())  # the server keeps the script's text
        took_ms, held_bytes = _measured(work, following)
    finally:
        broker.close()
    median_ms = statistics.median(took_ms)
    print(f"{name}, {shape}: {median_ms:.2f} ms, {held_bytes / 2**20:.1f} MiB")
    assert median_ms <= LONGEST_MS, f"{sorted(took_ms)[-5:]}"
    assert held_bytes <= MOST_HELD_BYTES


def _many_services(work: Workbench) -> ownership.Statement:
    """1,000 names, each stated and served by 64 daemons. -> the statement of one."""
    kinds: list[dict[str, Any]] = [{}, {"cron": CronSpec("* * * * *")}, {"event": "paid"}, {}]
    tasks = [task(f"a-task-of-the-shop-{number}", **kinds[number % 4]) for number in range(1000)]
    register(work, *tasks)
    record = {"service": "shop", "daemon": "d1", "tasks": [one.name for one in tasks]}
    stated = statement(*tasks)
    for number in range(64):
        announce(work, replace(stated, announcer=f"d{number}"), 10**9)
        work.broker.command("HSET", work.keys.consumers, f"c{number}", json.dumps(record))
        work.broker.command("ZADD", work.keys.leases, 10**15, f"c{number}")
    return stated


@pytest.mark.parametrize("name", ["registry", "announce", "list_tasks"])
def test_what_is_registered_is_read_and_renewed_by_parts(own_server: Server, namespace: str, name: str) -> None:
    broker = SyncQueueClient(own_server.url, namespace)
    try:
        work = Workbench(broker)
        stated = _many_services(work)
        calls: Iterator[Call[Any]]
        seen: list[Call[Any]] = []

        def keep(call: Call[Any]) -> Any:
            seen.append(call)
            return broker.run(call)

        if name == "registry":
            found = run_calls_blocking(ownership.registry(work.keys), keep)
            assert (len(found.definitions), len(found.announcers), len(found.served)) == (1000, 64, 1000)
            calls = itertools.cycle(seen)
        elif name == "list_tasks":
            assert len(run_calls_blocking(inspect.list_tasks(work.keys, 0), keep)) == 1000
            calls = itertools.cycle(seen)
        else:
            calls = itertools.cycle(ownership.announce(work.keys, work.epoch, stated, 10**9))
        took_ms, held_bytes = _measured(work, lambda: next(calls))
    finally:
        broker.close()
    print(f"{name}: {statistics.median(took_ms):.2f} ms, at most {max(took_ms):.2f}, {held_bytes / 2**20:.1f} MiB")
    assert sorted(took_ms)[-3] <= LONGEST_MS, "of parts that differ, the longest count"
    assert held_bytes <= MOST_HELD_BYTES


def _measured(work: Workbench, following: Callable[[], Call[Any]]) -> tuple[list[float], int]:
    """How long each call took in the server, and by how much the memory that the server used went beyond what it had used until then."""
    command = work.broker.command
    command("CONFIG", "SET", "slowlog-log-slower-than", "-1", "slowlog-max-len", "1000")
    took_ms: list[float] = []
    most = 0
    for _ in range(CALLS):
        call = following()
        before = _memory(work)
        command("SLOWLOG", "RESET")
        command("CONFIG", "SET", "slowlog-log-slower-than", "0")
        work.broker.run(call)
        command("CONFIG", "SET", "slowlog-log-slower-than", "-1")
        took_ms += [row[2] / 1000 for row in command("SLOWLOG", "GET", 10) if row[3][0].lower() == b"evalsha"]
        after = _memory(work)
        most = max(most, after[1] - max(before))
    return took_ms, most


def _memory(work: Workbench) -> tuple[int, int]:
    """Bytes used now, and at most until now."""
    rows = dict(line.split(b":", 1) for line in work.broker.command("INFO", "memory").splitlines() if b":" in line)
    return int(rows[b"used_memory"]), int(rows[b"used_memory_peak"])


def test_large_jobs_behind_small_ones_are_fetched_few_at_a_time(own_server: Server, namespace: str) -> None:
    """How large the next entry is shows only when it is read: what counts is the largest job that the task has had."""
    broker = SyncQueueClient(own_server.url, namespace)
    try:
        work = Workbench(broker)
        work.register(task("ship"), lease_ms=10**9)
        work.names = ["ship"]
        _fill(work, (500, 30))
        _fill(work, (40, 900_000))
        taken = 0
        while (got := work.broker.run(_fetch(work, 1000))).entries:
            payloads = [fields[1] for _, _, entries in got.entries for _, fields in entries]
            taken += len(payloads)
            assert sum(map(len, payloads)) <= MOST_HELD_BYTES
        assert taken == 540
    finally:
        broker.close()


async def test_a_backlog_that_is_read_directly_gives_few_large_jobs_at_a_time(
    own_server: Server, namespace: str
) -> None:
    worker_spec = upnext.Worker("w", concurrency=10)
    ended: list[int] = []

    @worker_spec.task
    async def job(text: str) -> None:
        ended.append(len(text))

    small, large = 4_000, 120
    client = own_server.client()
    try:
        async with serving(worker_spec, own_server.url, namespace) as running:
            client.sadd(running.keys.paused, "job")
            client.spublish(running.keys.bell, "p")
            await job.submit_many([("x",)] * small)
            await job.submit_many([("y" * 900_000,)] * large)
            client.config_resetstat()
            before = _used(client)[0]
            client.srem(running.keys.paused, "job")
            client.spublish(running.keys.bell, "p")
            await wait_until_async(lambda: len(ended) == small + large, 60)
            most = _used(client)[1] - before
        print(f"held at most {most / 2**20:.1f} MiB")
        assert sum(ended) == small + 900_000 * large
        assert most <= 10 * MOST_HELD_BYTES, "of 103 MiB; a reply is made twice, and its buffer grows by doubling"
    finally:
        client.close()


def _used(client: redis.Redis) -> tuple[int, int]:
    found: Any = client.info("memory")
    return found["used_memory"], found["used_memory_peak"]
