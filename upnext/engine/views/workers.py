"""Consumers as people see them: which process of which daemon on which host serves which Worker, and whether it is alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upnext.core.keys import Keys
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import ConsumerFacts
from upnext.engine.views.jobs import Transport

_LOOK = 200


@dataclass(frozen=True, slots=True)
class Consumer:
    """One Worker's life in one process. `slot`, `generation`, `version` are None where the process is of an older version."""

    consumer: str
    alive: bool
    daemon: str
    daemon_name: str
    host: str
    pid: int
    worker: str
    service: str
    tasks: tuple[str, ...]
    concurrency: int | None
    since_ms: int | None
    slot: str | None
    generation: int | None
    version: str | None


def consumers(transport: Transport, keys: Keys) -> list[Consumer]:
    """All that have registered and are not removed yet, by host, daemon and slot."""
    found: dict[str, Consumer] = {}
    cursor = "0"
    while True:
        cursor, server_ms, page = transport.run(inspect.list_consumers(keys, cursor, _LOOK))
        found |= {facts.name: _consumer(facts, server_ms) for facts in page}
        if cursor == "0":
            break
    return sorted(found.values(), key=lambda one: (one.host, one.daemon, one.slot or "", one.pid, one.worker))


def _consumer(facts: ConsumerFacts, server_ms: int) -> Consumer:
    record = facts.record
    daemon = str(record.get("daemon") or "")
    tasks = record.get("tasks")
    return Consumer(
        consumer=facts.name,
        alive=facts.lease_ms is not None and facts.lease_ms >= server_ms,
        daemon=daemon,
        daemon_name=str(record.get("name") or record.get("service") or daemon),
        host=str(record.get("host") or ""),
        pid=_number(record.get("pid")) or 0,
        worker=str(record.get("worker") or ""),
        service=str(record.get("service") or ""),
        tasks=tuple(str(one) for one in tasks) if isinstance(tasks, list) else (),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        concurrency=_number(record.get("concurrency")),
        since_ms=_number(record.get("since_ms")),
        slot=str(record["slot"]) if record.get("slot") else None,
        generation=_number(record.get("generation")),
        version=str(record["version"]) if record.get("version") else None,
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
