"""What follows a child's end: its session is killed, its jobs are reported, its slot is judged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from upnext.control.exits import ExitCode
from upnextd.rules import oom as oom_rules
from upnextd.rules import plan, slots
from upnextd.rules.plan import Exit, Role
from upnextd.rules.slots import Event, State
from upnextd.shared.logs import now_iso
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import Death, LastExit, notice
from upnextd.supervisor.instances import Instance, SchedulerStatus, SlotHistory

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor

_SESSION_POLL_S = 0.002
_SESSION_POLLS = 500
_NO_DESCRIPTOR_S = 0.25
_NO_DESCRIPTOR_LIMIT_S = 20.0
"""How long a child's jobs are kept from others because what it left can't be looked for."""
_ADOPTION_S = 5.0
"""How long a dead child is waited for that isn't ours yet."""
_ADOPTION_FIRST_POLL_S = 0.0005
_ADOPTION_LONGEST_POLL_S = 0.05


class ExitHandler:
    """Buries children. `record` is what the restart policy remembers."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.record = plan.Record()
        self._supervisor = supervisor
        self._rng = supervisor.kernel.random()
        self._oom_kills = oom_rules.OomKills(supervisor.kernel.oom_kills())

    def look_for_oom_kills(self, now: float) -> None:
        """At every tick, so that what the kernel killed long ago explains no death of today."""
        self._oom_kills = oom_rules.read(self._oom_kills, self._supervisor.kernel.oom_kills(), now)

    async def handle(self, instance: Instance) -> None:
        """A child is gone: nothing of its session may run on; then its jobs are reported, then its slot is judged."""
        supervisor = self._supervisor
        child = instance.child
        if child is None:
            self._judge(instance, Exit(blameless=True, role=instance.role), "it could not be forked")
            return
        status = await self._collect(child)
        now = supervisor.loop.time()
        running = child.page.running(now)
        death = self._death(instance, child, status)
        if instance.role is Role.WORKER:
            detail = (child.stacks + child.new_stacks())[-16384:]
            consumers = child.page.consumers()
            crash = next((consumer for consumer in consumers if consumer), "")
            suspects = sum(map(len, running))
            for consumer, started in zip(consumers, running, strict=True):
                if consumer:
                    supervisor.messages.pending_notices.add(notice(consumer, death, started, detail, crash, suspects))
        elif instance.generation == supervisor.desired.scheduler_generation:
            supervisor.scheduler_status = SchedulerStatus()
        self._remember(instance, child, death, [job.job_id for jobs in running for job in jobs])
        ended = _exit_of(instance, child, now)
        child.close(writers_gone=True)
        instance.child = None
        supervisor.messages.tell_alive()
        supervisor.messages.tell_notices()
        failure = child.boot_failure
        if failure is not None and not supervisor.desired.stopping:
            if child.broker_away and supervisor.waits_for_broker():
                supervisor.still_waiting("the broker", failure[1])
            elif child.lifespan_failed and not supervisor.reloads.on_trial(instance.generation):
                supervisor.lifespan_fails = True
                supervisor.still_waiting("what the service sets up", failure[1])
            elif not supervisor.booted and not supervisor.ready_workers():
                supervisor.fail(
                    ExitCode(failure[0]) if failure[0] != ExitCode.FAILED else ExitCode.CRASH_LOOP, failure[1]
                )
            else:
                supervisor.log.fault(f"{instance.slot} can't start: {failure[1]}")
        self._judge(instance, ended, failure[1] if failure is not None else death.cause)

    async def _collect(self, child: Child) -> ExitStatus | None:
        """Hear its last words, kill its session, reap it. None: there never was a process, or how it ended is not known."""
        child.channel.pump()
        if child.pid is None or child.pidfd < 0:
            return None
        # Before the reaping: until then the session's number can't be another's.
        for _ in range(_SESSION_POLLS):
            if await self._kill_session(child, child.pid) == 0:
                break
            await asyncio.sleep(_SESSION_POLL_S)
        return await self._reap(child)

    async def _reap(self, child: Child) -> ExitStatus | None:
        """Its exit status. Only a parent gets it, and that we become when the process that forked it has ended: it may die before.

        None: it was reaped with the orphans, or its parent hangs; then it will be reaped with the orphans.
        """
        loop = self._supervisor.loop
        deadline = loop.time() + _ADOPTION_S
        poll_s = _ADOPTION_FIRST_POLL_S
        while True:
            try:
                return self._supervisor.kernel.reap(child.pidfd)
            except ChildProcessError:
                if self._supervisor.kernel.is_reaped(child.pidfd) or loop.time() > deadline:
                    return None
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 2, _ADOPTION_LONGEST_POLL_S)

    async def _kill_session(self, child: Child, session: int) -> int:
        """-> how many of it lived. Its members are found by reading /proc: without a free descriptor, that waits for one."""
        log, loop = self._supervisor.log, self._supervisor.loop
        begun: float | None = None
        while True:
            try:
                return self._supervisor.kernel.kill_session(session)
            except OSError as error:
                if begun is None:
                    begun = loop.time()
                    log.fault(f"{child.slot}: can't look for what it left: {error.strerror or error}")
                elif loop.time() - begun > _NO_DESCRIPTOR_LIMIT_S:
                    log.fault(f"{child.slot}: what it left, if anything, goes on; its jobs run again")
                    return 0
                await asyncio.sleep(_NO_DESCRIPTOR_S)

    def forsake(self, instance: Instance) -> None:
        """Its burial takes longer than anything that it waits for: the slot goes on without."""
        if instance.burial is not None:
            instance.burial.cancel()
        self._supervisor.log.fault(f"{instance.slot}: the burial of its child is given up")
        child, instance.child = instance.child, None
        if child is not None:
            child.close(writers_gone=False)

    def _death(self, instance: Instance, child: Child, status: ExitStatus | None) -> Death:
        oom = False
        ours = child.asked or child.hung or child.killed
        if status is not None and oom_rules.suspicious(status.signal, ours=ours):
            self.look_for_oom_kills(self._supervisor.loop.time())
            self._oom_kills, oom = oom_rules.claim(self._oom_kills)
        return Death(status, asked=child.asked, hung=child.hung, oom=oom, reason=instance.reason)

    def _remember(self, instance: Instance, child: Child, death: Death, running: list[str]) -> None:
        supervisor = self._supervisor
        status = death.status
        history = supervisor.history.setdefault(instance.slot, SlotHistory())
        history.last_exit = LastExit(
            death.shown_cause, status.code if status else None, status.signal if status else None, now_iso()
        )
        not_needed = instance.slot == plan.QUARANTINE and child.asked
        replaced = not supervisor.desired.stopping and not not_needed
        history.restarts += replaced
        supervisor.counters.child_ended(str(instance.role), death.shown_cause, child.page.meters(), replaced=replaced)
        killed = sorted({*child.abandoned, *running})
        had = f"; jobs that had started: {', '.join(killed)}" if killed else ""
        if not child.asked or killed:
            supervisor.log.caution(f"{instance.slot}[{child.pid}] ended: {death.cause}{had}")
        if child.asked and not child.hung and supervisor.desired.stopping:
            supervisor.ending.killed_jobs += killed
        supervisor.on_event(
            "child_exited", {"slot": instance.slot, "pid": child.pid, "cause": death.cause, "jobs": killed}
        )

    def _judge(self, instance: Instance, ended: Exit, how: str) -> None:
        supervisor = self._supervisor
        desired = supervisor.desired
        wanted = (desired.generation, desired.scheduler_generation, desired.stand_in)
        if supervisor.reloads.child_ended(instance, ended, how) or instance.generation not in wanted:
            # It is not replaced by its like: the plan drops the place.
            supervisor.post(instance, Event.AGAIN)
            return
        verdict, self.record = plan.judge(
            self.record,
            instance.slot,
            ended,
            supervisor.desired.workers,
            supervisor.loop.time(),
            self._rng,
            others_work=self._any_works(instance.generation),
        )
        if verdict.looping:
            self._crash_loop(instance, ended, verdict)
        else:
            supervisor.post(instance, verdict.event, verdict.until)

    def _crash_loop(self, instance: Instance, ended: Exit, verdict: plan.Verdict) -> None:
        """Back to the former code, or the end; but where a worker works, the slot is tried again and again, and no job is cut off."""
        supervisor = self._supervisor
        why = (
            f"crash loop: {self.record.spent(ended.budget)} {instance.role}s ended within {plan.CRASH_WINDOW_S:g} s"
            f" without having done anything ({ended.cause})"
        )
        if verdict.event is Event.GIVE_UP:
            if supervisor.reloads.fall_back(why):
                supervisor.post(instance, Event.GIVE_UP)
                return
            if not self._any_works():
                supervisor.post(instance, Event.GIVE_UP)
                supervisor.fail(ExitCode.CRASH_LOOP, why)
                return
            verdict = verdict.softened()
        supervisor.log.fault(f"{why}; the others go on, {instance.slot} is tried again later")
        supervisor.post(instance, verdict.event, verdict.until)

    def doomed(self, why: str) -> None:
        """The reload that was hoped to end a crash loop has failed."""
        supervisor = self._supervisor
        if not self._any_works():
            supervisor.fail(ExitCode.CRASH_LOOP, why)
            return
        for instance in supervisor.instances:
            if instance.life.state is State.FAILED:
                supervisor.post(instance, Event.CLEAR)

    def _any_works(self, generation: int | None = None) -> bool:
        """Whether a worker that did something serves, or one runs a job; of this generation, those that are to stay only."""
        now = self._supervisor.loop.time()
        for instance in self._supervisor.instances:
            if instance.role is not Role.WORKER or instance.child is None:
                continue
            if generation is not None and (instance.generation != generation or instance.leave_by is not None):
                continue
            serves = instance.life.state in slots.SERVING and plan.is_proven(_exit_of(instance, instance.child, now))
            if serves or (instance.life.state in slots.LIVING and instance.child.page.busy()):
                return True
        return False


def _exit_of(instance: Instance, child: Child, now: float) -> Exit:
    cause = plan.Cause.DEATH
    if child.died_in_fork:
        cause = plan.Cause.FORK
    elif child.boot_failure is not None:
        cause = plan.Cause.START
    return Exit(
        asked=child.asked,
        ran_job=child.page.ran_job,
        ready_for_s=None if child.ready_at is None else now - child.ready_at,
        # A quarantine child is there to die of what it runs. Without a pid there never was a process.
        blameless=instance.slot == plan.QUARANTINE
        or (child.pid is None and not child.died_in_fork)
        or child.lifespan_failed
        or (child.boot_failure is not None and child.boot_failure[0] == ExitCode.UNAVAILABLE),
        role=instance.role,
        cause=cause,
    )
