"""The commands that change something: each asks for an operation and, with --wait, follows it to its end."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import sys
from typing import Any

import click

from upnext.cli import known_names, output
from upnext.cli.ctl.connect import connect
from upnext.cli.options import Seconds, control_options, flags
from upnext.control.client import ControlClient, Ended
from upnext.control.exits import ExitCode
from upnext.core.visible import visible_lines
from upnext.errors import DaemonGoneError

_wait = click.option("--wait", is_flag=True, help="Wait until it is done.")
_timeout = click.option(
    "--timeout", type=Seconds(min=0), default=60.0, show_default=True, help="Longest wait, in seconds."
)


@click.command()
@_wait
@_timeout
@click.option("--exit", "exit_", is_flag=True, help="End the daemon when it is drained.")
@control_options
@click.pass_context
def drain(ctx: click.Context, wait: bool, timeout: float, exit_: bool) -> None:
    """Finish what runs, hand back the rest, fetch nothing more (`resume` reverses it)."""
    with connect() as client:
        asked = client.call("drain", exit=exit_)
        ctx.exit(_follow(client, asked, timeout, "draining") if wait else _accepted(asked, "draining"))


@click.command()
@control_options
@click.pass_context
def pause(ctx: click.Context) -> None:
    """Fetch no new jobs; what runs goes on."""
    _ask(ctx, "pause", "paused")


@click.command()
@control_options
@click.pass_context
def resume(ctx: click.Context) -> None:
    """Fetch jobs again, after a pause or a drain."""
    _ask(ctx, "resume", "resumed")


@click.command(name="reload")
@_wait
@_timeout
@click.option("--abort", is_flag=True, help="End the reload under way; the old code goes on.")
@control_options
@click.pass_context
def reload(ctx: click.Context, wait: bool, timeout: float, abort: bool) -> None:
    """Load the service's code anew and replace the workers without losing a job."""
    with connect() as client:
        asked = client.call("reload", abort=abort)
        text = "aborting the reload" if abort else "reloading"
        ctx.exit(_follow(client, asked, timeout, text) if wait or abort else _accepted(asked, text))


@click.command()
@click.argument("workers", type=click.IntRange(min=0, max=1000))
@control_options
@click.pass_context
def scale(ctx: click.Context, workers: int) -> None:
    """Set the number of worker processes."""
    _ask(ctx, "scale", f"scaling to {workers}", workers=workers)


@click.command()
@click.argument("slot", required=False, shell_complete=known_names.slots)
@_wait
@_timeout
@control_options
@click.pass_context
def restart(ctx: click.Context, slot: str | None, wait: bool, timeout: float) -> None:
    """Replace the child of SLOT, or every worker and every process of an Api in turn."""
    with connect() as client:
        asked = client.call("restart", slot=slot)
        text = f"restarting {slot or 'the workers and Apis'}"
        ctx.exit(_follow(client, asked, timeout, text) if wait else _accepted(asked, text))


@click.command()
@click.option("--now", is_flag=True, help="Kill running jobs; they run again at the next start.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the daemon has taken it on.")
@click.option(
    "--timeout",
    type=Seconds(min=0),
    default=None,
    help="Longest wait, in seconds (default: the daemon's own).",
)
@control_options
@click.pass_context
def stop(ctx: click.Context, now: bool, no_wait: bool, timeout: float | None) -> None:
    """Drain and end the daemon; waits until it is gone."""
    with connect() as client:
        asked = client.call("stop", now=now)
        ctx.exit(_accepted(asked, "stopping") if no_wait else _follow(client, asked, timeout, "stopping", gone=True))


def _ask(ctx: click.Context, method: str, text: str, **params: Any) -> None:
    with connect() as client:
        ctx.exit(_accepted(client.call(method, **params), text))


def _accepted(asked: dict[str, Any], text: str) -> ExitCode:
    if flags().json:
        output.print_json(asked)
    else:
        output.print_line(text)
    return ExitCode.OK


def _follow(
    client: ControlClient, asked: dict[str, Any], timeout_s: float | None, text: str, *, gone: bool = False
) -> ExitCode:
    """Wait for the operation's end, telling how it goes; with `gone`, also for the end of the daemon."""
    try:
        ended = _watched(client, asked["op_id"], timeout_s, text)
    except DaemonGoneError:
        if not gone:
            raise
        # It ended before the answer about its end got through.
        ended = Ended(
            ok=True,
            text="stopped",
            data=None,
            raw={"op_id": asked["op_id"], "ok": True, "text": "stopped", "data": None},
        )
    if gone:
        client.wait_gone(timeout_s)
    if flags().json:
        output.print_json(ended.raw)
    elif ended.ok:
        output.print_lines(ended.text or "done")
    if ended.ok:
        return ExitCode.OK
    if not flags().json:
        output.tell(ended.text or "failed")
    return _failure(ended)


def _failure(ended: Ended) -> ExitCode:
    """FAILED, unless the daemon names a code: 75 when jobs were killed at the deadline."""
    data: Any = ended.data
    code = data.get("exit_code") if isinstance(data, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED


def _watched(client: ControlClient, op_id: str, timeout_s: float | None, text: str) -> Ended:
    if flags().json:
        return client.wait(op_id, timeout_s=timeout_s)
    if not sys.stdout.isatty():
        return client.wait(op_id, timeout_s=timeout_s, on_progress=output.print_lines)
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    with console.status(escape(text)) as spinner:

        def tell(line: str) -> None:
            shown = visible_lines(line)
            console.print(shown, markup=False)
            spinner.update(escape(shown))

        return client.wait(op_id, timeout_s=timeout_s, on_progress=tell)
