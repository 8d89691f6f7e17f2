"""The status of a daemon, in the shape of `upnext.control.status`."""

from __future__ import annotations

import os
from typing import Any

import upnext
from upnext import config
from upnext.control import protocol
from upnext.core.reports import blank_slot
from upnextd.rules.plan import Mode
from upnextd.shared import process
from upnextd.shared.companion import Companion
from upnextd.supervisor.generations import Generation, Phase
from upnextd.supervisor.instances import Instance, SlotHistory
from upnextd.supervisor.supervisor import Supervisor

OLDEST_JOBS = 20
"""Of the running jobs, the status has so many of each child, the oldest: it has to fit into one line."""
MOST_JOBS = 2000
"""Of the running jobs of all children together, the status has about so many."""
PAGE_JOBS = 1000


def status(supervisor: Supervisor, *, pss: bool = True) -> dict[str, Any]:
    """Reads /proc and shared pages only: it answers whatever the children do. Without `pss`, what takes the kernel long is left out."""
    now = supervisor.loop.time()
    desired = supervisor.desired
    children = [_child(supervisor, instance, now, pss) for instance in sorted(supervisor.instances, key=_order)]
    # The one in use first. Without preload, there is a process only while one imports.
    generations = sorted(
        supervisor.generations.values(), key=lambda one: (one.number != desired.generation, -one.number)
    )
    children += [_template(one, now, pss) for one in generations if one.living or one.preload]
    if supervisor.broker is not None:
        children.append(_broker(supervisor, now, pss))
    for companion in (supervisor.exporter, supervisor.dashboard):
        if companion is not None:
            children.append(_companion(companion, now, pss))
    scheduler = supervisor.scheduler_status
    return {
        "protocol": protocol.PROTOCOL,
        "version": upnext.__version__,
        "pid": os.getpid(),
        "name": supervisor.settings.name,
        "service": supervisor.settings.service,
        "service_name": _service_name(supervisor),
        "namespace": supervisor.settings.namespace,
        "mode": supervisor.mode(),
        "generation": desired.generation,
        "desired_workers": desired.workers,
        "ready_workers": supervisor.ready_workers(),
        "exit_when_drained": desired.mode is Mode.DRAIN_EXIT,
        "problem": supervisor.templates.problem() or supervisor.waiting or None,
        "children": children,
        "secrets": _secrets(supervisor),
        "scheduler": {"leader": scheduler.leader, "epoch": scheduler.epoch},
        "broker": {
            "url": config.redact(supervisor.broker_url()),
            "embedded": supervisor.broker is not None,
            "connected": scheduler.connected,
        },
    }


def _secrets(supervisor: Supervisor) -> list[dict[str, str]]:
    """Each secret that a worker has read, with its source, of the newest worker that has it."""
    found: dict[str, str] = {}
    for instance in sorted(supervisor.instances, key=lambda one: one.id):
        if instance.child is not None:
            found |= instance.child.secrets
    return [{"name": name, "source": source} for name, source in sorted(found.items())]


def _service_name(supervisor: Supervisor) -> str | None:
    """The name that the service has in Redis; None until it was imported."""
    generation = supervisor.generations.get(supervisor.desired.generation)
    return (generation.service_name or None) if generation is not None else None


def _order(instance: Instance) -> tuple[str, int, int]:
    name, _, number = instance.slot.partition("-")
    return ("0" if name == "worker" else name, int(number) if number.isdigit() else 0, instance.id)


def _child(supervisor: Supervisor, instance: Instance, now: float, pss: bool) -> dict[str, Any]:
    child = instance.child
    history = supervisor.history.get(instance.slot, SlotHistory())
    shown = blank_slot(instance.slot, str(instance.role), instance.life.state.name, generation=instance.generation)
    shown |= {
        "incarnation": history.incarnations if child is None else child.incarnation,
        "restarts": history.restarts,
        "last_exit": None if history.last_exit is None else history.last_exit.as_json(),
    }
    if child is None or child.pid is None:
        return shown
    age_s = None if child.ready_at is None else child.heart.age_s(now)
    if age_s is not None and age_s > supervisor.settings.hang_timeout_s:
        shown["state"] = "HUNG"
    jobs = _jobs(instance, now)
    return shown | {
        "pid": child.pid,
        "uptime_s": round(now - child.born_at, 3),
        "heartbeat_age_s": None if age_s is None else round(age_s, 3),
        "in_flight": jobs[: min(OLDEST_JOBS, max(1, MOST_JOBS // len(supervisor.instances)))],
        "in_flight_count": len(jobs),
        "jobs_done": child.page.done,
        "jobs_failed": child.page.failed,
        **_memory(child.pid, pss),
    }


def running(supervisor: Supervisor, slot: str | None, offset: int) -> dict[str, Any]:
    """A page of the jobs that run in one slot, or in all of them: `next` is the offset of the following page, null after the last."""
    now = supervisor.loop.time()
    jobs = [
        {"slot": instance.slot, **job}
        for instance in sorted(supervisor.instances, key=_order)
        if slot in (None, instance.slot)
        for job in _jobs(instance, now)
    ]
    end = offset + PAGE_JOBS
    return {"jobs": jobs[offset:end], "count": len(jobs), "next": end if end < len(jobs) else None}


def _jobs(instance: Instance, now: float) -> list[dict[str, Any]]:
    """The oldest first."""
    child = instance.child
    if child is None or child.pid is None:
        return []
    found = sorted((job for jobs in child.page.running(now) for job in jobs), key=lambda job: -job.age_s)
    return [{"job_id": job.job_id, "task": job.task, "age_s": round(job.age_s, 3)} for job in found]


def _template(generation: Generation, now: float, pss: bool) -> dict[str, Any]:
    gone = not generation.living
    state = {Phase.IMPORTING: "STARTING", Phase.READY: "READY", Phase.GONE: "EXITED"}[generation.phase]
    shown = blank_slot("template", "template", state, generation=generation.number) | {"incarnation": 1}
    if gone:
        return shown
    return shown | {
        "pid": generation.pid,
        "uptime_s": round(now - generation.started_at, 3),
        **_memory(generation.pid, pss),
    }


def _broker(supervisor: Supervisor, now: float, pss: bool) -> dict[str, Any]:
    broker = supervisor.broker
    assert broker is not None
    state = "READY" if broker.up else "STARTING" if broker.pid is not None else "BACKOFF"
    shown = blank_slot("broker", "broker", state)
    shown |= {"incarnation": broker.restarts + 1, "restarts": broker.restarts}
    if broker.pid is None:
        return shown
    return shown | {"pid": broker.pid, "uptime_s": round(now - broker.started_at, 3), **_memory(broker.pid, pss)}


def _companion(one: Companion, now: float, pss: bool) -> dict[str, Any]:
    shown = blank_slot(one.slot, one.slot, "BACKOFF" if one.pid is None else "READY")
    shown |= {"incarnation": one.restarts + 1, "restarts": one.restarts}
    if one.pid is None:
        return shown
    return shown | {"pid": one.pid, "uptime_s": round(now - one.started_at, 3), **_memory(one.pid, pss)}


def _memory(pid: int, pss: bool) -> dict[str, int | None]:
    shared = process.pss_bytes(pid) or None if pss else None
    return {"rss_bytes": process.rss_bytes(pid) or None, "pss_bytes": shared}
