"""`ctl top` and `ctl events`: commands that go on until Ctrl-C."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import click

from upnext.cli import output
from upnext.cli.ctl import samples
from upnext.cli.ctl.connect import connect
from upnext.cli.ctl.samples import Look, TaskLook
from upnext.cli.ctl.show import headline
from upnext.cli.options import Seconds, control_options, flags
from upnext.control.client import ControlClient
from upnext.control.status import Status
from upnext.errors import DaemonGoneError, DaemonNotRunningError, UpNextError

if TYPE_CHECKING:
    from upnext.engine.client.sync_client import SyncQueueClient

COME_BACK_S = 30.0
"""How long a daemon that hung up may take to be there again."""
_QUEUE_SHARE = 0.1
"""Counting delayed jobs takes the broker's time: at most this share of it is asked for."""


@click.command()
@click.option("--interval", type=Seconds(min=0.1), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(min=1), default=None, help="End after so many looks (default: go on).")
@control_options
def top(interval: float, count: int | None) -> None:
    """Show slots, running jobs and queues again and again; full screen on a terminal."""
    if output.on_terminal() and not flags().json:
        _full_screen(interval, count)
    else:
        _in_a_pipe(interval, count)


@click.command()
@control_options
def events() -> None:
    """Follow what happens: children started, ready and gone, reload steps, failed jobs."""
    client = connect()
    while True:
        for event in client.events():
            if flags().json:
                output.print_json(event)
            else:
                output.print_line(_event_line(event))
        client = _again(client, output.tell)


def _again(client: ControlClient, tell: Callable[[str], None]) -> ControlClient:
    """A new connection to a daemon that hung up: it may be starting again. Raises DaemonNotRunningError when it isn't there in time."""
    client.close()
    tell(f"the daemon hung up; waiting up to {COME_BACK_S:g} s for it to come back")
    deadline = time.monotonic() + COME_BACK_S
    while True:
        try:
            return ControlClient(client.path, servers=client.servers)
        except DaemonNotRunningError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _event_line(event: dict[str, Any]) -> str:
    rest = " ".join(
        f"{name}={value}" for name, value in event.items() if name not in ("kind", "at") and value is not None
    )
    return f"{event.get('at', '')}  {event.get('kind', '?')}  {rest}".rstrip()


class _Queue:
    """The tasks of the daemon's queue, where its broker can be reached from here: by the URL it tells, or by our own settings."""

    def __init__(self) -> None:
        self._broker: SyncQueueClient | None = None
        self._known: list[TaskLook] | None = None
        self._asked_at_s = 0.0
        self._not_before_s = 0.0

    def look(self, report: dict[str, Any]) -> tuple[list[TaskLook] | None, float]:
        """-> the tasks (None: not known) and when they were asked for, in monotonic seconds."""
        from upnext.engine.views import tasks

        begun_s = time.monotonic()
        if begun_s < self._not_before_s:
            return self._known, self._asked_at_s
        try:
            broker = self._broker or self._connect(report)
            found = tasks.tasks(broker, broker.keys, time.time_ns() // 1_000_000)
        except UpNextError:
            self._known, self._not_before_s = None, begun_s + 5.0
            return None, begun_s
        self._known = [
            TaskLook(
                task.name,
                task.queued,
                task.running,
                task.delayed,
                task.dead,
                task.done,
                task.failed,
                task.rate_per_s,
                task.paused,
            )
            for task in found
        ]
        self._asked_at_s = begun_s
        self._not_before_s = begun_s + (time.monotonic() - begun_s) / _QUEUE_SHARE
        return self._known, begun_s

    def _connect(self, report: dict[str, Any]) -> SyncQueueClient:
        from upnext import config, project
        from upnext.engine.client.sync_client import SyncQueueClient

        url = str(report["broker"]["url"])
        if not url or config.redact(url) != url or "***" in url:
            url = config.redis_url(None, project.environment(os.environ), name=report["name"]).url
        self._broker = SyncQueueClient(url, report.get("namespace") or "default", name="upnext-cli")
        return self._broker

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _looks(
    interval_s: float, count: int | None, tell: Callable[[str], None], wait: Callable[[float], bool] = _sleep
) -> Iterator[tuple[Look, Look | None]]:
    """Yield a look and the one before it, `interval_s` apart, until `wait` returns True. `tell` gets a line when the daemon hung up."""
    client = connect()
    seen = 0
    before: Look | None = None
    queue = _Queue()
    try:
        while count is None or seen < count:
            if seen and wait(interval_s):
                return
            try:
                report = client.call("status")
            except DaemonGoneError:
                client = _again(client, tell)
                before = None
                report = client.call("status")
            pids = [child["pid"] for child in report["children"] if child["pid"] is not None]
            at_s, cpu_s = time.monotonic(), _cpu_s(pids)
            tasks, tasks_at_s = queue.look(report)
            now = Look(at_s, cast("Status", report), cpu_s, tasks, tasks_at_s)
            yield now, before
            before = now
            seen += 1
    finally:
        queue.close()
        client.close()


def _cpu_s(pids: list[int]) -> dict[int, float]:
    """CPU seconds used; pids that are gone, or of another pid namespace, are left out."""
    import psutil

    used: dict[int, float] = {}
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        used[pid] = times.user + times.system
    return used


def _in_a_pipe(interval_s: float, count: int | None) -> None:
    for now, before in _looks(interval_s, count, output.tell):
        if flags().json:
            output.print_json(now.status)
            continue
        output.print_line(_title(now, before))
        rows = samples.slot_rows(now, before)
        output.print_table(samples.SLOT_COLUMNS, rows, none="no children", right=samples.SLOT_NUMBERS)
        if now.tasks is not None:
            output.print_line()
            rows = samples.task_rows(now, before)
            output.print_table(samples.TASK_COLUMNS, rows, none="no tasks", right=samples.TASK_NUMBERS)


@contextmanager
def _keys() -> Generator[Callable[[float], bool]]:
    """Yield a wait that returns True as soon as `q` is pressed. The terminal hands single keys over meanwhile, and shows none."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import select
    import signal
    import socket
    import termios
    import tty

    fd = sys.stdin.fileno()
    # a Ctrl-C right before the wait begins would count only when that ends: a byte on this pair ends it at once
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def wait(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while ready := select.select([fd, ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if ours in ready:
                ours.recv(64)
            if fd in ready and os.read(fd, 1) in (b"q", b"Q", b""):
                return True
        return False

    before = termios.tcgetattr(fd)
    woken_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        tty.setcbreak(fd)
        yield wait
    finally:
        signal.set_wakeup_fd(woken_before)
        ours.close()
        theirs.close()
        termios.tcsetattr(fd, termios.TCSANOW, before)  # a terminal that takes no output does not hold up the end


def _full_screen(interval_s: float, count: int | None) -> None:
    """Until `q` or Ctrl-C: both are the way out of it, no failure."""
    with suppress(KeyboardInterrupt), _keys() as wait:
        _draw(interval_s, count, wait)


def _draw(interval_s: float, count: int | None, wait: Callable[[float], bool]) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def table(columns: tuple[str, ...], rows: list[list[Any]], right: tuple[str, ...], spare: tuple[str, ...]) -> Any:
        texts = [[output.cell(value) for value in row] for row in rows]
        kept, texts = output.fitting(columns, texts, spare, live.console.width)
        return output.rich_table(kept, [[Text(text) for text in row] for row in texts], right)

    looking = _looks(interval_s, count, lambda text: live.update(Text(text), refresh=True), wait)
    first = next(looking)  # a daemon that isn't there is reported on the plain screen
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        for now, before in itertools.chain((first,), looking):
            shown = [
                Text(_title(now, before), style="bold"),
                table(samples.SLOT_COLUMNS, samples.slot_rows(now, before), samples.SLOT_NUMBERS, samples.SLOT_SPARE),
            ]
            if now.tasks is None:
                shown.append(Text("the queue can't be asked from here"))
            else:
                rows = samples.task_rows(now, before)
                shown.append(table(samples.TASK_COLUMNS, rows, samples.TASK_NUMBERS, samples.TASK_SPARE))
            live.update(Group(*shown), refresh=True)


def _title(now: Look, before: Look | None) -> str:
    rate = samples.jobs_per_s(now, before)
    return headline(now.status) + ("" if rate is None else f" · {rate:.0f} jobs/s")
