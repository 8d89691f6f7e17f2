"""`upnext job`, `jobs`, `explain`: look at jobs."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import orjson

from upnext.cli import formatting, json_views, output
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue
from upnext.control.exits import ExitCode

if TYPE_CHECKING:
    from upnext.engine.client.sync_client import SyncQueueClient
    from upnext.engine.views.jobs import Job

STATES = ("queued", "running", "delayed", "done", "failed", "cancelled", "dead")
_ENDED = ("done", "failed", "cancelled", "dead")
_ARGUMENTS_CAP = 1000
"""Characters of a job's arguments that are shown; --json has them all."""
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOOK_S = 0.25
"""Between two looks of --follow."""


@click.command(name="job")
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--key", default=None, help="Instead of ID: its idempotency key, also after its end.")
@click.option("--task", default=None, help="Whose key it is (default: of whichever task there is a job).")
@click.option("--tree", is_flag=True, help="With its ancestors and descendants, as far as they are remembered.")
@click.option("--follow", is_flag=True, help="Tell what changes until it ends. Exit 1 unless it ended well.")
@click.option("--stack", is_flag=True, help="Print where it stands now: of a job that a daemon on this machine runs.")
@queue_options
@click.pass_context
def job(
    ctx: click.Context,
    job_id: str | None,
    key: str | None,
    task: str | None,
    tree: bool,
    follow: bool,
    stack: bool,
) -> None:
    """Show one job: where it is, since when, its attempts, lineage, result or error."""
    from upnext.engine.views import jobs as jobs_module

    _check_which(job_id, key, task)
    with queue() as broker:
        if job_id is None:
            job_id = jobs_module.id_of_key(broker, broker.keys, str(key), task)
        if follow:
            ctx.exit(_follow(broker, job_id))
        found = jobs_module.job(broker, broker.keys, job_id)
        family = _family(broker, found) if tree else []
    if stack:
        _print_stack(found)
        return
    if flags().json:
        view = json_views.job(found)
        output.print_json({**view, "tree": [json_views.job(one) for one in family]} if tree else view)
        return
    if tree:
        for depth, line in _tree(family, job_id):
            output.print_line(f"{'  ' * depth}{line}")
        return
    output.print_fields(fields(found))


def _check_which(job_id: str | None, key: str | None, task: str | None) -> None:
    """Raises click.UsageError unless an id or a key is given, one of them."""
    if job_id is None and key is None:
        raise click.UsageError("Missing argument 'ID': give an ID, or --key KEY (with --task TASK)")
    if job_id is not None and (key is not None or task is not None):
        raise click.UsageError("give an ID, or --key KEY (with --task TASK), one of them")


def moment(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """`30m`, or an ISO time (UTC where it names no zone) -> Unix ms."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return round((time.time() - float(ago[1]) * _UNITS[ago[2]]) * 1000)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither 30s, 15m, 2h or 1d nor an ISO time as 2026-01-31T09:00"
        ) from None
    return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000)


@click.command(name="jobs")
@click.option("--state", type=click.Choice(STATES), default=None, help="Only those (default: all that are known).")
@click.option("--task", default=None, help="Only those of this task.")
@click.option(
    "--worker",
    default=None,
    metavar="NAME",
    help="Only those of this Worker: what it runs or ran, and what waits for it.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=TEXT", help="Only those that have it (repeatable).")
@click.option(
    "--since",
    metavar="WHEN",
    callback=moment,
    help="Only those in their state since then: 30m, 2h, 1d ago, or an ISO time.",
)
@click.option("--error", metavar="TEXT", help="Only failures with this in the error's type or message, or the cause.")
@click.option(
    "--limit", type=click.IntRange(min=1, max=100_000), default=100, show_default=True, help="At most so many."
)
@queue_options
def jobs(
    state: str | None,
    task: str | None,
    worker: str | None,
    since: int | None,
    error: str | None,
    labels: tuple[str, ...],
    limit: int,
) -> None:
    """List jobs: running, queued, delayed, and the recent ends."""
    from upnext.core.outcome import JobStatus
    from upnext.engine.views import jobs as jobs_module

    status = JobStatus(state) if state else None
    wanted = [_label(one) for one in labels]
    with queue() as broker:
        filtered = since is not None or error is not None or bool(wanted)
        look = max(limit, jobs_module.LOOK) if filtered else limit
        if worker is not None:
            found = jobs_module.of_worker(broker, broker.keys, worker, status, task, look)
        elif error is not None and status is None:
            found = jobs_module.failures(broker, broker.keys, task, look)
        else:
            found = jobs_module.jobs(broker, broker.keys, status, task, look)
    print_jobs(jobs_module.matching(found, since_ms=since, error=error, labels=wanted)[:limit])


def _label(given: str) -> tuple[str, str]:
    from upnext.errors import UsageError

    name, equals, text = given.partition("=")
    if not name or not equals:
        raise UsageError(f"--label is NAME=TEXT, not {given!r}")
    return name, text


@click.command()
@click.argument("job_id", metavar="ID")
@queue_options
def explain(job_id: str) -> None:
    """Say why a job doesn't run: paused, limited, delayed, no worker, or its turn hasn't come."""
    from upnext.cli.paused_workers import idle_workers
    from upnext.engine.views.explain import explain as find_gate

    with queue() as broker:
        found = find_gate(broker, broker.keys, job_id, idle_workers(), now_ms=time.time_ns() // 1_000_000)
    if flags().json:
        output.print_json(json_views.explanation(found))
    else:
        output.print_line(f"{found.gate.value}: {found.detail}")


def print_jobs(found: Sequence[Job]) -> None:
    """A table, or JSON, of many jobs."""
    if flags().json:
        output.print_json([json_views.job(one) for one in found])
        return
    columns = ("job", "status", "attempt", "since", "worker", "error")
    rows = [
        [one.job_id, one.status.value, one.attempt, formatting.iso(one.since_ms or one.due_ms), one.worker, _error(one)]
        for one in found
    ]
    output.print_table(columns, rows, none="no jobs", right=("attempt",))


def fields(found: Job) -> list[tuple[str, Any]]:
    """What a person wants to know about one job, most important first."""
    attempt = f"{found.attempt} of {found.max_attempts}" if found.max_attempts else str(found.attempt)
    record = found.worker_record or {}
    place = f" on {record['host']}, pid {record['pid']}" if record.get("host") else ""
    return [
        ("job", found.job_id),
        ("task", found.task),
        ("arguments", _arguments(found.payload_shown)),
        ("status", f"{found.status.value} (dead letter)" if found.dead_letter else found.status.value),
        ("since", formatting.iso(found.since_ms)),
        ("due", formatting.iso(found.due_ms)),
        ("attempt", attempt),
        ("crashes", found.crashes or None),
        ("submitted", formatting.iso(found.submitted_ms)),
        ("started", formatting.iso(found.started_ms)),
        ("finished", formatting.iso(found.finished_ms)),
        ("took", _took(found)),
        ("cost", _cost(found)),
        ("expires", formatting.iso(found.expires_ms)),
        ("cancel asked", formatting.iso(found.cancel_ms)),
        ("worker", f"{found.worker}{place}" if found.worker else None),
        ("labels", ", ".join(f"{name}={text}" for name, text in found.labels.items()) or None),
        ("submitted by", ", ".join(filter(None, (found.parent_id, found.via))) or None),
        ("parent", found.parent_id),
        ("root", found.root_id),
        ("progress", orjson.dumps(found.progress_shown).decode() if found.progress else None),
        ("result", orjson.dumps(orjson.loads(found.value_shown)).decode() if found.value_shown is not None else None),
        ("reason", found.reason.value if found.reason else None),
        ("cause", found.cause),
        ("error", _error(found)),
        ("traceback", f"{found.error.traceback.rstrip()}\n" if found.error and found.error.traceback else None),
    ]


def _arguments(payload: bytes | None) -> str | None:
    """As JSON, cut where it is long."""
    if not payload:
        return None
    text = payload[: 4 * _ARGUMENTS_CAP].decode("utf-8", "replace")
    return text if len(text) <= _ARGUMENTS_CAP else f"{text[:_ARGUMENTS_CAP]}… ({len(payload)} bytes)"


def _cost(found: Job) -> str | None:
    if found.cost is None:
        return None
    cpu, step = (formatting.duration(seconds) for seconds in (found.cost.cpu_s, found.cost.longest_step_s))
    return f"{cpu} CPU time, longest step on the loop {step}"


def _took(found: Job) -> str | None:
    if found.started_ms is None or found.finished_ms is None:
        return None
    return formatting.duration((found.finished_ms - found.started_ms) / 1000)


def _error(found: Job) -> str | None:
    if found.unreadable is not None:
        return f"unreadable: {found.unreadable}"
    if found.error is None:
        return None
    return " ".join(str(found.error).split())[:200]


# -- --stack ------------------------------------------------------------------------------------------------------------------------------


def _print_stack(found: Job) -> None:
    """What the daemon that runs it says. Raises ControlError where none on this machine does."""
    from upnext import config
    from upnext.cli import local_daemons
    from upnext.control.client import ControlClient
    from upnext.control.protocol import ErrorCode
    from upnext.errors import ControlError

    record = found.worker_record or {}
    if found.status.value != "running" or not record.get("pid"):
        raise ControlError(f"{found.job_id} is {found.status.value}: no process has it now", ErrorCode.FAILED)
    for path, status in local_daemons.of_this_user():
        if any(child.get("pid") == record["pid"] for child in status.get("children", ())):
            with ControlClient(str(path), timeout_s=_STACK_S, servers=config.unit_users(path)) as client:
                answer = client.call("stacks", job_id=found.job_id)
            if flags().json:
                output.print_json(answer)
            else:
                output.print_line(f"{answer['job_id']} in {answer['slot']}, pid {answer['pid']}")
                output.print_lines(str(answer["stacks"]).rstrip("\n"))
            return
    where = f"{record.get('name') or record.get('service')} on {record.get('host')}"
    raise ControlError(
        f"{found.job_id} runs in {where}, pid {record['pid']}: no daemon of this user on this machine has that process",
        ErrorCode.FAILED,
    )


# -- --tree -------------------------------------------------------------------------------------------------------------------------------


def _family(broker: SyncQueueClient, found: Job) -> list[Job]:
    """The root and all its known descendants; just the job where it stands alone."""
    from upnext.engine.views import flows
    from upnext.engine.views import jobs as jobs_module
    from upnext.errors import JobNotFoundError

    root_id = found.root_id or found.job_id
    known = {one.job_id: one for one in flows.below(broker, broker.keys, root_id)}
    known[found.job_id] = found
    if root_id not in known:
        with suppress(JobNotFoundError):  # its result has expired; the descendants still show
            known[root_id] = jobs_module.job(broker, broker.keys, root_id)
    return list(known.values())


_STACK_S = 30.0
_SHOWN_SIBLINGS = 10
"""Of more siblings of one task the first so many are printed, the others are counted."""


def _tree(family: Sequence[Job], job_id: str) -> list[tuple[int, str]]:
    """(depth, line) in order: parents first, siblings by task and age. A job whose parent isn't known stands at the top."""
    from upnext.engine.views import flows

    known = {one.job_id for one in family}
    children: dict[str | None, list[Job]] = {}
    for one in sorted(family, key=lambda one: (one.submitted_ms or 0, one.job_id)):
        children.setdefault(one.parent_id if one.parent_id in known else None, []).append(one)
    lines: list[tuple[int, str]] = []

    def add(depth: int, parent: str | None) -> None:
        for group in flows.grouped(children.get(parent, ()), _SHOWN_SIBLINGS):
            chosen = {one.job_id: one for one in group.first}
            chosen |= {one.job_id: one for one in children.get(parent, ()) if one.job_id == job_id}
            for one in chosen.values():
                lines.append((depth, f"{one.job_id}  {one.status.value}{' <' if one.job_id == job_id else ''}"))
                if depth < _DEEPEST:
                    add(depth + 1, one.job_id)
            if group.count > len(chosen):
                states = ", ".join(f"{count} {state}" for state, count in group.states.items())
                lines.append((depth, f"… and {group.count - len(chosen)} more of {group.task}: of all, {states}"))

    add(0, None)
    return lines


_DEEPEST = 100


# -- --follow -----------------------------------------------------------------------------------------------------------------------------


def _follow(broker: SyncQueueClient, job_id: str) -> ExitCode:
    from upnext.engine.views import jobs as jobs_module

    printed: tuple[Any, ...] | None = None
    while True:
        found = jobs_module.job(broker, broker.keys, job_id)
        state = (found.status.value, found.attempt, found.crashes, found.worker, orjson.dumps(found.progress))
        if state != printed:
            printed = state
            _tell_change(found)
        if found.status.value in _ENDED:
            return ExitCode.OK if found.status.value == "done" else ExitCode.FAILED
        time.sleep(_LOOK_S)


def _tell_change(found: Job) -> None:
    if flags().json:
        output.print_json(json_views.job(found))
        return
    parts = [formatting.iso(found.since_ms or found.due_ms) or "-", found.status.value, f"attempt {found.attempt}"]
    if found.crashes:
        parts.append(f"crashes {found.crashes}")
    if found.worker:
        parts.append(f"worker {found.worker}")
    if found.progress:
        parts.append(orjson.dumps(found.progress_shown).decode())
    if found.value is not None:
        parts.append(orjson.dumps(orjson.loads(found.value)).decode())
    if found.error:
        parts.append(_error(found) or "")
    output.print_line("  ".join(parts))
