"""`upnext hosts`: the daemons of all hosts and their processes."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from upnext.cli import formatting, json_views, output
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue

if TYPE_CHECKING:
    from upnext.engine.views.daemons import Daemon

_FRESH_S = 1.0
"""How long daemons get to report anew; else their last report is shown."""


@click.command()
@queue_options
def hosts() -> None:
    """List the daemons of all hosts with their processes: state, memory, heartbeat, running jobs, last exit."""
    from upnext.engine.views.daemons import daemons

    with queue() as broker:
        found = daemons(broker, broker.keys, fresh_s=_FRESH_S)
    if flags().json:
        output.print_json([json_views.host(one) for one in found])
        return
    columns = (
        "host",
        "daemon",
        "state",
        "slot",
        "pid",
        "slot state",
        "gen",
        "rss",
        "beat",
        "jobs",
        "restarts",
        "last exit",
    )
    rows = [row for one in found for row in _rows(one)]
    right = ("pid", "gen", "rss", "beat", "jobs", "restarts")
    output.print_table(columns, rows, none="no daemons are known", right=right, spare=("last exit", "beat", "rss"))


def _rows(one: Daemon) -> list[list[Any]]:
    """One line a slot; of a daemon without any, one line."""
    head = [one.host, one.name, one.state]
    if not one.slots:
        return [[*head, None, None, None, None, None, None, None, None, None]]
    return [
        [
            *head,
            slot["slot"],
            slot["pid"],
            slot["state"],
            slot["generation"],
            formatting.size(slot["rss_bytes"]),
            formatting.duration(slot["heartbeat_age_s"]),
            slot["in_flight_count"],
            slot["restarts"],
            formatting.exit_text(slot["last_exit"]),
        ]
        for slot in one.slots
    ]
