"""`upnext list`, `tasks`, `pause-task`, `resume-task`, `purge`: tasks and their queues."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from upnext.cli import completing, json_views, known_names, output
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue
from upnext.errors import UsageError

if TYPE_CHECKING:
    from upnext.engine.client.sync_client import SyncQueueClient

COLUMNS = (
    "task",
    "kind",
    "service",
    "queued",
    "running",
    "delayed",
    "dead",
    "done",
    "failed",
    "rate/s",
    "limits",
    "paused",
)
NUMBERS = ("queued", "running", "delayed", "dead", "done", "failed", "rate/s")


@click.command(name="list")
@click.argument("services", metavar="[SERVICE]...", nargs=-1, shell_complete=completing.files)
@queue_options
def list_(services: tuple[str, ...]) -> None:
    """List tasks with their signatures: those that SERVICE files declare, else all that are registered."""
    listed, none = (_declared(services), "no tasks") if services else _registered()
    if flags().json:
        output.print_json(listed)
        return
    columns = ("task", "kind", "service", "signature")
    output.print_table(columns, [[one[column] for column in columns] for one in listed], none=none)


def _registered() -> tuple[list[dict[str, Any]], str]:
    """-> what is registered, and what to say when that is nothing."""
    from upnext.core.ownership import owner_of
    from upnext.engine.views import tasks

    with queue() as broker:
        known, none = tasks.known(broker, broker.keys), _none_in(broker)
    return [
        {
            "task": facts.name,
            "kind": facts.definition.get("kind"),
            "service": owner_of(facts.definition),
            "event": facts.definition.get("event"),
            "signature": facts.definition.get("signature"),
        }
        for facts in known
    ], none


def _none_in(broker: SyncQueueClient) -> str:
    return f"no tasks are registered in namespace {broker.keys.namespace} of {broker.endpoint.describe()}"


def _declared(services: Sequence[str]) -> list[dict[str, Any]]:
    from upnext import config, project
    from upnext.service import load

    name = config.service_name(None, project.environment(os.environ))
    return [
        {
            "task": task.name,
            "kind": task.kind.value,
            "service": spec.name,
            "event": task.event,
            "signature": task.arguments.describe(),
        }
        for spec in (load(service, name=name).spec for service in services)
        for worker in spec.workers
        for task in worker.tasks.values()
    ]


@click.command(name="tasks")
@queue_options
def tasks_() -> None:
    """Show depth, running, rate, failures and limits of every task."""
    from upnext.engine.views import tasks

    with queue() as broker:
        found = tasks.tasks(broker, broker.keys, time.time_ns() // 1_000_000)
    listed = [json_views.task(one) for one in found]
    if flags().json:
        output.print_json(listed)
        return
    output.print_table(COLUMNS, [_row(one) for one in listed], none=_none_in(broker), right=NUMBERS)


def _row(task: dict[str, Any]) -> list[Any]:
    rate, concurrency = task["limits"]["rate"], task["limits"]["concurrency"]
    limits = [f"{rate['count']}/{rate['period_s']:g}s"] if rate else []
    if concurrency is not None:
        limits.append(f"max {concurrency}")
    counts = [task[name] for name in ("queued", "running", "delayed", "dead", "done", "failed")]
    return [
        task["task"],
        task["kind"],
        task["service"],
        *counts,
        task["rate_per_s"],
        " ".join(limits) or None,
        task["paused"] or None,
    ]


@click.command(name="pause-task")
@click.argument("task", shell_complete=known_names.tasks)
@queue_options
def pause_task(task: str) -> None:
    """Stop the fetching of TASK everywhere; its jobs wait."""
    from upnext.engine.views import tasks

    with queue() as broker:
        changed = tasks.pause(broker, broker.keys, task)
    _switched(task, True, "paused" if changed else "was paused already")


@click.command(name="resume-task")
@click.argument("task", shell_complete=known_names.tasks)
@queue_options
def resume_task(task: str) -> None:
    """Let TASK be fetched again."""
    from upnext.engine.views import tasks

    with queue() as broker:
        changed = tasks.resume(broker, broker.keys, task)
    _switched(task, False, "resumed" if changed else "was not paused")


def _switched(task: str, paused: bool, text: str) -> None:
    if flags().json:
        output.print_json({"task": task, "paused": paused})
    else:
        output.print_line(f"{task} {text}")


@click.command()
@click.argument("task", shell_complete=known_names.tasks)
@click.option("--yes", is_flag=True, help="Don't ask.")
@queue_options
def purge(task: str, yes: bool) -> None:
    """Remove the queued and delayed jobs of TASK. What runs goes on."""
    from upnext.core.counted import counted
    from upnext.engine.views import tasks

    with queue() as broker:
        facts = tasks.one(broker, broker.keys, task)
        confirm(yes, f"remove the {counted(facts.stored - facts.held, 'queued job')} of {task}, and its delayed ones?")
        removed = tasks.purge(broker, broker.keys, task)
    if flags().json:
        output.print_json({"task": task, "queued": removed.queued, "delayed": removed.delayed})
    else:
        output.print_line(f"removed {removed.queued} queued and {counted(removed.delayed, 'delayed job')} of {task}")


@click.command()
@click.argument("task", shell_complete=known_names.tasks)
@click.option("--rate", metavar="N/PERIOD", help="So many starts at most, as 10/minute.")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="So many at once at most.")
@click.option("--none", "lift", is_flag=True, help="No limit at all.")
@click.option("--declared", is_flag=True, help="Those of the code again.")
@queue_options
def limits(task: str, rate: str | None, concurrency: int | None, lift: bool, declared: bool) -> None:
    """Set the limits of TASK over those that its code declares, until `--declared`. All of them: what isn't named is not limited."""
    from upnext.core.limits import parse_rate
    from upnext.engine.views import tasks

    given = rate is not None or concurrency is not None
    if given + lift + declared != 1:
        raise UsageError("one of --rate and --concurrency, --none, --declared is needed")
    wanted = None if rate is None else parse_rate(rate)
    with queue() as broker:
        tasks.set_limits(broker, broker.keys, task, rate=wanted, concurrency=concurrency, declared=declared)
    if flags().json:
        output.print_json({"task": task, "declared": declared})
    else:
        output.print_line(f"{task} has {'the limits of its code' if declared else 'new limits'}")


@click.command()
@click.argument("registered", metavar="TASK|CRON|EVENT.HANDLER", shell_complete=known_names.tasks)
@queue_options
def forget(registered: str) -> None:
    """Remove a task, cron or handler that no running service declares any more, and has no jobs."""
    from upnext.engine.views import tasks

    with queue() as broker:
        tasks.forget(broker, broker.keys, registered)
    output.print_json({"name": registered, "forgotten": True}) if flags().json else output.print_line(
        f"{registered} is forgotten"
    )


def confirm(yes: bool, question: str) -> None:
    """Ask on a terminal. Raises UsageError where there is no terminal, click.Abort for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question.rstrip('?')}: say so with --yes")
    click.confirm(question, abort=True, err=True)
