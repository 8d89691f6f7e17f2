"""`upnext call`: submit one job by its task's name."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import click
import orjson

from upnext.cli import known_names, output
from upnext.cli.options import Seconds, flags, queue_options
from upnext.cli.queue import queue
from upnext.control.exits import ExitCode
from upnext.core.visible import visible
from upnext.errors import UsageError

if TYPE_CHECKING:
    from upnext.core.outcome import Outcome
    from upnext.core.submission import Submission


@click.command()
@click.argument("task", shell_complete=known_names.tasks)
@click.option(
    "--kwargs", "kwargs_text", metavar="JSON", default="{}", help='Arguments as a JSON object: \'{"order_id": "A1"}\'.'
)
@click.option("--delay", type=Seconds(min=0), default=None, help="Run it in so many seconds, not now.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the value as JSON.")
@click.option("--timeout", type=Seconds(min=0), default=None, help="Longest wait, in seconds (default: for ever).")
@queue_options
@click.pass_context
def call(
    ctx: click.Context, task: str, kwargs_text: str, delay: float | None, wait: bool, timeout: float | None
) -> None:
    """Submit a job of TASK; print its id."""
    from upnext.declare import seconds
    from upnext.engine.views import tasks

    kwargs = arguments(kwargs_text)
    delay = None if delay is None else seconds("call", "--delay", delay, zero=True)
    timeout = None if timeout is None else seconds("call", "--timeout", timeout, zero=True)
    with queue() as broker:
        job = submission(task, kwargs, tasks.one(broker, broker.keys, task).definition, delay)
        if not wait:
            job_id = broker.submit(job)
            output.print_json({"job_id": job_id}) if flags().json else output.print_line(job_id)
            return
        job_id, outcome = broker.submit_and_wait(job, timeout)
    ctx.exit(_tell(job_id, outcome))


def arguments(text: str) -> dict[str, Any]:
    """What --kwargs says. Raises UsageError."""
    try:
        value = json.loads(text)  # orjson would round an integer beyond 64 bits; this way it is refused
    except ValueError as error:
        raise UsageError(f"--kwargs is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("--kwargs is not a JSON object; write '{\"name\": value}'")
    return cast("dict[str, Any]", value)


def submission(task: str, kwargs: dict[str, Any], definition: dict[str, Any], delay_s: float | None) -> Submission:
    """A job of a task that is known by its definition. Raises InvalidArgumentsError, EncodingError."""
    from upnext.core import codec
    from upnext.core.signatures import payload
    from upnext.core.submission import Submission

    signature = definition.get("signature")
    encoded = payload(signature, kwargs) if signature else codec.dumps(kwargs, "argument ")
    options: dict[str, Any] = definition.get("options") or {}
    return Submission(
        task,
        encoded,
        priority=options.get("priority") or "normal",
        delay_s=delay_s,
        limited=bool(definition.get("limits")),
    )


def _tell(job_id: str, outcome: Outcome) -> ExitCode:
    from upnext.core.outcome import JobStatus

    ok = outcome.status is JobStatus.DONE
    if flags().json:
        error = {"type": outcome.error.type, "message": outcome.error.message} if outcome.error else None
        value = orjson.loads(outcome.value) if ok else None
        output.print_json({"job_id": job_id, "status": outcome.status.value, "value": value, "error": error})
    elif ok:
        output.print_json(orjson.loads(outcome.value))
    else:
        why = f": {visible(str(outcome.error))}" if outcome.error else ""
        output.tell(f"job {job_id} {outcome.status.value}{why}")
    return ExitCode.OK if ok else ExitCode.FAILED
