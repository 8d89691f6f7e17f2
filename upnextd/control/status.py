"""The status of a daemon, in the shape of `upnext.control.status`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import upnext
from upnext import config
from upnext.control import protocol
from upnext.control.slot_names import api_of
from upnext.core.reports import blank_slot
from upnextd.broker.embedded import EmbeddedBroker
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import State
from upnextd.settings import Settings
from upnextd.shared import process
from upnextd.shared.companion import Companion
from upnextd.supervisor.children import Child
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.generations import Generation, Phase
from upnextd.supervisor.instances import Instance, SlotHistory
from upnextd.supervisor.listeners import address_of

OLDEST_JOBS = 20
"""Of the running jobs, the status has so many of each child, the oldest: it has to fit into one line."""
MOST_JOBS = 2000
"""Of the running jobs of all children together, the status has about so many."""
PAGE_JOBS = 1000


def status(
    settings: Settings, fleet: Fleet, beside: Sequence[Companion], now: float, *, pss: bool = True
) -> dict[str, Any]:
    """Describe the daemon from /proc and shared pages only: whatever the children do. `now`: monotonic seconds.

    `beside`: the processes beside the service. Without `pss`, what takes the kernel long is left out.
    """
    desired = fleet.desired
    children = [_child(settings, fleet, instance, now, pss) for instance in sorted(fleet.instances, key=_order)]
    # The one in use first. Without preload, there is a process only while one imports.
    generations = sorted(fleet.generations.values(), key=lambda one: (one.number != desired.generation, -one.number))
    children += [_template(one, now, pss) for one in generations if one.living or one.preload]
    if fleet.broker is not None:
        children.append(_broker(fleet.broker, now, pss))
    children += [_companion(companion, now, pss) for companion in beside]
    scheduler = fleet.scheduler_status
    return {
        "protocol": protocol.PROTOCOL,
        "version": upnext.__version__,
        "pid": os.getpid(),
        "name": settings.name,
        "service": settings.service,
        "service_name": _service_name(fleet),
        "namespace": settings.namespace,
        "mode": fleet.mode(),
        "generation": desired.generation,
        "desired_workers": len(desired.worker_slots),
        "ready_workers": fleet.ready_workers(),
        "stop_timeout_s": settings.stop_timeout_s,
        "exit_when_drained": desired.mode is Mode.DRAIN_EXIT,
        "problem": fleet.problem(now),
        "children": children,
        "secrets": _secrets(fleet),
        "apis": _apis(fleet),
        "scheduler": {"leader": scheduler.leader, "epoch": scheduler.epoch},
        "broker": {
            "url": config.redact(fleet.broker_url()),
            "embedded": fleet.broker is not None,
            "connected": scheduler.connected,
        },
    }


def _secrets(fleet: Fleet) -> list[dict[str, str]]:
    """Each secret that a worker has read, with its source, of the newest worker that has it."""
    found: dict[str, str] = {}
    for instance in sorted(fleet.instances, key=lambda one: one.id):
        if instance.child is not None:
            found |= instance.child.secrets
    return [{"name": name, "source": source} for name, source in sorted(found.items())]


def _apis(fleet: Fleet) -> list[dict[str, Any]]:
    """Each Api that is to serve: where, how many of its processes take connections, and how many requests those that live have answered."""
    ready = Counter(
        api_of(instance.slot)
        for instance in fleet.instances
        if instance.role is Role.API and instance.leave_by is None and instance.life.state is State.READY
    )
    serving: defaultdict[str, list[Child]] = defaultdict(list)
    for instance in fleet.instances:
        if instance.role is Role.API and instance.child is not None:
            serving[api_of(instance.slot)].append(instance.child)
    return [
        {
            "name": api.name,
            "url": fleet.listeners.url(api),
            "listening": not fleet.listeners.refuses(address_of(api)),
            "processes": processes,
            "ready": ready[api.name],
            "requests": sum(one.page.done + one.page.failed for one in serving[api.name]),
            "failed": sum(one.page.failed for one in serving[api.name]),
        }
        for api, processes in fleet.served()
    ]


def _service_name(fleet: Fleet) -> str | None:
    """The name that the service has in Redis; None until it was imported."""
    generation = fleet.generations.get(fleet.desired.generation)
    return (generation.service_name or None) if generation is not None else None


def _order(instance: Instance) -> tuple[str, int, int]:
    name, _, number = instance.slot.partition("-")
    return ("0" if name == "worker" else name, int(number) if number.isdigit() else 0, instance.id)


def _child(settings: Settings, fleet: Fleet, instance: Instance, now: float, pss: bool) -> dict[str, Any]:
    child = instance.child
    history = fleet.history.get(instance.slot, SlotHistory())
    shown = blank_slot(instance.slot, str(instance.role), instance.life.state.name, generation=instance.generation)
    shown |= {
        "incarnation": history.incarnations if child is None else child.incarnation,
        "restarts": history.restarts,
        "last_exit": None if history.last_exit is None else history.last_exit.as_json(),
    }
    if child is None or child.pid is None:
        return shown
    age_s = None if child.ready_at is None else child.heart.age_s(now)
    if age_s is not None and age_s > settings.hang_timeout_s:
        shown["state"] = "HUNG"
    jobs = _jobs(instance, now)
    return shown | {
        "pid": child.pid,
        "uptime_s": round(now - child.born_at, 3),
        "heartbeat_age_s": None if age_s is None else round(age_s, 3),
        "in_flight": jobs[: min(OLDEST_JOBS, max(1, MOST_JOBS // len(fleet.instances)))],
        "in_flight_count": len(jobs),
        "jobs_done": child.page.done,
        "jobs_failed": child.page.failed,
        **_memory(child.pid, pss),
    }


def running(fleet: Fleet, slot: str | None, offset: int, now: float) -> dict[str, Any]:
    """A page of the jobs that run in one slot, or in all of them: `next` is the offset of the following page, null after the last."""
    jobs = [
        {"slot": instance.slot, **job}
        for instance in sorted(fleet.instances, key=_order)
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


def _broker(broker: EmbeddedBroker, now: float, pss: bool) -> dict[str, Any]:
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
