"""Reloads: a new generation beside the old one, and back when it is no good. Also the fall-back out of a crash loop.

The old generation is untouched until the commit: its template lives, its children that were told to leave can be told to stay.
After the commit its template is kept, so that a crash loop of the new code can be answered with the old.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from upnextd.rules import plan, rollout, slots
from upnextd.rules.plan import Exit, Role
from upnextd.rules.rollout import Action, Event, Phase
from upnextd.rules.slots import State
from upnextd.shared import log_records
from upnextd.supervisor.generations import Generation, ImportFailure
from upnextd.supervisor.generations import Phase as TemplatePhase
from upnextd.supervisor.instances import Instance, oldest_jobs
from upnextd.supervisor.operations import Progress

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor

_TAIL_LINES = 60


@dataclass(slots=True)
class Rollout:
    """One reload. `why` and `detail` say what broke it: a line, and a traceback or last words."""

    generation: int
    former: int
    phase: Phase = Phase.QUEUED
    why: str = ""
    detail: str = ""
    tail: deque[str] = field(default_factory=lambda: deque[str](maxlen=_TAIL_LINES))


class Reloads:
    """Drives rollouts, one at a time; one more may wait for its turn, the newest."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.current: Rollout | None = None
        """The latest that had its turn."""
        self._queued: Rollout | None = None
        self.former: int | None = None
        """The generation before this one, whose template is kept alive."""
        self._supervisor = supervisor
        self.last_number = 1
        """Of the newest generation that was ever tried."""
        self._doom: str | None = None

    @property
    def under_way(self) -> bool:
        return self._queued is not None or self._active

    @property
    def _active(self) -> bool:
        return self.current is not None and self.current.phase not in rollout.OVER

    def begin(self) -> Rollout:
        """Ask for a reload. It replaces one that waits, imports or tries its canary; one whose workers roll is ended first."""
        self.last_number += 1
        newer = Rollout(self.last_number, self._supervisor.desired.generation)
        for older in (self.current, self._queued):
            if older is not None:
                self._post(older, Event.NEWER)
        self._queued = newer
        self.look()
        return newer

    def on_trial(self, generation: int) -> bool:
        """Whether it is of a reload that isn't committed."""
        return self.current is not None and self._active and self.current.generation == generation

    def _next(self) -> None:
        """The queued one's turn, when it has come."""
        now = self._queued
        if now is None or self._active or not self._may_begin():
            return
        self._queued, self.current = None, now
        now.former = self._supervisor.desired.generation
        self._post(now, Event.TURN)

    def _may_begin(self) -> bool:
        """Not before the daemon has started; but at once where it can't start without a reload.

        No template, a crash loop, or a lifespan that fails.
        """
        supervisor = self._supervisor
        stuck = supervisor.templates.problem() is not None or self._doom is not None or supervisor.lifespan_fails
        return supervisor.booted or (supervisor.opened and stuck)

    def _import(self, now: Rollout) -> None:
        self._step_said(f"generation {now.generation} imports the service")
        if self._supervisor.start_generation(now.generation) is None:
            self._broke(now, "its template can't be started")

    # -- what happens --

    async def imported(self, generation: Generation) -> None:
        """A template has the service: is it the one of the rollout?"""
        now = self.current
        if now is None or generation.number != now.generation or now.phase is not Phase.IMPORTING:
            return
        error = await self._supervisor.ensure_broker(generation)
        if error is not None:
            self._broke(now, error)
        else:
            self._post(now, Event.IMPORTED)

    def import_failed(self, generation: Generation, failure: ImportFailure) -> None:
        now = self.current
        if now is not None and generation.number == now.generation:
            self._broke(now, failure.line, failure.traceback or "\n".join(generation.tail))

    def template_gone(self, generation: Generation) -> None:
        now = self.current
        if now is not None and generation.number == now.generation:
            self._broke(now, "its template ended", "\n".join(generation.tail))

    def overhear(self, generation: int, line: str) -> None:
        """A child of that generation printed a line."""
        if self.current is not None and self.current.generation == generation and self._active:
            record = log_records.parse(line)
            self.current.tail.append(line if record is None else f"{record.level}: {record.logger}: {record.message}")

    def child_ended(self, instance: Instance, ended: Exit, how: str) -> bool:
        """A child of the rollout's generation ended. True: that is the rollout's business, the restart policy doesn't count it."""
        now = self.current
        if now is None or not self._active or instance.generation != now.generation:
            return False
        canary = now.phase is Phase.TRYING
        if ended.asked or not (canary or plan.is_bad(ended)):
            return False
        after = "before it was ready" if ended.ready_for_s is None else f"{ended.ready_for_s:.1f} s after it was ready"
        self._broke(now, f"{instance.slot} of the new code ended {after}: {how}", "\n".join(now.tail))
        return True

    def look(self) -> None:
        """See how far it is; called at every reconciliation."""
        self._next()
        now = self.current
        if now is None:
            return
        supervisor = self._supervisor
        match now.phase:
            case Phase.TRYING if self._canary_proven(now):
                self._post(now, Event.PROVEN)
            case Phase.ROLLING:
                ready = {s.slot for s in self._staying(now.generation, Role.WORKER)}
                if all(slot in ready for slot in plan.worker_slots(supervisor.desired.workers)):
                    self._post(now, Event.REPLACED)
            case Phase.SWITCHING if self._staying(now.generation, Role.SCHEDULER):
                self._post(now, Event.SWITCHED)
            case _:
                return

    def _canary_proven(self, now: Rollout) -> bool:
        supervisor = self._supervisor
        at = supervisor.loop.time()
        return any(
            instance.child is not None
            and instance.child.ready_at is not None
            and at - instance.child.ready_at >= supervisor.settings.canary_s
            and instance.child.heart.age_s(at) < max(2.0, supervisor.settings.canary_s)
            for instance in self._staying(now.generation, Role.WORKER)
        )

    def _staying(self, generation: int, role: Role) -> list[Instance]:
        return [
            instance
            for instance in self._supervisor.instances
            if instance.generation == generation
            and instance.role is role
            and instance.slot != plan.QUARANTINE
            and instance.leave_by is None
            and instance.life.state in slots.SERVING
        ]

    # -- what is done --

    def _broke(self, now: Rollout, why: str, detail: str = "") -> None:
        if now.phase not in rollout.OVER:
            now.why, now.detail = why, detail
            self._post(now, Event.BROKE)

    def _post(self, now: Rollout, event: Event) -> None:
        now.phase, action = rollout.step(now.phase, event)
        supervisor = self._supervisor
        match action:
            case Action.IMPORT:
                self._import(now)
            case Action.TRY:
                supervisor.edit(canary=now.generation)
                self._step_said(f"generation {now.generation} is imported; its first worker starts")
            case Action.ROLL:
                supervisor.edit(canary=None, generation=now.generation, stand_in=None)
                self._step_said(f"generation {now.generation}: its first worker is stable; the others follow")
            case Action.SWITCH:
                supervisor.edit(scheduler_generation=now.generation)
                self._step_said(f"generation {now.generation}: every worker is replaced; its scheduler takes over")
            case Action.COMMIT:
                self._commit(now)
            case Action.ROLL_BACK:
                self._roll_back(now)
            case Action.LEAVE:
                self._leave(now)
            case None:
                return
        supervisor.wake()

    def _commit(self, now: Rollout) -> None:
        supervisor = self._supervisor
        supervisor.exits.record = plan.Record()
        self._doom = None
        for generation in list(supervisor.generations.values()):
            if generation.number not in (now.generation, now.former):
                generation.retire()
            elif generation.phase is TemplatePhase.GONE:
                supervisor.generations.pop(generation.number)
        self.former = now.former
        supervisor.counters.reloads["ok"] += 1
        self._step_said(f"generation {now.generation} serves")

    def _roll_back(self, now: Rollout) -> None:
        supervisor = self._supervisor
        if not supervisor.desired.stopping:
            supervisor.log.fault(f"reload failed, generation {now.former} goes on: {now.why}")
        supervisor.edit(canary=None, generation=now.former, scheduler_generation=now.former)
        for instance in supervisor.instances:
            if instance.generation == now.former and instance.life.state in slots.SERVING:
                instance.leave_by = None
                instance.reason = None
        supervisor.counters.reloads["failed"] += 1
        failed = supervisor.generations.get(now.generation)
        if failed is not None:
            failed.retire()
        supervisor.on_event("reload_step", {"generation": now.generation, "step": f"failed: {now.why}", "ok": False})
        if self._doom is not None and self._queued is None:
            doom, self._doom = self._doom, None
            supervisor.exits.doomed(doom)

    def _leave(self, now: Rollout) -> None:
        supervisor = self._supervisor
        why = "a newer reload was asked for" if now.phase is Phase.SUPERSEDED else now.why
        supervisor.log.note(f"reload: generation {now.generation} is given up: {why}")
        if now is self._queued:
            self._queued = None
        if supervisor.desired.canary == now.generation:
            supervisor.edit(canary=None)
        template = supervisor.generations.get(now.generation)
        if template is not None:
            template.retire()
        supervisor.counters.reloads["superseded" if now.phase is Phase.SUPERSEDED else "failed"] += 1
        supervisor.on_event("reload_step", {"generation": now.generation, "step": f"given up: {why}", "ok": False})

    def fall_back(self, why: str) -> bool:
        """The generation is a crash loop: go back to the former one. False: there is none."""
        supervisor = self._supervisor
        if self.under_way:
            # The way out may be on its way.
            self._doom = why
            return True
        former = None if self.former is None else supervisor.generations.get(self.former)
        bad = supervisor.desired.generation
        if former is None or not former.preload or former.phase is not TemplatePhase.READY or former.number == bad:
            return False
        supervisor.log.fault(f"{why}; falling back to generation {former.number}")
        supervisor.on_event("reload_step", {"generation": former.number, "step": f"falling back: {why}", "ok": False})
        # Its definitions are to win over those of the newer code.
        former.made_ms = supervisor.kernel.wall_ms()
        self.former = None
        supervisor.exits.record = plan.Record()
        supervisor.edit(generation=former.number, scheduler_generation=former.number)
        supervisor.generations[bad].retire()
        return True

    def abort(self, why: str) -> None:
        """End the one under way and the one that waits; the old generation goes on."""
        for one in (self._queued, self.current):
            if one is not None:
                self._broke(one, why)

    def _step_said(self, text: str) -> None:
        assert self.current is not None
        self._supervisor.log.note(f"reload: {text}")
        self._supervisor.on_event("reload_step", {"generation": self.current.generation, "step": text, "ok": True})

    # -- how far it is --

    def progress(self, now: Rollout) -> Progress:
        """For the operation of a rollout."""
        supervisor = self._supervisor
        number = now.generation
        match now.phase:
            case Phase.QUEUED:
                what = "the reload under way" if self._active else "the daemon's start"
                return Progress(f"generation {number}: waits for the end of {what}")
            case Phase.SUPERSEDED:
                data = {"generation": supervisor.desired.generation, "error": "superseded", "traceback": ""}
                return Progress("superseded by a newer reload", done=True, ok=False, data=data)
            case Phase.IMPORTING:
                return Progress(f"generation {number}: importing the service")
            case Phase.TRYING:
                ready = self._staying(number, Role.WORKER)
                wait = f"is ready, and must stay so for {supervisor.settings.canary_s:g} s" if ready else "starts"
                return Progress(f"generation {number}: its first worker {wait}")
            case Phase.ROLLING:
                done = len({instance.slot for instance in self._staying(number, Role.WORKER)})
                return Progress(f"generation {number}: {done} of {supervisor.desired.workers} workers replaced")
            case Phase.SWITCHING:
                return Progress(f"generation {number}: its scheduler takes over")
            case Phase.COMMITTED if supervisor.desired.generation != number:
                text = f"reloaded: generation {number}, which generation {supervisor.desired.generation} has replaced since"
                return Progress(text, done=True, data={"generation": supervisor.desired.generation})
            case Phase.COMMITTED:
                old = [s for s in supervisor.instances if s.generation != number and s.life.state is not State.EXITED]
                if old and not supervisor.desired.stopping:
                    left = oldest_jobs(old, supervisor.loop.time(), ages=False)
                    return Progress(
                        f"generation {number} serves, the new code is live; old children left: {len(old)}, {left}"
                    )
                return Progress(f"reloaded: generation {number}", done=True, data={"generation": number})
            case Phase.FAILED:
                detail = f"\n{now.detail.rstrip()}" if now.detail.strip() else ""
                return Progress(
                    f"reload failed, generation {now.former} goes on: {now.why}{detail}",
                    done=True,
                    ok=False,
                    data={"generation": now.former, "error": now.why, "traceback": now.detail},
                )
