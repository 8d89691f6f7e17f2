"""`upnext cancel`."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import click

from upnext.cli import output
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue
from upnext.control.exits import ExitCode


@click.command()
@click.argument("job_id", metavar="ID")
@queue_options
@click.pass_context
def cancel(ctx: click.Context, job_id: str) -> None:
    """Cancel a job that is queued, delayed or running. Exit 1 when it had ended otherwise."""
    from upnext.core.outcome import JobStatus
    from upnext.engine.views import jobs

    with queue() as broker:
        # Asking twice is the same as once; an unknown job raises.
        cancelled = broker.cancel(job_id) or jobs.job(broker, broker.keys, job_id).status is JobStatus.CANCELLED
    if flags().json:
        output.print_json({"job_id": job_id, "cancelled": cancelled})
    else:
        output.print_line(f"{job_id} {'cancelled' if cancelled else 'had ended'}")
    ctx.exit(ExitCode.OK if cancelled else ExitCode.FAILED)
