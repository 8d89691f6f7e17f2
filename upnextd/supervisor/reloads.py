"""Reloads: a new generation beside the old one, and back when it is no good. Also the fall-back out of a crash loop.

The old generation is untouched until the commit: its template lives, its children that were asked to leave can be asked to stay.
After the commit its template is kept, so that a crash loop of the new code can be answered with the old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from upnext.control.exits import ExitCode
from upnext.control.slot_names import api_slots
from upnext.errors import ListenError
from upnextd.rules import plan, rollout, slots
from upnextd.rules.plan import Exit, Role
from upnextd.rules.rollout import Action, Event, Phase
from upnextd.rules.slots import Event as SlotEvent
from upnextd.rules.slots import State
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet, Rollout, Rollouts
from upnextd.supervisor.generations import Generation, ImportFailure
from upnextd.supervisor.generations import Phase as TemplatePhase
from upnextd.supervisor.instances import Instance, oldest_jobs
from upnextd.supervisor.operations import Progress


class Reloads:
    """Drive rollouts: one at a time; one more may wait for its turn, the newest."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        ensure_broker: Callable[[Generation], Awaitable[Exception | None]],
        start_template: Callable[[int], bool],
        canary_s: float,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._kernel = kernel
        self._loop = loop
        self._log = log
        self._ensure_broker = ensure_broker
        self._start_template = start_template
        self._canary_s = canary_s
        self._crash_loop: str | None = None
        """The crash loop that the reload under way is hoped to end: a line for people."""

    def begin(self) -> Rollout:
        """Ask for a reload. It replaces one that waits, imports or tries its canary; one whose workers roll is ended first."""
        self._rollouts.last_number += 1
        newer = Rollout(self._rollouts.last_number, self._fleet.desired.generation)
        for older in (self._rollouts.current, self._rollouts.queued):
            if older is not None:
                self._post(older, Event.NEWER)
        self._rollouts.queued = newer
        self.check()
        return newer

    def _next(self) -> None:
        """The queued one's turn, when it has come."""
        now = self._rollouts.queued
        if now is None or self._rollouts.active or not self._may_begin():
            return
        self._rollouts.queued, self._rollouts.current = None, now
        now.former = self._fleet.desired.generation
        self._post(now, Event.TURN)

    def _may_begin(self) -> bool:
        """Not before the daemon has started; but at once where it can't start without a reload.

        No template, a crash loop, or a lifespan that fails.
        """
        fleet = self._fleet
        stuck = fleet.template_problem() is not None or self._crash_loop is not None or fleet.lifespan_fails
        return fleet.booted or (fleet.is_open and stuck)

    def _import(self, now: Rollout) -> None:
        self._report_step(f"generation {now.generation} imports the service")
        if not self._start_template(now.generation):
            self._broke(now, "its template can't be started")

    @property
    def _rollouts(self) -> Rollouts:
        return self._fleet.rollouts

    # -- what happens --

    async def imported(self, generation: Generation) -> None:
        """Go on when the template of the rollout has imported the service."""
        now = self._rollouts.current
        if now is None or generation.number != now.generation or now.phase is not Phase.IMPORTING:
            return
        error = await self._ensure_broker(generation) or self._listen(generation)
        if error is not None:
            self._broke(now, str(error))
        else:
            self._post(now, Event.IMPORTED)

    def _listen(self, generation: Generation) -> str | None:
        """Bind what the Apis of this generation need beyond what there is. -> why that failed."""
        try:
            self._fleet.listeners.bind(generation.apis)
        except ListenError as error:
            return str(error)
        return None

    def import_failed(self, generation: Generation, failure: ImportFailure) -> None:
        now = self._rollouts.current
        if now is not None and generation.number == now.generation:
            self._broke(now, failure.line, failure.traceback or "\n".join(generation.tail))

    def template_gone(self, generation: Generation) -> None:
        now = self._rollouts.current
        if now is not None and generation.number == now.generation:
            self._broke(now, "its template ended", "\n".join(generation.tail))

    def child_ended(self, instance: Instance, ended: Exit, how: str) -> bool:
        """Break the rollout by the end of a child of it. -> True when it did: the restart policy doesn't count that end."""
        now = self._rollouts.current
        if now is None or not self._rollouts.active or instance.generation != now.generation:
            return False
        canary = now.phase is Phase.TRYING
        if ended.asked or not (canary or plan.is_bad(ended)):
            return False
        after = "before it was ready" if ended.ready_for_s is None else f"{ended.ready_for_s:.1f} s after it was ready"
        self._broke(now, f"{instance.slot} of the new code ended {after}: {how}", "\n".join(now.tail))
        return True

    def check(self) -> None:
        """Post what the fleet shows; at every reconciliation."""
        self._next()
        now = self._rollouts.current
        if now is None:
            return
        match now.phase:
            case Phase.TRYING if self._canary_proven(now) and self._apis_prepared(now):
                self._post(now, Event.PROVEN)
            case Phase.ROLLING:
                ready = {s.slot for s in self._fleet.staying(now.generation, Role.WORKER)}
                if all(slot in ready for slot in self._fleet.desired.worker_slots):
                    self._post(now, Event.REPLACED)
            case Phase.SETTLING if not self._old_workers_fetch(now):
                self._post(now, Event.SETTLED)
            case Phase.SWITCHING_APIS if self._fleet.ready_apis(now.generation):
                self._post(now, Event.APIS_SWITCHED)
            case Phase.SWITCHING if self._fleet.staying(now.generation, Role.SCHEDULER):
                self._post(now, Event.SWITCHED)
            case _:
                return

    def _canary_proven(self, now: Rollout) -> bool:
        if not self._fleet.desired.canary_has_workers:
            return True
        at = self._loop.time()
        return any(
            instance.child is not None
            and instance.child.ready_at is not None
            and at - instance.child.ready_at >= self._canary_s
            and instance.child.heart.age_s(at) < max(2.0, self._canary_s)
            for instance in self._fleet.staying(now.generation, Role.WORKER)
        )

    def _apis_prepared(self, now: Rollout) -> bool:
        """Whether one process of each of its Apis has set up everything."""
        ready = {instance.slot for instance in self._fleet.staying(now.generation, Role.API)}
        return ready.issuperset(api_slots([(name, 1) for name in self._fleet.desired.next_apis]))

    def _old_workers_fetch(self, now: Rollout) -> bool:
        """Whether some may: where requests are served, no new one may meet a worker of the old code."""
        if not self._fleet.desired.apis and not self._apis_of(now.generation):
            return False
        return any(
            instance.child is not None and instance.child.fetches and instance.life.state in slots.SERVING
            for instance in self._fleet.instances
            if instance.role is Role.WORKER and instance.generation != now.generation
        )

    def _apis_of(self, generation: int) -> tuple[tuple[str, int], ...]:
        """The Apis of a generation, each with the number of its processes."""
        found = self._fleet.generations.get(generation)
        return self._fleet.listeners.wanted(found.apis) if found is not None else ()

    # -- what is done --

    def _want_only(self, generation: int) -> None:
        """Want every child of this generation, and none of another."""
        self._duties.edit(
            canary=None,
            generation=generation,
            has_workers=self._fleet.has_workers(generation),
            scheduler_generation=generation,
            api_generation=generation,
            apis=self._apis_of(generation),
            next_apis=(),
        )

    def _broke(self, now: Rollout, why: str, detail: str = "") -> None:
        if now.phase not in rollout.OVER:
            now.why, now.detail = why, detail
            self._post(now, Event.BROKE)

    def _post(self, now: Rollout, event: Event) -> None:
        now.phase, action = rollout.step(now.phase, event)
        match action:
            case Action.IMPORT:
                self._import(now)
            case Action.TRY:
                coming = tuple(name for name, _ in self._apis_of(now.generation))
                has_workers = self._fleet.has_workers(now.generation)
                self._duties.edit(canary=now.generation, canary_has_workers=has_workers, next_apis=coming)
                self._report_step(f"generation {now.generation} is imported; its first worker starts")
            case Action.ROLL:
                has_workers = self._fleet.has_workers(now.generation)
                self._duties.edit(canary=None, generation=now.generation, has_workers=has_workers, stand_in=None)
                self._report_step(f"generation {now.generation}: its first worker is stable; the others follow")
            case Action.SETTLE:
                self._report_step(f"generation {now.generation}: every worker is replaced")
            case Action.SWITCH_APIS:
                apis = self._apis_of(now.generation)
                self._duties.edit(api_generation=now.generation, apis=apis, next_apis=())
                if apis:
                    self._report_step(f"generation {now.generation}: its Apis take over")
            case Action.SWITCH:
                self._duties.edit(scheduler_generation=now.generation)
                self._report_step(f"generation {now.generation}: its scheduler takes over")
            case Action.COMMIT:
                self._commit(now)
            case Action.ROLL_BACK:
                self._roll_back(now)
            case Action.LEAVE:
                self._leave(now)
            case None:
                return
        self._duties.wake()

    def _commit(self, now: Rollout) -> None:
        self._fleet.record = plan.Record()
        self._crash_loop = None
        for generation in list(self._fleet.generations.values()):
            if generation.number not in (now.generation, now.former):
                generation.retire()
            elif generation.phase is TemplatePhase.GONE:
                self._fleet.generations.pop(generation.number)
        self._rollouts.former = now.former
        self._keep_listeners(now.generation, now.former)
        self._fleet.counters.reloads["ok"] += 1
        self._report_step(f"generation {now.generation} serves")

    def _roll_back(self, now: Rollout) -> None:
        if not self._fleet.desired.stopping:
            self._log.fault(f"reload failed, generation {now.former} goes on: {now.why}")
        self._want_only(now.former)
        self._keep_listeners(now.former, self._rollouts.former)
        for instance in self._fleet.instances:
            if instance.generation == now.former and instance.life.state in slots.SERVING:
                instance.leave_by = None
                instance.reason = None
        self._fleet.counters.reloads["failed"] += 1
        failed = self._fleet.generations.get(now.generation)
        if failed is not None:
            failed.retire()
        self._duties.emit("reload_step", {"generation": now.generation, "step": f"failed: {now.why}", "ok": False})
        if self._crash_loop is not None and self._rollouts.queued is None:
            why, self._crash_loop = self._crash_loop, None
            self._end_crash_loop(why)

    def _keep_listeners(self, *generations: int | None) -> None:
        """Close those that none of these generations has an Api for."""
        known = [self._fleet.generations[number] for number in generations if number in self._fleet.generations]
        self._fleet.listeners.keep([api for generation in known for api in generation.apis])

    def _end_crash_loop(self, why: str) -> None:
        """The reload that was hoped to end it has failed: end the daemon, or retry where other workers work."""
        if not self._fleet.any_works(self._loop.time()):
            self._duties.fail(ExitCode.CRASH_LOOP, why)
            return
        for instance in self._fleet.instances:
            if instance.life.state is State.FAILED:
                self._duties.post(instance, SlotEvent.CLEAR)

    def _leave(self, now: Rollout) -> None:
        why = "a newer reload was asked for" if now.phase is Phase.SUPERSEDED else now.why
        self._log.note(f"reload: generation {now.generation} is given up: {why}")
        if now is self._rollouts.queued:
            self._rollouts.queued = None
        if self._fleet.desired.canary == now.generation:
            self._duties.edit(canary=None, next_apis=())
            self._keep_listeners(self._fleet.desired.generation, self._rollouts.former)
        template = self._fleet.generations.get(now.generation)
        if template is not None:
            template.retire()
        self._fleet.counters.reloads["superseded" if now.phase is Phase.SUPERSEDED else "failed"] += 1
        self._duties.emit("reload_step", {"generation": now.generation, "step": f"given up: {why}", "ok": False})

    def fall_back(self, why: str) -> bool:
        """Answer a crash loop by the former generation, or wait for the reload under way. -> False when there is neither."""
        if self._rollouts.under_way:
            # It may be the way out.
            self._crash_loop = why
            return True
        former = None if self._rollouts.former is None else self._fleet.generations.get(self._rollouts.former)
        bad = self._fleet.desired.generation
        if former is None or not former.preload or former.phase is not TemplatePhase.READY or former.number == bad:
            return False
        self._log.fault(f"{why}; falling back to generation {former.number}")
        self._duties.emit("reload_step", {"generation": former.number, "step": f"falling back: {why}", "ok": False})
        # Its definitions are to win over those of the newer code.
        former.made_ms = self._kernel.wall_ms()
        self._rollouts.former = None
        self._fleet.record = plan.Record()
        self._want_only(former.number)
        self._fleet.generations[bad].retire()
        return True

    def abort(self, why: str) -> None:
        """End the one under way and the one that waits; the old generation goes on."""
        for one in (self._rollouts.queued, self._rollouts.current):
            if one is not None:
                self._broke(one, why)

    def _report_step(self, text: str) -> None:
        assert self._rollouts.current is not None
        self._log.note(f"reload: {text}")
        self._duties.emit("reload_step", {"generation": self._rollouts.current.generation, "step": text, "ok": True})

    # -- how far it is --

    def progress(self, now: Rollout) -> Progress:
        """Return how far a rollout is, for its operation."""
        number = now.generation
        match now.phase:
            case Phase.QUEUED:
                what = "the reload under way" if self._rollouts.active else "the daemon's start"
                return Progress(f"generation {number}: waits for the end of {what}")
            case Phase.SUPERSEDED:
                data = {"generation": self._fleet.desired.generation, "error": "superseded", "traceback": ""}
                return Progress("superseded by a newer reload", done=True, ok=False, data=data)
            case Phase.IMPORTING:
                return Progress(f"generation {number}: importing the service")
            case Phase.TRYING:
                ready = self._fleet.staying(number, Role.WORKER)
                wait = f"is ready, and must stay so for {self._canary_s:g} s" if ready else "starts"
                return Progress(f"generation {number}: its first worker {wait}")
            case Phase.ROLLING:
                done = len({instance.slot for instance in self._fleet.staying(number, Role.WORKER)})
                return Progress(
                    f"generation {number}: {done} of {len(self._fleet.desired.worker_slots)} workers replaced"
                )
            case Phase.SETTLING | Phase.SWITCHING_APIS | Phase.SWITCHING:
                return Progress(f"generation {number}: {now.phase.value}")
            case Phase.COMMITTED if self._fleet.desired.generation != number:
                serves = self._fleet.desired.generation
                text = f"reloaded: generation {number}, which generation {serves} has replaced since"
                return Progress(text, done=True, data={"generation": serves})
            case Phase.COMMITTED:
                old = [s for s in self._fleet.instances if s.generation != number and s.life.state is not State.EXITED]
                if old and not self._fleet.desired.stopping:
                    left = oldest_jobs(old, self._loop.time(), ages=False)
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
