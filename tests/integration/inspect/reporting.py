"""Reports of daemons, as schedulers write them."""

from __future__ import annotations

from typing import Any

from tests.integration.inspect.bench import Bench
from upnext.core import reports
from upnext.engine.calls import daemons as calls
from upnext.engine.views import daemons


def status(*slots: str, jobs: int = 0, **changes: Any) -> dict[str, Any]:
    running = [{"job_id": f"ship:n{number}-0", "task": "ship", "age_s": 1.0} for number in range(jobs)]
    children = [{"slot": name, "role": "worker", "pid": 1, "state": "READY", "in_flight": running} for name in slots]
    return {"pid": 7, "name": "shop", "version": "1.2.3", "mode": "running", "children": children, **changes}


def report(bench: Bench, daemon: str, *slots: str, token: str = "t", kept_s: int = 60, **changes: Any) -> int:
    rows = reports.rows(status(*slots, **changes), "web-1", token)
    return bench.broker.run(calls.report(bench.keys, daemon, rows, kept_s))


def listed(bench: Bench) -> dict[str, daemons.Daemon]:
    return {one.daemon: one for one in daemons.daemons(bench.broker, bench.keys)}
