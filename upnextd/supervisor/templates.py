"""The lives of templates: how one is started, how long its import may take, when it counts as hung, and what replaces one that ended.

A template that takes the place of another of its generation must have loaded the same code. Else it isn't used: the children go on, and
those that end are replaced from the former generation's template, where there is one, until a reload takes in what is on disk.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from upnextd.rules import plan
from upnextd.shared.messages import TemplateOrder
from upnextd.supervisor.generations import Generation, ImportFailure, Phase

if TYPE_CHECKING:
    from upnextd.supervisor.supervisor import Supervisor

RETRY_MOST_S = 60.0
"""The longest pause between two tries to replace a template: each imports the service."""
STALLED_S = 15.0
"""A template that owes the answer to a fork order for longer hangs: in a hook of the service around the fork, say."""
_STACKS_S = 0.5
"""What an import that hangs gets to write its stacks."""


class Templates:
    """Starts and replaces templates, and gives up those that hang."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.contents: dict[int, str] = {}
        """generation -> what its first template loaded."""
        self._missing: dict[int, str] = {}
        """generation -> why it has no template."""
        self._failures = 0
        """Replacements in a row that came to nothing."""

    def problem(self) -> str | None:
        """For people: why children can't be replaced by their like; None when they can."""
        why = self._missing.get(self._supervisor.desired.generation)
        if why is None:
            return None
        stand_in = self._supervisor.desired.stand_in
        instead = (
            "no child can be replaced" if stand_in is None else f"generation {stand_in} replaces children that end"
        )
        return f"generation {self._supervisor.desired.generation} has no template: {why}; {instead}"

    def takes(self, generation: Generation) -> bool:
        """Whether a template that has imported the service is what its generation is; one that isn't is ended."""
        known = self._supervisor.generations
        self.contents = {number: content for number, content in self.contents.items() if number in known}
        self._missing = {number: why for number, why in self._missing.items() if number in known}
        first = self.contents.setdefault(generation.number, generation.content)
        if generation.content == first:
            if self._missing.pop(generation.number, None) is not None:
                self._supervisor.log.note(f"generation {generation.number} has a template again")
            self._settle()
            return True
        generation.retire()
        self._lack(
            generation.number, "the code on disk is not what it loaded (`upnext ctl reload` takes in what is there)"
        )
        return False

    def replace_lost(self) -> None:
        """Those that ended while nobody could replace them."""
        desired = self._supervisor.desired
        for number in {desired.generation, desired.scheduler_generation}:
            lost = self._supervisor.generations.get(number)
            if lost is not None and lost.phase is Phase.GONE:
                self.replace(lost)

    def replace(self, generation: Generation) -> None:
        """One that is wanted has ended: another imports the service, at once or after a pause."""
        supervisor = self._supervisor
        if generation.retired:
            # What is on disk is something else: that is for a reload to take in.
            return
        if generation.failure is not None:
            self._failures += 1
            self._lack(generation.number, generation.failure.told(supervisor.settings.service))
        elif supervisor.loop.time() - generation.started_at > plan.PROVEN_S:
            self._failures = 0
        else:
            self._failures += 1
        pause_s = min(RETRY_MOST_S, 2.0 ** (self._failures - 1)) if self._failures else 0.0
        supervisor.loop.call_later(pause_s, self._start_again, generation.number)

    def _start_again(self, number: int) -> None:
        supervisor = self._supervisor
        wanted = (supervisor.desired.generation, supervisor.desired.scheduler_generation)
        if not supervisor.desired.stopping and number in wanted and self.start(number) is None:
            supervisor.loop.call_later(1.0, self._start_again, number)

    def _lack(self, number: int, why: str) -> None:
        if self._missing.get(number) != why:
            self._missing[number] = why
            self._settle()
            self._supervisor.log.fault(self.problem() or f"generation {number} has no template: {why}")
            self._supervisor.on_event("template_missing", {"generation": number, "why": why})

    def _settle(self) -> None:
        """Whether the former generation stands in for the present one."""
        supervisor = self._supervisor
        former = supervisor.reloads.former
        template = None if former is None else supervisor.generations.get(former)
        able = template is not None and template.phase is Phase.READY and not template.retired
        wanted = former if able and supervisor.desired.generation in self._missing else None
        if wanted != supervisor.desired.stand_in:
            supervisor.edit(stand_in=wanted)

    def start_first(self) -> None:
        """The daemon begins."""
        self._start_again(self._supervisor.desired.generation)

    def start(self, number: int) -> Generation | None:
        """Exec a template; None when the system refuses."""
        supervisor = self._supervisor
        settings = supervisor.settings
        order = TemplateOrder(
            supervisor_pid=supervisor.kernel.pid(),
            generation=number,
            service=settings.service,
            name=settings.name,
            only=settings.only,
            preload=settings.preload,
        )
        try:
            generation = Generation(
                number,
                order,
                self._supervisor.child_env,
                supervisor.loop,
                supervisor,
                supervisor.template_line,
                supervisor.kernel,
                preload=settings.preload,
            )
        except OSError as error:
            supervisor.log.fault(f"can't start a template: {error.strerror or error}")
            return None
        generation.due_at = supervisor.loop.time() + settings.import_timeout_s
        self._watch(generation)
        supervisor.generations[number] = generation
        return generation

    def forgive(self, late_s: float) -> None:
        """The supervisor itself was stopped for so long: that time doesn't count."""
        for generation in self._supervisor.generations.values():
            generation.forgive(late_s)

    def look(self, now: float) -> None:
        """At every tick: a template that answers no order is of no use; its children live on without it."""
        self._settle()
        for generation in self._supervisor.generations.values():
            if generation.living and generation.phase is Phase.READY and generation.stalled_s(now) > STALLED_S:
                self._supervisor.log.fault(
                    f"the template[{generation.pid}] has answered no order to fork for {STALLED_S:g} s: it is killed"
                )
                generation.kill()

    def _watch(self, generation: Generation) -> None:
        self._supervisor.loop.call_at(generation.due_at, self._import_is_due, generation)

    def _import_is_due(self, generation: Generation) -> None:
        """An import that hangs has its stacks written, so that its line is known, and is given up."""
        if generation.phase is not Phase.IMPORTING or not generation.living:
            return
        self._supervisor.forgive_lateness()
        if self._supervisor.loop.time() < generation.due_at:
            self._watch(generation)
            return
        self._supervisor.kernel.signal(generation.pidfd, signal.SIGUSR2)
        self._supervisor.loop.call_later(_STACKS_S, self._give_up, generation)

    def _give_up(self, generation: Generation) -> None:
        if generation.phase is Phase.IMPORTING:
            limit_s = self._supervisor.settings.import_timeout_s
            generation.failure = ImportFailure(f"the import was not done within {limit_s:g} s (--import-timeout)")
            generation.kill()
