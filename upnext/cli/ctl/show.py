"""`ctl status` and `ctl dump`: what a daemon says about itself."""

from __future__ import annotations

from typing import Any, cast

import click

from upnext.cli import formatting, known_names, output
from upnext.cli.ctl.connect import connect
from upnext.cli.ctl.samples import last_exit
from upnext.cli.options import control_options, flags
from upnext.control.exits import ExitCode
from upnext.control.status import ApiStatus, ChildStatus, Status, degraded

COLUMNS = ("slot", "state", "pid", "gen", "up", "beat", "running", "done", "failed", "rss", "restarts", "last exit")
SPARE = ("gen", "beat", "restarts", "up", "pid", "rss", "last exit", "failed")
"""What a narrow terminal does without, the first of them first."""
NUMBERS = ("pid", "gen", "up", "beat", "done", "failed", "rss", "restarts")


@click.command()
@control_options
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show the daemon and its children. Exit 4 when degraded."""
    with connect() as client:
        answer = client.call("status")
    if flags().json:
        output.print_json(answer)
    else:
        report = cast("Status", answer)
        output.print_line(headline(report))
        if report.get("problem"):
            output.print_line(f"PROBLEM: {report['problem']}")
        for api in report.get("apis", ()):
            output.print_line(where(api))
        rows = [row(child) for child in report["children"]]
        output.print_table(COLUMNS, rows, none="no children", right=NUMBERS, spare=SPARE)
    ctx.exit(ExitCode.DEGRADED if degraded(cast("Status", answer)) else ExitCode.OK)


@click.command()
@click.argument("slot", shell_complete=known_names.slots)
@control_options
def dump(slot: str) -> None:
    """Print the stacks of one child: its threads and what each async task awaits."""
    with connect() as client:
        answer = client.call("dump", slot=slot, timeout_s=30.0)
    if flags().json:
        output.print_json(answer)
    else:
        output.print_lines(str(answer.get("stacks", "")).rstrip("\n"))


def headline(report: Status) -> str:
    """One line about the whole daemon."""
    broker = report["broker"]
    parts = [
        f"{report['name']} (pid {report['pid']}): {report['mode']}{', then exit' if report.get('exit_when_drained') else ''}",
        f"{report['ready_workers']} of {report['desired_workers']} workers ready"
        if report["desired_workers"]
        else "no workers"
        if any(child["role"] == "api" for child in report["children"])
        else "scaled to 0: no job runs here",
        f"generation {report['generation']}",
        f"broker {broker['url']}{' (embedded)' if broker['embedded'] else ''}{'' if broker['connected'] else ' NOT CONNECTED'}",
        "leader" if report["scheduler"]["leader"] else "not leader",
    ]
    return " · ".join(parts)


def where(api: ApiStatus) -> str:
    """One line about an Api."""
    refused = "" if api.get("listening", True) else ", connections are refused"
    return f"api {api['name']} at {api['url']}: {api['ready']} of {api['processes']} ready{refused}"


def row(child: ChildStatus) -> list[Any]:
    """The cells of one child, in the order of COLUMNS."""
    return [
        child["slot"],
        child["state"],
        child["pid"],
        child["generation"],
        formatting.duration(child["uptime_s"]),
        formatting.duration(child["heartbeat_age_s"]),
        _running(child),
        child["jobs_done"],
        child["jobs_failed"],
        formatting.size(child["pss_bytes"] or child["rss_bytes"]),
        child["restarts"],
        last_exit(child),
    ]


def _running(child: ChildStatus) -> str | None:
    """The oldest running job, and how many more there are."""
    jobs = child["in_flight"]
    if not jobs:
        return None
    oldest = max(jobs, key=lambda job: job["age_s"])
    others = child.get("in_flight_count", len(jobs)) - 1
    return f"{oldest['task']} {formatting.duration(oldest['age_s'])}{f' +{others}' if others else ''}"
