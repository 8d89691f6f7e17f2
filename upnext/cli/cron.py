"""`upnext cron`: what runs by the clock."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import click

from upnext.cli import formatting, json_views, known_names, output
from upnext.cli.nearest import NearestGroup
from upnext.cli.options import Seconds, flags, queue_options
from upnext.cli.queue import queue
from upnext.errors import UsageError


@click.group(cls=NearestGroup)
@queue_options
def cron() -> None:
    """Look at crons and schedules, run one now, pause and resume them; make and remove schedules."""


@cron.command(name="list")
@queue_options
def list_() -> None:
    """List crons, and schedules that were made at run time, with their last and next runs (UTC), and why one waits."""
    from upnext.engine.views import crons

    with queue() as broker:
        listed = [json_views.cron(one) for one in crons.crons(broker, broker.keys)]
    if flags().json:
        output.print_json(listed)
        return
    columns = ("name", "schedule", "timezone", "last", "next", "overlap", "skipped", "service", "kind", "waits")
    rows = [
        [("yes" if one["overlap"] else "no") if column == "overlap" else one[column] for column in columns]
        for one in listed
    ]
    output.print_table(columns, rows, none="no crons are registered")


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def run(cron_name: str) -> None:
    """Run a cron or a schedule now, besides its times; print the job's id."""
    from upnext.engine.views import crons

    with queue() as broker:
        job_id = broker.submit(crons.submission(broker, broker.keys, cron_name))
    output.print_json({"job_id": job_id}) if flags().json else output.print_line(job_id)


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def pause(cron_name: str) -> None:
    """Hold a cron: it makes no jobs until it is resumed, and those that are queued wait. Of a schedule, those that are queued run."""
    _switch(cron_name, paused=True)


@cron.command()
@click.argument("cron_name", metavar="NAME")
@queue_options
def resume(cron_name: str) -> None:
    """Let it run again; what it missed is made up for as its missed_run_policy says."""
    _switch(cron_name, paused=False)


@cron.command()
@click.argument("schedule_name", metavar="NAME")
@click.argument("task", shell_complete=known_names.tasks)
@click.option("--cron", "expression", metavar="FIELDS", default=None, help="When: '0 9 * * mon-fri'.")
@click.option("--every", type=Seconds(min=1), metavar="SECONDS", default=None, help="Or: so many seconds apart.")
@click.option("--timezone", default="UTC", show_default=True, help="Zone of --cron, an IANA name.")
@click.option(
    "--kwargs", "kwargs_text", metavar="JSON", default="{}", help='Arguments as a JSON object: \'{"order_id": "A1"}\'.'
)
@click.option("--no-overlap", is_flag=True, help="Skip a tick while the job of an earlier one has not ended.")
@queue_options
def add(
    schedule_name: str,
    task: str,
    expression: str | None,
    every: float | None,
    timezone: str,
    kwargs_text: str,
    no_overlap: bool,
) -> None:
    """Make a schedule NAME of jobs of TASK, or change it. It is kept until it is removed."""
    from upnext.cli.call import arguments, submission
    from upnext.engine.views import crons, tasks
    from upnext.scheduling import times

    if (expression is None) == (every is None):
        raise UsageError("give --cron '0 9 * * *' or --every 60, one of them")
    when = times(schedule_name, expression, every, timezone, overlap=not no_overlap)
    with queue() as broker:
        job = submission(task, arguments(kwargs_text), tasks.one(broker, broker.keys, task).definition, None)
        made = crons.make(broker, broker.keys, schedule_name, when, job)
    if flags().json:
        output.print_json(json_views.cron(made))
    else:
        zone = "" if every is not None else f" {made.timezone}"
        output.print_line(f"{schedule_name}: {made.schedule}{zone}, next {formatting.iso(made.next_ms)}")


@cron.command()
@click.argument("schedule_name", metavar="NAME")
@queue_options
def remove(schedule_name: str) -> None:
    """Remove a schedule that was made at run time; its queued jobs stay."""
    from upnext.engine.views import crons

    with queue() as broker:
        crons.remove(broker, broker.keys, schedule_name)
    output.print_json({"cron": schedule_name, "removed": True}) if flags().json else output.print_line(
        f"{schedule_name} removed"
    )


def _switch(name: str, *, paused: bool) -> None:
    from upnext.engine.views import crons

    with queue() as broker:
        task, changed = crons.switch(broker, broker.keys, name, paused=paused)
    if flags().json:
        output.print_json({"cron": name, "task": task, "paused": paused})
    else:
        done = "paused" if paused else "resumed"
        output.print_line(
            f"{name} {done}" if changed else f"{name} {'was paused already' if paused else 'was not paused'}"
        )
