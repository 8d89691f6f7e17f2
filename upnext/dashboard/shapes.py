"""What pages show of jobs, tasks, daemons: the JSON of the CLI with what a page needs beside it. Pure.

Payloads that a role may not see are left out here, in one place, for pages and JSON alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import orjson

from upnext.cli import json_views
from upnext.cli.formatting import exit_text
from upnext.control.slot_names import api_of
from upnext.core import reports
from upnext.core.end_groups import About, Group
from upnext.dashboard.source import Daemon, Snapshot
from upnext.engine.calls import inspect
from upnext.engine.views.crons import Cron
from upnext.engine.views.ends import DeadGroup
from upnext.engine.views.jobs import Job
from upnext.engine.views.tasks import Task
from upnext.engine.views.workers import Consumer

HIDDEN = "•••"


def job(one: Job, *, payload: bool) -> dict[str, Any]:
    """The CLI's shape, with `arguments`, `place` and Unix ms.

    Without `payload`: no arguments, result, error text, progress or values of labels.
    """
    record = one.worker_record or {}
    shape = json_views.job(one)
    if not payload:
        shape |= {"result": None, "progress": None, "labels": dict.fromkeys(shape["labels"] or (), HIDDEN)}
        if shape["error"] is not None:
            shape["error"] = {"type": shape["error"]["type"], "message": HIDDEN, "traceback": None}
    place = shape["place"]
    if place is not None:
        place |= {"daemon_name": record.get("name") or record.get("service")}
    return {
        **shape,
        "arguments": json_views.arguments(one) if payload else None,
        "place_text": place_text(place),
        "since_ms": one.since_ms or one.due_ms,
        "submitted_ms": one.submitted_ms,
        "started_ms": one.started_ms,
        "finished_ms": one.finished_ms,
        "due_ms": one.due_ms,
    }


def place_text(place: Mapping[str, Any] | None) -> str:
    """`worker-1 (pid 12) on web-1`."""
    if place is None:
        return ""
    return (
        f"{place.get('slot') or place.get('daemon_name') or 'worker'} (pid {place.get('pid')}) on {place.get('host')}"
    )


def task(one: Task, *, counted: bool) -> dict[str, Any]:
    """The CLI's shape; `approximate`: delayed and dead are still being counted."""
    return {**json_views.task(one), "approximate": not counted}


def rate_text(limits: Mapping[str, Any] | None) -> str:
    """`100 in 1 s`; "" without one."""
    if not limits or not limits.get("rate"):
        return ""
    return f"{limits['rate']} in {limits['period_s']:g} s"


def rate_field(limits: Mapping[str, Any] | None) -> str:
    """As one writes it: `100/s`, `10/minute`; "" for none and for periods without a word."""
    words = {1: "s", 60: "minute", 3600: "hour", 86400: "day"}
    if not limits or not limits.get("rate") or limits["period_s"] not in words:
        return ""
    return f"{limits['rate']}/{words[limits['period_s']]}"


def cron(one: Cron) -> dict[str, Any]:
    """The CLI's shape with Unix ms."""
    return {
        **json_views.cron(one),
        "last_ms": one.last_ms,
        "next_ms": one.next_ms,
        "overdue_ms": one.overdue_ms,
    }


def daemon(one: Daemon) -> dict[str, Any]:
    """The CLI's shape with what a page needs."""
    shape = json_views.host(one)
    slots = [_slot(slot) for slot in shape["slots"]]
    workers = [slot for slot in slots if slot["role"] == "worker"]
    about = one.report.about if one.report is not None else {}
    ready, wanted = about.get("ready_workers"), about.get("desired_workers")
    return {
        **shape,
        "slots": slots,
        "seen_ms": one.seen_ms,
        "ready": ready if ready is not None else sum(slot["state"] == "alive" for slot in workers),
        "wanted": wanted if wanted is not None else len(workers),
        "running": sum(slot["in_flight_count"] for slot in slots),
        "generation": about.get("generation"),
        "stop_timeout_s": about.get("stop_timeout_s"),
        "problem": about.get("problem"),
    }


def _slot(slot: Mapping[str, Any]) -> dict[str, Any]:
    last_exit = slot.get("last_exit")
    blank = reports.blank_slot(str(slot.get("slot")), str(slot.get("role")), str(slot.get("state")))
    return {**blank, **slot, "last_exit": {**last_exit, "text": exit_text(last_exit)} if last_exit else None}


def workers(snapshot: Snapshot) -> list[dict[str, Any]]:
    """By Worker(name), over all hosts."""
    found: dict[str, list[Consumer]] = {}
    for one in snapshot.consumers:
        if one.alive:
            found.setdefault(one.worker, []).append(one)
    running = {task.name: task.running for task in snapshot.tasks}
    running_in = {
        (one.host, slot["pid"]): slot["in_flight_count"]
        for one in snapshot.daemons
        if one.report is not None
        for slot in one.slots
    }
    rows: list[dict[str, Any]] = []
    for name, own in sorted(found.items()):
        names = sorted({task for one in own for task in one.tasks})
        rows.append(
            {
                "name": name,
                "services": sorted({one.service for one in own}),
                "processes": len({(one.host, one.pid) for one in own}),
                "concurrency": sum(one.concurrency or 0 for one in own),
                "running": sum(running.get(task, 0) for task in names),
                "hosts": sorted({one.host for one in own}),
                "tasks": names,
                "places": [_place(one, running_in.get((one.host, one.pid))) for one in own],
            }
        )
    return rows


def _place(one: Consumer, running: int | None) -> dict[str, Any]:
    return {
        "host": one.host,
        "daemon": one.daemon,
        "daemon_name": one.daemon_name,
        "slot": one.slot,
        "pid": one.pid,
        "generation": one.generation,
        "running": running,
        "since_ms": one.since_ms,
    }


def apis(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Apis of all daemons: where each is served, and by which processes."""
    rows: list[dict[str, Any]] = []
    for one in snapshot.daemons:
        about = one.report.about if one.report is not None and one.alive else {}
        apis = about.get("apis")
        found = cast("list[Any]", apis) if isinstance(apis, list) else []
        rows += [_api(one, cast("dict[str, Any]", api)) for api in found if isinstance(api, dict)]
    return sorted(rows, key=lambda row: (row["name"], row["host"]))


def _api(one: Daemon, api: Mapping[str, Any]) -> dict[str, Any]:
    name = str(api.get("name"))
    slots = [slot for slot in one.slots if api_of(str(slot.get("slot"))) == name]
    return {
        "name": name,
        "url": api.get("url"),
        "host": one.host,
        "daemon": one.daemon,
        "daemon_name": one.name,
        "processes": api.get("processes"),
        "ready": api.get("ready"),
        "requests": api.get("requests"),
        "failed": api.get("failed"),
        "slots": [_slot(slot) for slot in slots],
    }


def events(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Events with their handlers, over all services."""
    found: dict[str, list[Task]] = {}
    for one in snapshot.tasks:
        if one.event:
            found.setdefault(one.event, []).append(one)
    return [
        {
            "event": event,
            "handlers": [
                {"task": h.name, "service": h.service, "queued": h.queued, "running": h.running, "dead": h.dead}
                for h in handlers
            ],
        }
        for event, handlers in sorted(found.items())
    ]


_STATUSES = {letter.value: status.value for letter, status in inspect.STATUSES.items()}
NO_GROUP = "-"
"""The fingerprint of dead letters that an older version wrote."""


def group_of(fingerprint: str | None) -> str | None:
    """The name of a group, as calls take it."""
    return "" if fingerprint == NO_GROUP else fingerprint


def dead_group(one: DeadGroup, *, payload: bool) -> dict[str, Any]:
    """Dead letters that are alike. `count`: kept now; `ended`: ends of this kind ever."""
    return {
        "task": one.task,
        "fingerprint": one.group or NO_GROUP,
        **_about(one.about, payload=payload),
        "count": one.count,
        "ended": one.ended,
        "first_ms": one.first_ms,
        "last_ms": one.last_ms,
        "job_id": one.job_id,
    }


def end_group(one: Group, dead: int, *, payload: bool) -> dict[str, Any]:
    """Ends of a task that are no success and alike. `count`: ever; `dead`: dead letters of them that are kept."""
    return {
        "task": one.task,
        "fingerprint": one.name,
        **_about(one.about, payload=payload),
        "status": _STATUSES.get(one.letter, "failed"),
        "count": one.count,
        "dead": dead,
        "first_ms": one.first_ms,
        "last_ms": one.last_ms,
    }


def _about(about: About | None, *, payload: bool) -> dict[str, Any]:
    """The message of an error may hold what is in its job: it is a payload."""
    known = about or About("of several kinds")
    return {
        "type": known.type or "of several kinds",
        "location": known.where,
        "cause": known.cause or None,
        "message": known.message if payload else HIDDEN,
        "text": known.cause or (known.message if payload else ""),
    }


def pretty(value: Any) -> str:
    """Indented JSON for people, in which invisible characters are escaped: it reads back as the same value."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)
