"""`upnext dead`: jobs that ran out of attempts or crashed too often, kept until an operator decides."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import click
import orjson

from upnext.cli import json_views, output
from upnext.cli.jobs import fields, print_jobs
from upnext.cli.nearest import NearestGroup
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue
from upnext.cli.tasks import confirm
from upnext.control.exits import ExitCode
from upnext.core.counted import counted
from upnext.errors import UsageError

_ids = click.argument("job_ids", metavar="[ID]...", nargs=-1)
_all = click.option("--all", "all_", is_flag=True, help="All dead letters.")
_task = click.option("--task", default=None, help="All of this task.")
_group = click.option("--group", default=None, help="With --task: only those of this group (see `upnext dead groups`).")


@click.group(cls=NearestGroup)
@queue_options
def dead() -> None:
    """Look at dead letters, retry them, or forget them."""


@dead.command(name="list")
@click.option("--task", default=None, help="Only those of this task.")
@_group
@click.option(
    "--limit", type=click.IntRange(min=1, max=100_000), default=100, show_default=True, help="At most so many."
)
@queue_options
def list_(task: str | None, group: str | None, limit: int) -> None:
    """List dead letters, newest first."""
    from upnext.engine.views import jobs

    with queue() as broker:
        print_jobs(jobs.dead_letters(broker, broker.keys, task, limit, group))


@dead.command()
@click.option("--task", default=None, help="Only those of this task.")
@queue_options
def groups(task: str | None) -> None:
    """Group dead letters by task, error and place in the code: how many, since when; the most frequent first."""
    from upnext.engine.views import ends

    with queue() as broker:
        found = [json_views.dead_group(one) for one in ends.all_dead_groups(broker, broker.keys, task)]
    if flags().json:
        output.print_json(found)
        return
    output.print_table(
        ["TASK", "GROUP", "JOBS", "ENDED", "FIRST", "LAST", "ERROR", "PLACE"],
        [
            [
                one["task"],
                one["group"],
                one["count"],
                one["ended"],
                one["first"],
                one["last"],
                one["error"],
                one["place"],
            ]
            for one in found
        ],
        none="there is no dead letter",
        right=("JOBS", "ENDED"),
        spare=("FIRST", "PLACE", "ENDED"),
    )


@dead.command()
@click.argument("job_id", metavar="ID")
@queue_options
def show(job_id: str) -> None:
    """Show one dead letter: arguments, attempts, error, traceback, cause."""
    from upnext.engine.views import jobs

    with queue() as broker:
        found = jobs.dead_letter(broker, broker.keys, job_id)
    if flags().json:
        output.print_json(json_views.dead_letter(found))
    else:
        shown = fields(found)
        shown.insert(2, ("arguments", orjson.dumps(json_views.arguments(found)).decode()))
        output.print_fields(shown)


@dead.command()
@_ids
@_task
@_group
@_all
@queue_options
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[str, ...], task: str | None, group: str | None, all_: bool) -> None:
    """Queue dead letters again, under their own ids."""
    from upnext.engine.views import dead_letters as letters

    with queue() as broker:
        chosen = (
            list(job_ids) if _given(job_ids, task, all_, group) else letters.ids_of(broker, broker.keys, task, group)
        )
        handled = letters.retry(broker, broker.keys, chosen)
    _tell(ctx, "retried", handled.done, handled.unknown)


@dead.command()
@_ids
@_task
@_group
@_all
@click.option("--yes", is_flag=True, help="Don't ask.")
@queue_options
@click.pass_context
def purge(
    ctx: click.Context, job_ids: tuple[str, ...], task: str | None, group: str | None, all_: bool, yes: bool
) -> None:
    """Forget dead letters for good."""
    from upnext.engine.views import dead_letters as letters

    with queue() as broker:
        given = _given(job_ids, task, all_, group)
        chosen = list(job_ids) if given else letters.ids_of(broker, broker.keys, task, group)
        confirm(yes or given, f"forget {len(chosen)} dead letters?")
        handled = letters.purge(broker, broker.keys, chosen)
    _tell(ctx, "purged", handled.done, handled.unknown)


def _given(job_ids: tuple[str, ...], task: str | None, all_: bool, group: str | None) -> bool:
    """Whether ids were given rather than --task or --all. Raises UsageError unless exactly one way of choosing was used."""
    if group is not None and task is None:
        raise UsageError("--group is of a task: name that with --task, too")
    if sum((bool(job_ids), task is not None, all_)) != 1:
        raise UsageError("say which: one or more IDs, or --task TASK, or --all")
    return bool(job_ids)


def _tell(ctx: click.Context, verb: str, done: list[str], unknown: list[str]) -> None:
    if flags().json:
        output.print_json({verb: done, "unknown": unknown})
    else:
        output.print_line(f"{verb} {counted(len(done), 'dead letter')}")
        for job_id in unknown:
            output.tell(f"{job_id} is not a dead letter")
    ctx.exit(ExitCode.FAILED if unknown else ExitCode.OK)
