"""Handle the end of a child: kill its session, report its jobs, decide what becomes of its slot."""

from __future__ import annotations

import asyncio

from upnext.control.exits import ExitCode
from upnextd.rules import oom as oom_rules
from upnextd.rules import plan
from upnextd.rules.plan import Exit, Role
from upnextd.rules.slots import Event
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log, now_iso
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.boot_wait import BootWait
from upnextd.supervisor.broker_watch import BrokerWatch
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import Death, LastExit, notice
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.instances import Instance, SchedulerStatus, SlotHistory
from upnextd.supervisor.messages import ChildMessages
from upnextd.supervisor.reloads import Reloads

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
    """Collect children that ended. One task for each, owned by the daemon."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        messages: ChildMessages,
        reloads: Reloads,
        boot_wait: BootWait,
        broker_watch: BrokerWatch,
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._messages = messages
        self._reloads = reloads
        self._boot_wait = boot_wait
        self._broker_watch = broker_watch
        self._kernel = kernel
        self._loop = loop
        self._log = log
        self._rng = self._kernel.random()
        self._oom_kills = oom_rules.OomKills(self._kernel.oom_kills())

    def read_oom_kills(self, now: float) -> None:
        """Read the kernel's counter; at every tick, so that an old kill explains no new death."""
        self._oom_kills = oom_rules.read(self._oom_kills, self._kernel.oom_kills(), now)

    async def handle(self, instance: Instance) -> None:
        """Take the child of an instance through its end: no process of its session may run on before its jobs are reported."""
        child = instance.child
        if child is None:
            self._decide(instance, Exit(blameless=True, role=instance.role), "it could not be forked")
            return
        status = await self._collect(child)
        now = self._loop.time()
        running = child.page.running(now)
        death = self._death(instance, child, status)
        if instance.role is Role.WORKER:
            detail = (child.stacks + child.new_stacks())[-16384:]
            consumers = child.page.consumers()
            crash = next((consumer for consumer in consumers if consumer), "")
            suspects = sum(map(len, running))
            # One that runs in quarantine runs alone: it is to blame, and not the one before, whose end was on its way.
            alone = instance.slot == plan.QUARANTINE and suspects > 0
            for consumer, started, last in zip(consumers, running, child.page.ended(now), strict=True):
                if consumer:
                    died = notice(consumer, death, started, detail, crash, suspects, () if alone else last)
                    self._fleet.pending_notices.add(died)
        elif instance.role is Role.SCHEDULER and instance.generation == self._fleet.desired.scheduler_generation:
            self._fleet.scheduler_status = SchedulerStatus()
        self._record_exit(instance, child, death, [job.job_id for jobs in running for job in jobs])
        ended = instance.as_exit(child, now)
        child.close(writers_gone=True)
        instance.child = None
        self._messages.send_alive_if_changed()
        self._messages.send_notices()
        failure = child.boot_failure
        if failure is not None and not self._fleet.desired.stopping:
            self._fleet.start_failed(instance, failure[1])
            if child.broker_away and self._boot_wait.goes_on():
                self._boot_wait.report("the broker", failure[1])
            elif child.lifespan_failed and not self._fleet.rollouts.on_trial(instance.generation):
                self._fleet.lifespan_fails = True
                self._boot_wait.report("what the service sets up", failure[1])
            elif not self._fleet.booted and not self._fleet.ready_workers():
                self._duties.fail(
                    ExitCode(failure[0]) if failure[0] != ExitCode.FAILED else ExitCode.CRASH_LOOP, failure[1]
                )
            elif child.broker_away:
                # One line for all that can't start while it is away.
                self._broker_watch.missed(now)
            else:
                self._log.fault(f"{instance.slot} can't start: {failure[1]}")
        self._decide(instance, ended, failure[1] if failure is not None else death.cause)

    async def _collect(self, child: Child) -> ExitStatus | None:
        """Take in its last messages, kill its session, reap it. None: there never was a process, or how it ended is not known."""
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
        loop = self._loop
        deadline = loop.time() + _ADOPTION_S
        poll_s = _ADOPTION_FIRST_POLL_S
        while True:
            try:
                return self._kernel.reap(child.pidfd)
            except ChildProcessError:
                if self._kernel.is_reaped(child.pidfd) or loop.time() > deadline:
                    return None
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 2, _ADOPTION_LONGEST_POLL_S)

    async def _kill_session(self, child: Child, session: int) -> int:
        """-> how many of it lived. Its members are found by reading /proc: without a free descriptor, that waits for one."""
        log, loop = self._log, self._loop
        begun: float | None = None
        while True:
            try:
                return self._kernel.kill_session(session)
            except OSError as error:
                if begun is None:
                    begun = loop.time()
                    log.fault(f"{child.slot}: can't look for what it left: {error.strerror or error}")
                elif loop.time() - begun > _NO_DESCRIPTOR_LIMIT_S:
                    log.fault(f"{child.slot}: what it left, if anything, goes on; its jobs run again")
                    return 0
                await asyncio.sleep(_NO_DESCRIPTOR_S)

    def give_up(self, instance: Instance) -> None:
        """Stop handling an end that takes longer than anything it waits for: the slot goes on without."""
        if instance.exit_task is not None:
            instance.exit_task.cancel()
        self._log.fault(f"{instance.slot}: handling the end of its child took too long: given up")
        child, instance.child = instance.child, None
        if child is not None:
            child.close(writers_gone=False)

    def _death(self, instance: Instance, child: Child, status: ExitStatus | None) -> Death:
        oom = False
        ours = child.asked or child.hung or child.killed
        if status is not None and oom_rules.suspicious(status.signal, ours=ours):
            self.read_oom_kills(self._loop.time())
            self._oom_kills, oom = oom_rules.claim(self._oom_kills)
        return Death(status, asked=child.asked, hung=child.hung, oom=oom, reason=instance.reason)

    def _record_exit(self, instance: Instance, child: Child, death: Death, running: list[str]) -> None:
        status = death.status
        history = self._fleet.history.setdefault(instance.slot, SlotHistory())
        history.last_exit = LastExit(
            death.shown_cause, status.code if status else None, status.signal if status else None, now_iso()
        )
        not_needed = instance.slot == plan.QUARANTINE and child.asked
        replaced = not self._fleet.desired.stopping and not not_needed
        history.restarts += replaced
        self._fleet.counters.child_ended(str(instance.role), death.shown_cause, child.page.meters(), replaced=replaced)
        killed = sorted({*child.abandoned, *running})
        had = f"; jobs that had started: {', '.join(killed)}" if killed else ""
        if not child.asked or killed:
            self._log.caution(f"{instance.slot}[{child.pid}] ended: {death.cause}{had}")
        if child.asked and not child.hung and self._fleet.desired.stopping:
            self._fleet.ending.killed_jobs += killed
        self._duties.emit(
            "child_exited",
            {
                "slot": instance.slot,
                "pid": child.pid,
                "cause": death.cause,
                "jobs": killed,
                "asked": child.asked and not killed,
            },
        )

    def _decide(self, instance: Instance, ended: Exit, how: str) -> None:
        desired = self._fleet.desired
        wanted = (desired.generation, desired.scheduler_generation, desired.api_generation, desired.stand_in)
        if self._reloads.child_ended(instance, ended, how) or instance.generation not in wanted:
            # It is not replaced by its like: the plan drops the place.
            self._duties.post(instance, Event.AGAIN)
            return
        verdict, self._fleet.record = plan.judge(
            self._fleet.record,
            instance.slot,
            ended,
            self._fleet.desired.workers,
            self._loop.time(),
            self._rng,
            others_work=self._others_work(instance, instance.generation),
        )
        if verdict.looping:
            self._crash_loop(instance, ended, verdict, how)
        else:
            self._duties.post(instance, verdict.event, verdict.until)

    def _others_work(self, instance: Instance, generation: int | None = None) -> bool:
        """Whether there are others to be spared. An Api's processes don't make up for workers that can't start."""
        apis = instance.role is not Role.WORKER
        return self._fleet.any_works(self._loop.time(), generation, apis=apis)

    def _crash_loop(self, instance: Instance, ended: Exit, verdict: plan.Verdict, how: str) -> None:
        """Back to the former code, or the end; but where a worker works, the slot is tried again and again, and no job is cut off."""
        why = (
            f"crash loop: {self._fleet.record.spent(ended.budget)} {instance.role}s ended within {plan.CRASH_WINDOW_S:g} s"
            f" without having done anything ({ended.cause}; the last: {how})"
        )
        if verdict.event is Event.GIVE_UP:
            if self._reloads.fall_back(why):
                self._duties.post(instance, Event.GIVE_UP)
                return
            if not self._others_work(instance):
                self._duties.post(instance, Event.GIVE_UP)
                self._duties.fail(ExitCode.CRASH_LOOP, why)
                return
            verdict = verdict.softened()
        self._log.fault(f"{why}; the others go on, {instance.slot} is tried again later")
        self._duties.post(instance, verdict.event, verdict.until)
