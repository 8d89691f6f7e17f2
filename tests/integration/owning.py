"""Statements and registrations of daemons, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.integration.lua_harness import Workbench
from upnext.core.ownership import Source
from upnext.core.spec import TaskSpec
from upnext.engine.calls import lease, ownership
from upnext.engine.redis.scripts import run_calls_blocking

LEASE_MS = 30_000


def register(
    work: Workbench, *tasks: TaskSpec, daemon: str = "d1", service: str = "shop", generation_ms: int = 1, **source: Any
) -> None:
    """Definitions alone: no consumer serves them."""
    registration = lease.Registration(
        "", {}, service, generation_ms, 0, tasks, source=Source(daemon, f"host-{daemon}", **source)
    )
    work.epoch, _ = run_calls_blocking(lease.register_by_parts(work.keys, registration, "epoch-1"), work.broker.run)


def statement(
    *tasks: TaskSpec,
    daemon: str = "d1",
    service: str = "shop",
    generation_ms: int = 1,
    serves: Sequence[str] | None = None,
) -> ownership.Statement:
    return ownership.Statement(
        daemon,
        service,
        generation_ms,
        f"host-{daemon}",
        f"/srv/{service}.py",
        {task.name: task.arguments.describe() for task in tasks},
        [task.name for task in tasks] if serves is None else serves,
        [task.name for task in tasks if task.cron],
        {task.name: task.event for task in tasks if task.event},
    )


def announce(work: Workbench, stated: ownership.Statement, lease_ms: int = LEASE_MS) -> list[str]:
    """-> what isn't registered."""
    return [
        name for call in ownership.announce(work.keys, work.epoch, stated, lease_ms) for name in work.broker.run(call)
    ]


def rows(work: Workbench, key: str) -> Mapping[str, Any]:
    return {name: json.loads(value) for name, value in work.hash(key).items()}


def registry(work: Workbench) -> ownership.Registry:
    return run_calls_blocking(ownership.registry(work.keys), work.broker.run)
