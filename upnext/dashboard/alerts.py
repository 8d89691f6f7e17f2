"""What is wrong, most urgent first. Pure: a snapshot in, lines out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upnext.dashboard.source import Daemon, Memory, Snapshot
from upnext.engine.views.crons import Cron

OLD_S = 60.0
"""A job that waits longer than this, of a task that could run, is worth a line."""
HUNG_S = 60.0
FULL = 0.9
"""A broker that has this share of its memory in use is nearly full."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One line. `tone`: bad or warn; `link` leads to what can be done."""

    tone: str
    title: str
    text: str
    link: str = ""
    link_text: str = ""
    since_ms: int | None = None


def alerts(snapshot: Snapshot, oldest_ms: Mapping[str, int], new_dead: int) -> list[Alert]:
    """`oldest_ms`: when the oldest queued job of a task came (server ms); `new_dead`: dead letters of the last hour."""
    found = [
        *_broker(snapshot.memory),
        *_daemons(snapshot.daemons),
        *_queues(snapshot, oldest_ms),
        *_versions(snapshot.daemons),
        *_crons(snapshot.crons),
    ]
    if new_dead:
        jobs = "1 job died" if new_dead == 1 else f"{new_dead:,} jobs died"
        found.append(Alert("warn", f"{jobs} within the last hour.", "", "/dead", "Dead letters"))
    return sorted(found, key=lambda one: one.tone != "bad")


def _broker(memory: Memory | None) -> list[Alert]:
    if memory is None or memory.most_bytes <= 0 or memory.used_bytes < FULL * memory.most_bytes:
        return []
    text = f"{memory.used_bytes / 2**20:,.0f} of {memory.most_bytes / 2**20:,.0f} MiB: a full one refuses jobs."
    return [Alert("bad", "The broker is nearly full.", text, "/tasks", "What waits")]


def _daemons(daemons: Sequence[Daemon]) -> list[Alert]:
    found: list[Alert] = []
    for one in daemons:
        where = f"{one.name} on {one.host}"
        link = f"/hosts/{one.daemon}"
        if not one.alive:
            found.append(
                Alert("bad", f"{where} is gone.", "Its leases have ended; its jobs are taken back.", link, "Its slots")
            )
        if one.report is None or not one.alive:
            continue
        status = one.report.about
        if status["ready_workers"] < status["desired_workers"] and status["mode"] != "stopping":
            text = f"{status['ready_workers']} of {status['desired_workers']} are ready."
            found.append(Alert("bad", f"{where} lacks workers.", text, link, "Its slots"))
        if status.get("broker") and not status["broker"]["connected"]:
            found.append(
                Alert("bad", f"{where} does not reach the broker.", status["broker"]["url"], link, "Its slots")
            )
        if status.get("problem"):
            found.append(Alert("warn", f"{where}:", status["problem"], link, "Its slots"))
        for child in one.slots:
            beat = child.get("heartbeat_age_s")
            if child["state"] == "HUNG" or (child["role"] == "worker" and beat is not None and beat > HUNG_S):
                found.append(
                    Alert(
                        "bad",
                        f"{child['slot']} of {where} hangs.",
                        f"No heartbeat for {beat or 0:.0f} s.",
                        f"{link}/{child['slot']}",
                        "Look inside",
                    )
                )
        found += _old_code(one, where, link)
        if status["mode"] in ("paused", "draining", "drained"):
            found.append(Alert("warn", f"{where} is {status['mode']}.", "It starts no job.", link, "Resume it"))
    return found


def _old_code(one: Daemon, where: str, link: str) -> list[Alert]:
    """Workers of another generation than the daemon's: a reload rolls them now, or it is stuck."""
    assert one.report is not None
    wanted = one.report.about.get("generation")
    old = [
        slot["slot"]
        for slot in one.slots
        if slot["role"] == "worker" and slot["state"] == "READY" and slot.get("generation") not in (None, wanted)
    ]
    if not old or wanted is None:
        return []
    names = ", ".join(old[:5]) + (f" and {len(old) - 5} more" if len(old) > 5 else "")
    return [
        Alert("warn", f"{where} runs several generations.", f"{names} not of generation {wanted}.", link, "Its slots")
    ]


def _queues(snapshot: Snapshot, oldest_ms: Mapping[str, int]) -> list[Alert]:
    served = {task for one in snapshot.consumers if one.alive for task in one.tasks}
    found: list[Alert] = []
    for task in snapshot.tasks:
        if not task.queued:
            continue
        link = f"/tasks/{task.name}"
        since = oldest_ms.get(task.name)
        if task.name not in served:
            found.append(Alert("bad", f"No worker serves {task.name}.", _wait(task.queued), link, "The task", since))
        elif task.paused:
            found.append(Alert("warn", f"{task.name} is paused.", _wait(task.queued), link, "Resume it", since))
        elif since is not None and snapshot.at_ms - since > OLD_S * 1000:
            found.append(
                Alert(
                    "warn", f"Jobs of {task.name} wait long.", f"{task.queued:,} are queued.", link, "The task", since
                )
            )
    return found


def _crons(crons: Sequence[Cron]) -> list[Alert]:
    return [
        Alert("bad", f"Cron {one.name} has not fired.", "A tick is overdue.", "/crons", "Crons", one.overdue_ms)
        for one in crons
        if one.overdue_ms is not None
    ]


def _versions(daemons: Sequence[Daemon]) -> list[Alert]:
    by_name: dict[str, set[str]] = {}
    for one in daemons:
        by_name.setdefault(one.name, set()).update(c.version for c in one.consumers if c.alive and c.version)
    return [
        Alert("warn", f"{name} runs in several versions of upnext:", ", ".join(sorted(versions)), "/hosts", "Hosts")
        for name, versions in by_name.items()
        if len(versions) > 1
    ]


def _wait(queued: int) -> str:
    return "1 job waits." if queued == 1 else f"{queued:,} jobs wait."
