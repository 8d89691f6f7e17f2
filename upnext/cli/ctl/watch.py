"""`ctl top` and `ctl events`: commands that go on until Ctrl-C."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import time
from typing import Any, cast

import click

from upnext.cli import output
from upnext.cli.ctl.connect import connect
from upnext.cli.ctl.show import COLUMNS, NUMBERS, headline, row
from upnext.cli.options import control_options, flags
from upnext.control.client import ControlClient
from upnext.control.status import Status


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--count", type=click.IntRange(min=1), default=None, help="End after so many looks (default: go on).")
@control_options
def top(interval: float, count: int | None) -> None:
    """Show the status again and again; full screen on a terminal."""
    with connect() as client:
        if output.on_terminal() and not flags().json:
            _full_screen(client, interval, count)
        else:
            _in_a_pipe(client, interval, count)


@click.command()
@control_options
def events() -> None:
    """Follow what happens: children started, ready and gone, reload steps, failed jobs."""
    with connect() as client:
        for event in client.events():
            if flags().json:
                output.print_json(event)
            else:
                output.print_line(_told(event))


def _told(event: dict[str, Any]) -> str:
    rest = " ".join(
        f"{name}={value}" for name, value in event.items() if name not in ("kind", "at") and value is not None
    )
    return f"{event.get('at', '')}  {event.get('kind', '?')}  {rest}".rstrip()


def _looks(client: ControlClient, interval_s: float, count: int | None) -> Any:
    """Yields statuses, `interval_s` apart, `rate` being jobs ended per second since the look before."""
    seen = 0
    before: tuple[float, int] | None = None
    while count is None or seen < count:
        if seen:
            time.sleep(interval_s)
        said = client.call("status")
        now_s = time.monotonic()
        ended = sum(child["jobs_done"] + child["jobs_failed"] for child in said["children"])
        # Counters start again with a new child: a total that falls tells nothing.
        rate = (ended - before[1]) / (now_s - before[0]) if before is not None and ended >= before[1] else None
        before = (now_s, ended)
        seen += 1
        yield said, rate


def _in_a_pipe(client: ControlClient, interval_s: float, count: int | None) -> None:
    for said, rate in _looks(client, interval_s, count):
        if flags().json:
            output.print_json(said)
            continue
        output.print_line(_title(said, rate))
        output.print_table(COLUMNS, [row(child) for child in said["children"]], none="no children", right=NUMBERS)


def _full_screen(client: ControlClient, interval_s: float, count: int | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        for said, rate in _looks(client, interval_s, count):
            cells = [[Text("-" if cell is None else str(cell)) for cell in row(child)] for child in said["children"]]
            table = output.rich_table(COLUMNS, cells, NUMBERS)
            live.update(Group(Text(_title(said, rate), style="bold"), table), refresh=True)


def _title(said: dict[str, Any], rate: float | None) -> str:
    jobs = "" if rate is None else f" · {rate:.0f} jobs/s"
    return headline(cast("Status", said)) + jobs
