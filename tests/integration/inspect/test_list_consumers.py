"""list_consumers: which processes serve, and which of them are alive."""

from __future__ import annotations

import orjson

from tests.integration.inspect.bench import CONSUMER, Bench, task
from upnext.engine.calls import inspect
from upnext.engine.views import workers

FUTURE_MS = 10**13


def row(bench: Bench, consumer: str, *, lease_ms: int | None = FUTURE_MS, **record: object) -> None:
    bench.broker.command("HSET", bench.keys.consumers, consumer, orjson.dumps(record))
    if lease_ms is not None:
        bench.broker.command("ZADD", bench.keys.leases, lease_ms, consumer)


def test_what_registered_is_shown_with_its_place(bench: Bench) -> None:
    bench.register(task("ship"))
    [one] = workers.consumers(bench.broker, bench.keys)
    assert (one.consumer, one.alive, one.service) == (CONSUMER, True, "orders")
    place = {"name": "shop", "slot": "worker-2", "generation": 3, "version": "1.2.3", "concurrency": 8}
    row(bench, "b", daemon="d", host="h", pid=7, worker="w", service="s", tasks=["ship"], since_ms=5, **place)
    found = {one.consumer: one for one in workers.consumers(bench.broker, bench.keys)}["b"]
    assert (found.daemon, found.daemon_name, found.host, found.pid, found.worker) == ("d", "shop", "h", 7, "w")
    assert (found.slot, found.generation, found.version, found.concurrency) == ("worker-2", 3, "1.2.3", 8)
    assert found.tasks == ("ship",)


def test_who_has_no_lease_or_is_being_reaped_is_not_alive(bench: Bench) -> None:
    row(bench, "kept")
    row(bench, "ended", lease_ms=1)
    row(bench, "lost", lease_ms=None)
    row(bench, "reaped", lease_ms=None)
    bench.broker.command("ZADD", bench.keys.graves, 1, "reaped")
    alive = {one.consumer: one.alive for one in workers.consumers(bench.broker, bench.keys)}
    assert alive == {"kept": True, "ended": False, "lost": False, "reaped": False}


def test_rows_that_cannot_be_read_are_left_out(bench: Bench) -> None:
    row(bench, "good", host="h")
    for name, raw in (("text", b"no json"), ("list", b"[1]"), ("bytes", b"\xff\xfe")):
        bench.broker.command("HSET", bench.keys.consumers, name, raw)
    row(bench, "odd", tasks="ship", pid="x", concurrency=True, slot=7)
    found = {one.consumer: one for one in workers.consumers(bench.broker, bench.keys)}
    assert set(found) == {"good", "odd"}
    assert (found["odd"].tasks, found["odd"].pid, found["odd"].concurrency, found["odd"].slot) == ((), 0, None, "7")


def test_many_come_in_parts_each_once(bench: Bench) -> None:
    names = {f"c{number}" for number in range(1_000)}
    rows = [part for name in names for part in (name, b"{}")]
    bench.broker.command("HSET", bench.keys.consumers, *rows)
    cursor, parts, seen = "0", 0, list[str]()
    while True:
        cursor, _, page = bench.broker.run(inspect.list_consumers(bench.keys, cursor, 100))
        parts += 1
        seen += [facts.name for facts in page]
        if cursor == "0":
            break
    assert set(seen) == names
    assert parts >= 5
