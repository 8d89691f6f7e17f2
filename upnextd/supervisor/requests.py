"""Requests of operators, by the socket or by signal: each edits the desired state, or is refused by the table of modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upnext.core.counted import counted
from upnextd.rules import modes, plan
from upnextd.rules.modes import Request
from upnextd.rules.plan import Mode
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.reloads import Reloads
from upnextd.supervisor.systemd import Notifier


class Requests:
    """Edit the desired state. What an operation under way waits for is ended when a new request contradicts it."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        reloads: Reloads,
        notifier: Notifier,
        log: Log,
        clock: Callable[[], float],
        stop_timeout_s: float,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._reloads = reloads
        self._notifier = notifier
        self._log = log
        self._clock = clock
        self._stop_timeout_s = stop_timeout_s

    def ask(self, request: Request) -> str | None:
        """Change the mode as its table says. -> why the request is refused, None when it is not."""
        cell = modes.decide(self._fleet.desired.mode, request)
        if cell.refusal is None and cell.to is not self._fleet.desired.mode:
            self._enter(cell.to, request)
        return cell.refusal

    def scale(self, workers: int, by: str) -> None:
        """Want so many workers; `by` names the request."""
        before = self._fleet.desired.workers
        if workers == before:
            return
        self._fleet.operations.supersede(("scale",), by)
        text = f"{by}: {counted(workers, 'worker')} from now on, {before} before"
        if workers:
            self._log.note(text)
        else:
            self._log.caution(f"{text}: no job runs here until it is scaled up")
        self._duties.edit(workers=workers)
        self._duties.emit("scale", {"workers": workers, "before": before})

    def restart(self, slot: str | None, marks: Mapping[str, int]) -> None:
        """Want the children of these slots replaced: all instances up to the id that each is given. `slot`: as asked; None: all."""
        self._log.note(f"asked to restart {slot or 'every worker and process of an Api'}")
        self._duties.edit(renewed=plan.renew(self._fleet.desired, marks).renewed)
        self._duties.emit("restart", {"slot": slot})

    def _enter(self, mode: Mode, request: Request) -> None:
        # An operation that is done at this moment ends as done, before anything supersedes it.
        self._fleet.operations.check()
        self._fleet.operations.supersede(modes.OVERTAKEN[mode], request.value)
        if mode in (Mode.STOP, Mode.STOP_NOW):
            self._stop(request, now=mode is Mode.STOP_NOW)
            return
        self._log.note(f"asked to {request.value}")
        self._duties.edit(mode=mode)
        self._duties.emit("mode", {"mode": self._fleet.mode()})

    def _stop(self, request: Request, *, now: bool) -> None:
        if not self._fleet.desired.stopping:
            self._notifier.stopping()
        running = self._fleet.running_jobs()
        grace = "no job runs"
        if running:
            ends = "killed" if now else f"left {self._stop_timeout_s:g} s to end"
            grace = f"{counted(running, 'running job')} {'is' if running == 1 else 'are'} {ends}"
        self._log.note(f"stopping ({request.value}): {grace}")
        if now:
            self._duties.edit(mode=Mode.STOP_NOW)
        else:
            stop_by = self._clock() + self._stop_timeout_s
            self._duties.edit(mode=Mode.STOP, stop_by=stop_by, apis_by=stop_by - self._stop_timeout_s / 2)
        self._duties.emit("mode", {"mode": self._fleet.mode()})
        # New connections fail from now on, in place of waiting for nothing.
        self._fleet.listeners.close()
        self._reloads.abort("the daemon stops")
