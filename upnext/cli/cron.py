"""`upnext cron`: what runs by the clock."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import click

from upnext.cli import json_views, output
from upnext.cli.nearest import NearestGroup
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue


@click.group(cls=NearestGroup)
@queue_options
def cron() -> None:
    """Look at crons, run one now, pause and resume them."""


@cron.command(name="list")
@queue_options
def list_() -> None:
    """List crons with their last and next runs (UTC)."""
    from upnext.engine.views import crons

    with queue() as broker:
        listed = [json_views.cron(one) for one in crons.crons(broker, broker.keys)]
    if flags().json:
        output.print_json(listed)
        return
    columns = ("name", "schedule", "timezone", "last", "next", "overlap", "skipped", "service")
    rows = [
        [("yes" if one["overlap"] else "no") if column == "overlap" else one[column] for column in columns]
        for one in listed
    ]
    output.print_table(columns, rows, none="no crons are registered")


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def run(cron_name: str) -> None:
    """Run a cron now, besides its schedule; print the job's id."""
    from upnext.engine.views import crons

    with queue() as broker:
        job_id = broker.submit(crons.submission(broker, broker.keys, cron_name))
    output.print_json({"job_id": job_id}) if flags().json else output.print_line(job_id)


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def pause(cron_name: str) -> None:
    """Hold a cron: it makes no jobs until it is resumed, and those that are queued wait."""
    _switch(cron_name, paused=True)


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def resume(cron_name: str) -> None:
    """Let a cron run again; what it missed is made up for as its missed_run_policy says."""
    _switch(cron_name, paused=False)


def _switch(name: str, *, paused: bool) -> None:
    from upnext.engine.views import crons, tasks

    with queue() as broker:
        task = crons.task_of(broker, broker.keys, name)
        changed = (tasks.pause if paused else tasks.resume)(broker, broker.keys, task)
    if flags().json:
        output.print_json({"cron": name, "task": task, "paused": paused})
    else:
        done = "paused" if paused else "resumed"
        output.print_line(
            f"{name} {done}" if changed else f"{name} {'was paused already' if paused else 'was not paused'}"
        )
