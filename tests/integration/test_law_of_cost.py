"""The law of cost: no script runs for longer than 10 ms (median of 20, on an idle server) or holds more than 4 MiB, whatever is queued."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

import upnext
from tests.integration.lua_harness import CONSUMER, Taken, Workbench, task
from tests.integration.owning import announce, register, statement
from tests.support.servers import Server
from tests.support.service import serving
from tests.support.waiting import PATIENCE, wait_until_async
from upnext.core import activity
from upnext.core.batches import batches
from upnext.core.outcome import JobStatus
from upnext.core.ownership import Source
from upnext.core.schedules import ScheduleSpec
from upnext.core.series import Times
from upnext.core.spec import CronSpec
from upnext.core.submission import Submission
from upnext.engine.calls import admin, checkup, daemons, inspect, lease, ownership, schedules, worker
from upnext.engine.calls import client as client_calls
from upnext.engine.calls import series as series_calls
from upnext.engine.calls.worker import Finish
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.client.waiting import BATCH_JOBS, size_of
from upnext.engine.redis import aside
from upnext.engine.redis.scripts import Call, Calls, run_calls_blocking

LONGEST_MS = 10 * min(PATIENCE, 2.0)
MOST_HELD_BYTES = 4 * 1024 * 1024
CALLS = 20
LUA = Path(upnext.__file__).parent / "engine" / "lua"

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


def _sends(work: Workbench, shape: Shape, *, keyed: bool = False) -> Callable[[], Call[Any]]:
    names, numbers = [f"handler-{number}" for number in range(1000)], itertools.count()
    return lambda: client_calls.send(
        work.keys,
        "paid",
        _payload(shape[1]),
        names,
        idempotency_key=f"k{next(numbers)}" if keyed else None,
        nonce="n",
    )


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
    "send": _sends,
    "send with a key": lambda work, shape: _sends(work, shape, keyed=True),
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


BY_PARTS = ["registry", "announce", "list_tasks"]


@pytest.mark.parametrize("name", BY_PARTS)
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


# -- as wide as it gets: many tasks, consumers, daemons, groups, moments


WIDE = 1000
TASKS = [f"a-task-of-the-shop-{number}" for number in range(WIDE)]
Filled = Callable[[Workbench], Callable[[], Call[Any]]]
"""Fills a namespace of WIDE tasks; -> what makes the next call."""


def _rows(work: Workbench, key: str, rows: Mapping[str, Any]) -> None:
    flat = [word for name, value in rows.items() for word in (name, value)]
    for start in range(0, len(flat), 2000):
        work.broker.command("HSET", key, *flat[start : start + 2000])


def _wide(call: Callable[[Workbench], Call[Any]], fill: Callable[[Workbench], object] = lambda work: None) -> Filled:
    def filled(work: Workbench) -> Callable[[], Call[Any]]:
        fill(work)
        return lambda: call(work)

    return filled


def _happens(work: Workbench) -> Callable[[], Call[Any]]:
    """As many events as one call takes, with long texts, after as many."""
    numbers = itertools.count()

    def call() -> Call[Any]:
        events = [(f"1-{next(numbers)}", b"x" * 1000) for _ in range(activity.MOST_EVENTS)]
        return daemons.note_activity(work.keys, "daemon-1", events)

    for _ in range(20):
        work.broker.run(call())
    return call


def _registers(work: Workbench) -> Callable[[], Call[Any]]:
    """The longest of its parts, names anew each time."""
    kinds: list[dict[str, Any]] = [{}, {"cron": CronSpec("* * * * *")}, {"event": "paid"}, {"max_concurrency": 3}]
    numbers = itertools.count()

    def part() -> Call[Any]:
        again = next(numbers)
        tasks = [task(f"again-{again}-{number}", **kinds[number % 4]) for number in range(lease.PART_TASKS)]
        record = {"service": "shop", "daemon": "d1", "tasks": TASKS}
        registration = lease.Registration("c", record, "shop", 1, 60_000, tasks, source=Source("d1", "host-d1"))
        [call] = run_calls_parts(lease.register_by_parts(work.keys, registration, work.epoch))
        return call

    return part


def run_calls_parts(parts: Calls[Any]) -> list[Call[Any]]:
    """The calls of an operation whose replies don't change them."""
    found: list[Call[Any]] = []
    run_calls_blocking(parts, lambda call: found.append(call) or ("epoch-1", 0))
    return found


def _clashes(work: Workbench) -> Callable[[], Call[Any]]:
    """Names of a service that is gone, while another of 64 daemons and 500 workers lives."""
    definition = {"owner": "gone", "generation_ms": 0, "signature": "x", "file": "/srv/gone.py"}
    _many_daemons(work)
    tasks = [task(name) for name in TASKS[: lease.PART_TASKS]]
    registration = lease.Registration("c", {}, "mine", 1, 60_000, tasks, source=Source("d-mine", "host"))

    def part() -> Call[Any]:
        _rows(work, work.keys.tasks, dict.fromkeys(TASKS, json.dumps(definition)))
        return lease.register(work.keys, registration, work.epoch)

    return part


def _clashes_with_the_living(work: Workbench) -> Callable[[], Call[Any]]:
    """Names that a living service of 64 daemons and 500 workers has dropped."""
    _many_daemons(work)
    names = [f"dropped-{number}" for number in range(lease.PART_TASKS)]
    definition = {"owner": "shop", "generation_ms": 0, "signature": "x", "file": "/srv/gone.py"}
    tasks = [task(name) for name in names]
    registration = lease.Registration("c", {}, "mine", 1, 60_000, tasks, source=Source("d-mine", "host"))

    def part() -> Call[Any]:
        _rows(work, work.keys.tasks, dict.fromkeys(names, json.dumps(definition)))
        return lease.register(work.keys, registration, work.epoch)

    return part


def _many_daemons(work: Workbench) -> None:
    stated = statement(*(task(name) for name in TASKS))
    record = json.dumps({"service": "shop", "daemon": "d1", "tasks": TASKS})
    for number in range(64):
        announce(work, replace(stated, announcer=f"d{number}"), 10**9)
    _rows(work, work.keys.consumers, {f"c{number}": record for number in range(500)})
    _leases(work, 500)


def _leases(work: Workbench, count: int) -> list[str]:
    names = [f"c{number}" for number in range(count)]
    work.broker.command("ZADD", work.keys.leases, *(word for name in names for word in (10**15, name)))
    return names


def _consumers(work: Workbench) -> None:
    _leases(work, 3000)
    record = json.dumps({"service": "shop", "daemon": "d1", "tasks": TASKS[:100]})
    _rows(work, work.keys.consumers, {f"c{number}": record for number in range(3000)})


def _jobs_of_each(work: Workbench, count: int = 1, size: int = 30) -> None:
    for name in TASKS:
        work.broker.submit_many([Submission(name, _payload(size))] * count)


def _held_of_each(work: Workbench) -> None:
    _jobs_of_each(work)
    while work.fetch(500):
        pass


def _suspects_of_each(work: Workbench) -> None:
    for name in TASKS:
        work.add(name, "x", "p1", b"{}", "m", b'{"i":"%s:n1-0","d":"crash"}' % name.encode())


def _suspects_of_one(work: Workbench) -> None:
    for number in range(2000):
        work.add(TASKS[0], "x", "p1", _payload(3000), "m", f'{{"i":"{TASKS[0]}:n{number}-0","d":"crash"}}')


def _groups(work: Workbench) -> None:
    """Each task's groups as full as they get."""
    for name in TASKS[:50]:
        groups = [f"{number:012x}" for number in range(32)]
        lines = "\n".join(f"1700000000000 {name}:n17637624{number:05}-0" for number in range(100))
        _rows(work, work.keys.groups, {name: " ".join(groups)})
        _rows(work, work.keys.groups, {f"{name}\n{group}": "100 1 1700000000000 f ValueError" for group in groups})
        _rows(work, work.keys.group_ids, {f"{name}\n{group}": lines for group in groups})
        work.broker.command("RPUSH", work.keys.done(name), *(f"1700000000000 {name}:n{n}-0" for n in range(100)))


def _children(work: Workbench) -> None:
    rows = {f"{TASKS[n % WIDE]}:n1763762{n:06}-0": f"d 1700000000000 {TASKS[0]}:n1-0" for n in range(10_000)}
    _rows(work, work.keys.flow("root:n1-0"), rows)


def _dead_of_each(work: Workbench) -> None:
    meta = '{"g":"0a0a0a0a"}'
    packed = f'n{len(meta)}:{meta}{{"v":1}}'
    _rows(work, work.keys.dead_jobs, {f"{name}:n{n}-0": packed for name in TASKS for n in range(10)})
    for name in TASKS:
        work.broker.command("ZADD", work.keys.dead, *(word for n in range(10) for word in (n, f"{name}:n{n}-0")))


def _reports(work: Workbench) -> None:
    for number in range(100):
        rows = [("daemon", b"{}"), *((f"slot:worker-{slot}", b'{"x":"%s"}' % (b"y" * 500)) for slot in range(500))]
        work.broker.run(daemons.report(work.keys, f"d{number}", rows, 1000))


def _schedules(work: Workbench) -> None:
    for number in range(WIDE):
        spec = ScheduleSpec(f"schedule-{number}", TASKS[number], CronSpec("* * * * *"))
        work.broker.run(schedules.set_schedule(work.keys, spec, b'"%s"' % (b"x" * 10_000)))


def _moments(work: Workbench) -> None:
    row = "1234567 1234 123 12 123 1234 123 12345"
    for moment in range(30):
        _rows(work, work.keys.series(1, moment), dict.fromkeys(TASKS, row))
        _rows(work, work.keys.times(1, moment), dict.fromkeys(TASKS, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"))
    _rows(work, work.keys.series_last(1), dict.fromkeys(TASKS, row))


def _results(work: Workbench, size: int = 60_000) -> list[str]:
    names = [work.keys.result(f"ship:n{number}-0") for number in range(300)]
    for name in names:
        work.broker.command("SET", name, b'{"s":"done","v":%s}' % _payload(size))
    return names


def _times(work: Workbench) -> Call[Any]:
    times = Times()
    for number in range(40):
        times.note(0.001 * 2**number, 0.001 * 2**number, 1)
    return series_calls.note_times(work.keys, 0, dict.fromkeys(TASKS[: series_calls.MOST_NOTED], times))


def _pages(first: Callable[[Workbench], Calls[Any]], fill: Callable[[Workbench], object]) -> Filled:
    """One page after another."""

    def filled(work: Workbench) -> Callable[[], Call[Any]]:
        fill(work)
        seen: list[Call[Any]] = []
        run_calls_blocking(first(work), lambda call: seen.append(call) or work.broker.run(call))
        return itertools.cycle(seen).__next__

    return filled


def _ended_before(work: Workbench) -> Callable[[], Call[Any]]:
    """Jobs that are there again after their end, of many tasks."""

    def again() -> Call[Any]:
        ended: list[worker.Ended] = []
        for name in TASKS[:200]:
            entry_id = work.add(name, "n", "p1", _payload(4000))
            ended.append(worker.Ended(name, "n", entry_id, "d", b'{"s":"done"}', b"{}"))
        return worker.finish_again(work.keys, work.epoch, ended, dict.fromkeys(TASKS, 60_000))

    return again


def _set_aside(work: Workbench) -> Call[Any]:
    return next(aside.calls([stream for name in TASKS for stream in work.keys.streams(name)], work.epoch))


def _reap(work: Workbench, *, final: bool = False) -> Call[Any]:
    part = lease.reap_parts(TASKS)[0]
    return lease.reap(work.keys, work.epoch, consumer="another", tasks=part, final=final, charge="host", cause="lost")


WIDE_SCRIPTS: dict[str, Filled] = {
    "register": _registers,
    "register, names of a service that is gone": _clashes,
    "register, names that a living service dropped": _clashes_with_the_living,
    "fetch of all tasks": _wide(
        lambda w: worker.fetch(w.keys, w.epoch, CONSUMER, TASKS, budget=500, lanes=["hnb"] * WIDE, most_limited=1)
    ),
    "fetch of all tasks with a job each": _wide(
        lambda w: worker.fetch(w.keys, w.epoch, CONSUMER, TASKS, budget=10, lanes=["hnb"] * WIDE, most_limited=1),
        lambda w: _jobs_of_each(w, 1),
    ),
    "fetch of a suspect": _wide(
        lambda w: worker.fetch(
            w.keys, w.epoch, CONSUMER, TASKS, budget=1, suspect=True, lanes=["---"] * WIDE, most_limited=1
        )
    ),
    "own_pending": _wide(
        lambda w: worker.own_pending(w.keys, w.epoch, CONSUMER, TASKS[: worker.PENDING_TASKS]), _held_of_each
    ),
    "reap": _wide(_reap),
    "reap of its last tasks": _wide(lambda w: _reap(w, final=True)),
    "unowned_consumers": _wide(
        lambda w: lease.unowned_consumers(w.keys, w.epoch, [s for t in TASKS for s in w.keys.streams(t)][:400], 400),
        _held_of_each,
    ),
    "waiting_suspects": _wide(lambda w: lease.waiting_suspects(w.keys, TASKS), _suspects_of_each),
    "free_suspects": _wide(lambda w: lease.free_suspects(w.keys, w.epoch, "crash", TASKS[0], ""), _suspects_of_one),
    "beat": _wide(
        lambda w: lease.beat(
            w.keys,
            w.epoch,
            daemon="d1",
            token="t",
            lease_ms=10**9,
            leadership_ms=10**9,
            consumers=[f"c{n}" for n in range(500)],
        ),
        _consumers,
    ),
    "list_consumers": _wide(lambda w: inspect.list_consumers(w.keys, "0", 200), _consumers),
    "list_crons": _pages(lambda w: inspect.list_crons(w.keys), lambda w: None),
    "list_schedules": _pages(lambda w: schedules.list_schedules(w.keys), _schedules),
    "list_groups": _wide(lambda w: inspect.list_groups(w.keys, None, "0", 200), _groups),
    "kept_ends": _wide(
        lambda w: inspect.kept_ends(w.keys, TASKS[:50], [JobStatus.DONE, JobStatus.FAILED], 2000), _groups
    ),
    "count_dead": _wide(lambda w: inspect.count_dead(w.keys, "0", 2000), _dead_of_each),
    "jobs_of_key": _wide(lambda w: next(inspect.jobs_of_key(w.keys, "k", None))),
    "job_states": _wide(lambda w: inspect.job_states(w.keys, [f"{name}:n1-0" for name in TASKS[:300]]), _jobs_of_each),
    "read_flow": _wide(lambda w: inspect.read_flow(w.keys, "root:n1-0", "0", 500), _children),
    "outcomes": _wide(lambda w: inspect.outcomes(w.keys, [f"ship:n{number}-0" for number in range(300)]), _results),
    "list_daemons": _wide(lambda w: daemons.list_daemons(w.keys, ""), _reports),
    "report": _wide(
        lambda w: daemons.report(
            w.keys,
            "d1",
            [("daemon", b"{}"), *((f"slot:worker-{slot}", b'{"x":"%s"}' % (b"y" * 500)) for slot in range(500))],
            1000,
        )
    ),
    "sample": _wide(lambda w: series_calls.sample(w.keys, w.epoch, next(MOMENTS), 1, "0"), _jobs_of_each),
    "note_times": _wide(_times),
    "read_series": _wide(lambda w: series_calls.read_series(w.keys, 1, range(60), None), _moments),
    "withdraw": _wide(
        lambda w: ownership.withdraw(w.keys, w.epoch, [f"d{n}" for n in range(100)], ended=True), _many_daemons
    ),
    "finish_again": _ended_before,
    "note_activity": _happens,
    "set_aside": _wide(_set_aside),
    "read_rows": _wide(lambda w: checkup.read_rows(w.keys.tasks, w.keys.tasks, "hash", "0", checkup.MOST_ROWS)),
    "read_texts": _wide(
        lambda w: checkup.read_texts([w.keys.result(f"ship:n{number}-0") for number in range(300)]), _results
    ),
    "read_entries": _wide(
        lambda w: checkup.read_entries(w.keys.stream(TASKS[0], "n"), "0-0"), lambda w: _jobs_of_each(w, 20, 1000)
    ),
}
MOMENTS = itertools.count()


FIXED = {
    "attach", "linger", "note", "resign", "watch", "unwatch", "watch_daemons", "withdraw_report",
    "pause_task", "resume_task", "set_limits", "remove", "remove_bad",
    "tick", "set_schedule", "switch_schedule", "remove_schedule", "replace",
}  # fmt: skip
"""Scripts about one job, task, schedule or daemon: a few commands, whatever there is besides."""


def test_each_script_is_measured_or_is_about_one_thing() -> None:
    measured = {name.split(",")[0].split()[0] for name in (*SCRIPTS, *WIDE_SCRIPTS)} | set(BY_PARTS)
    assert measured.isdisjoint(FIXED)
    assert measured | FIXED == {path.stem for path in LUA.glob("*.lua")}


@pytest.mark.parametrize("name", list(WIDE_SCRIPTS))
def test_nor_does_one_where_there_is_much_of_everything(own_server: Server, namespace: str, name: str) -> None:
    broker = SyncQueueClient(own_server.url, namespace)
    try:
        work = Workbench(broker)
        register(
            work,
            *(task(one, cron=CronSpec("* * * * *") if number % 2 else None) for number, one in enumerate(TASKS)),
        )
        work.names = TASKS
        _leases(work, 1)
        work.broker.command("ZADD", work.keys.leases, 10**15, CONSUMER)
        following = WIDE_SCRIPTS[name](work)
        broker.run(following())
        took_ms, held_bytes = _measured(work, following)
    finally:
        broker.close()
    print(f"{name}: {statistics.median(took_ms):.2f} ms, at most {max(took_ms):.2f}, {held_bytes / 2**20:.1f} MiB")
    assert statistics.median(took_ms) <= LONGEST_MS
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
        worked_ms = _worked_ms(work)
        work.broker.run(call)
        worked_ms = _worked_ms(work) - worked_ms
        command("CONFIG", "SET", "slowlog-log-slower-than", "-1")
        took_ms += [
            min(worked_ms, row[2] / 1000) for row in command("SLOWLOG", "GET", 10) if row[3][0].lower() == b"evalsha"
        ]
        after = _memory(work)
        most = max(most, after[1] - max(before))
    return took_ms, most


def _worked_ms(work: Workbench) -> float:
    """Time that the thread that runs commands has had on a processor: what neighbours cost is not in it."""
    rows = dict(line.split(b":", 1) for line in work.broker.command("INFO", "cpu").splitlines() if b":" in line)
    return 1000 * sum(float(rows[b"used_cpu_%s_main_thread" % kind]) for kind in (b"sys", b"user"))


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
