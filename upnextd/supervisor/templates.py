"""The lives of templates: how one is started, how long its import may take, when it counts as hung, and what replaces one that ended.

A template that takes the place of another of its generation must have loaded the same code. Else it isn't used: the children go on, and
those that end are replaced from the former generation's template, where there is one, until a reload takes in what is on disk.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from upnext.control.exits import ExitCode
from upnext.errors import BrokerInUseError, ListenError
from upnextd.rules import plan
from upnextd.rules.slots import Event
from upnextd.settings import Settings
from upnextd.shared import process
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.shared.messages import TemplateOrder
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.companions import Companions
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.generations import Declared, Generation, ImportFailure, Phase
from upnextd.supervisor.lateness import Lateness
from upnextd.supervisor.reloads import Reloads
from upnextd.supervisor.spawning import Spawner

RETRY_MOST_S = 60.0
"""The longest pause between two tries to replace a template: each imports the service."""
STALLED_S = 15.0
"""A template that owes the answer to a fork order for longer hangs: in a hook of the service around the fork, say."""
_STACKS_S = 0.5
"""What an import that hangs gets to write its stacks."""


class Templates:
    """Start and replace templates, give up those that hang, and pass on what they report."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        settings: Settings,
        lateness: Lateness,
        reloads: Reloads,
        spawner: Spawner,
        companions: Companions,
        kernel: Kernel,
        loop: asyncio.AbstractEventLoop,
        log: Log,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._settings = settings
        self._lateness = lateness
        self._reloads = reloads
        self._spawner = spawner
        self._companions = companions
        self._kernel = kernel
        self._loop = loop
        self._log = log
        self._declared: dict[int, Declared] = {}
        """generation -> what its first template declared: another one of it has that code, or isn't used."""
        self._failures = 0
        """Replacements in a row that came to nothing."""

    def _accept(self, generation: Generation) -> bool:
        """Check that a template loaded the code of its generation; end it if not. -> whether it did."""
        known = self._fleet.generations
        self._fleet.contents = {number: content for number, content in self._fleet.contents.items() if number in known}
        self._fleet.missing = {number: why for number, why in self._fleet.missing.items() if number in known}
        self._declared = {number: one for number, one in self._declared.items() if number in known}
        first = self._fleet.contents.setdefault(generation.number, generation.content)
        if generation.content == first:
            self._declared[generation.number] = generation.declared
            if self._fleet.missing.pop(generation.number, None) is not None:
                self._log.note(f"generation {generation.number} has a template again")
            self._settle()
            return True
        generation.retire()
        self._known_of(generation)
        self._lack(
            generation.number, "the code on disk is not what it loaded (`upnext ctl reload` takes in what is there)"
        )
        return False

    def _known_of(self, generation: Generation) -> None:
        """Its generation's children live on while it imports, and when it is refused: what they serve stays known."""
        if generation.number in self._declared:
            generation.declared = self._declared[generation.number]

    def replace_lost(self) -> None:
        """Replace those that ended while they could not be replaced."""
        desired = self._fleet.desired
        for number in {desired.generation, desired.scheduler_generation}:
            lost = self._fleet.generations.get(number)
            if lost is not None and lost.phase is Phase.GONE:
                self.replace(lost)

    def replace(self, generation: Generation) -> None:
        """Start another in the place of one that is wanted, at once or after a pause."""
        if generation.retired:
            # What is on disk is something else: that is for a reload to take in.
            return
        if generation.failure is not None:
            self._failures += 1
            self._lack(generation.number, generation.failure.line_for(self._settings.service))
        elif self._loop.time() - generation.started_at > plan.PROVEN_S:
            self._failures = 0
        else:
            self._failures += 1
        pause_s = min(RETRY_MOST_S, 2.0 ** (self._failures - 1)) if self._failures else 0.0
        self._loop.call_later(pause_s, self._start_again, generation.number)

    def _start_again(self, number: int) -> None:
        if not self._fleet.desired.stopping and self._fleet.is_wanted(number) and self.start(number) is None:
            self._loop.call_later(1.0, self._start_again, number)

    def _lack(self, number: int, why: str) -> None:
        if self._fleet.missing.get(number) != why:
            self._fleet.missing[number] = why
            self._settle()
            self._log.fault(self._fleet.template_problem() or f"generation {number} has no template: {why}")
            self._duties.emit("template_missing", {"generation": number, "why": why})

    def _settle(self) -> None:
        """Whether the former generation stands in for the present one."""
        former = self._fleet.rollouts.former
        wanted = (
            former
            if self._fleet.template(former) is not None and self._fleet.desired.generation in self._fleet.missing
            else None
        )
        if wanted != self._fleet.desired.stand_in:
            self._duties.edit(stand_in=wanted)

    def start_first(self) -> None:
        """Start the template of the first generation."""
        self._start_again(self._fleet.desired.generation)

    def start(self, number: int) -> Generation | None:
        """Exec a template; None when the system refuses."""
        settings = self._settings
        order = TemplateOrder(
            supervisor_pid=self._kernel.pid(),
            generation=number,
            service=settings.service,
            name=settings.name,
            only=settings.only,
            preload=settings.preload,
            directory=settings.directory,
            api_listen=settings.api_listen,
        )
        try:
            generation = Generation(
                number,
                order,
                self._companions.child_env,
                self._loop,
                self,
                self.on_line,
                self._kernel,
                preload=settings.preload,
            )
        except OSError as error:
            self._lack(number, f"its process can't be started: {process.why(error)}")
            return None
        generation.due_at = self._loop.time() + settings.import_timeout_s
        self._known_of(generation)
        self._watch(generation)
        self._fleet.generations[number] = generation
        return generation

    def resume(self, state: dict[str, Any]) -> None:
        """Take a template over after an upgrade."""
        generation = Generation.from_state(
            state, self._companions.child_env, self._loop, self, self.on_line, self._kernel
        )
        self._fleet.generations[generation.number] = generation
        if not generation.retired:
            self._declared[generation.number] = generation.declared

    def check(self, now: float) -> None:
        """Kill templates that answer no order; at every tick. Their children live on."""
        self._settle()
        for generation in self._fleet.generations.values():
            if generation.living and generation.phase is Phase.READY and generation.stalled_s(now) > STALLED_S:
                self._log.fault(
                    f"the template[{generation.pid}] has answered no order to fork for {STALLED_S:g} s: it is killed"
                )
                generation.kill()

    def _watch(self, generation: Generation) -> None:
        self._loop.call_at(generation.due_at, self._import_is_due, generation)

    def _import_is_due(self, generation: Generation) -> None:
        """An import that hangs has its stacks written, so that its line is known, and is given up."""
        if generation.phase is not Phase.IMPORTING or not generation.living:
            return
        self._lateness.forgive()
        if self._loop.time() < generation.due_at:
            self._watch(generation)
            return
        self._kernel.signal(generation.pidfd, signal.SIGUSR2)
        self._loop.call_later(_STACKS_S, self._give_up, generation)

    def _give_up(self, generation: Generation) -> None:
        if generation.phase is Phase.IMPORTING:
            limit_s = self._settings.import_timeout_s
            generation.failure = ImportFailure(f"the import was not done within {limit_s:g} s (--import-timeout)")
            generation.kill()

    # -- what a template reports (generations.Listener) --

    def on_line(self, pid: int | None, line: str) -> None:
        """Log a line that a template printed."""
        self._log.child_line("template", pid, line)

    def imported(self, generation: Generation) -> None:
        """Open the daemon by the first import; later ones are reloads, or replace a template."""
        for warning in generation.warnings:
            self._log.caution(warning)
        if not self._accept(generation):
            return
        opening = self._reloads.imported(generation) if self._fleet.is_open else self._open(generation)
        self._duties.own(opening)
        self._duties.wake()

    async def _open(self, generation: Generation) -> None:
        """Start the broker, if one is needed, and let children start."""
        error = await self._companions.ensure_broker(generation)
        if error is not None:
            code = ExitCode.LOCKED if isinstance(error, BrokerInUseError) else ExitCode.UNAVAILABLE
            self._duties.fail(code, str(error))
            return
        try:
            self._fleet.listeners.bind(generation.apis)
        except ListenError as error:
            self._duties.fail(ExitCode.UNAVAILABLE, str(error))
            return
        self._duties.edit(
            apis=self._fleet.listeners.wanted(generation.apis),
            api_generation=generation.number,
            has_workers=self._fleet.has_workers(generation.number),
        )
        for name in sorted(set(self._settings.api_processes) - {api.name for api in generation.apis}):
            self._log.caution(f"--api-processes {name}: the service has no api of that name")
        self._fleet.is_open = True
        self._fleet.opened_at = self._loop.time()
        self._companions.start_beside()
        # It may have ended while the broker started.
        self.replace_lost()
        self._duties.wake()

    def import_failed(self, generation: Generation, failure: ImportFailure) -> None:
        """End the daemon, if it is the first import; else break the reload."""
        if generation.retired:
            # Its import was ended because it is no longer wanted.
            return
        if failure.traceback:
            self._log.line("template", generation.pid, failure.traceback.rstrip())
        line = failure.line_for(self._settings.service)
        if not self._fleet.is_open:
            self._duties.fail(ExitCode.CONFIG, line)
        elif not self._fleet.desired.stopping:
            self._log.fault(line)
            self._reloads.import_failed(generation, failure)

    def forked(self, token: int, pid: int) -> None:
        self._spawner.forked(token, pid)

    def fork_failed(self, token: int, error: str, *, blameless: bool) -> None:
        self._spawner.fork_failed(token, error, blameless=blameless)

    def template_gone(self, generation: Generation, status: ExitStatus) -> None:
        """Give up the forks that it owes, and replace it if it is wanted."""
        for instance in list(self._fleet.instances):
            if instance.generation == generation.number and instance.unborn:
                self._duties.post(instance, Event.FORK_FAILED)
        self._reloads.template_gone(generation)
        self._duties.wake()
        if not self._fleet.is_open:
            return
        if not self._fleet.is_wanted(generation.number):
            self._fleet.generations.pop(generation.number, None)
        elif not self._fleet.desired.stopping:
            if generation.failure is None and not generation.retired:
                self._log.fault(f"the template ended ({status}); its children live on, a new one imports the service")
            self.replace(generation)
