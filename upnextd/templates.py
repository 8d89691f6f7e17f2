"""The lives of templates: how one is started, how long its import may take, and when it counts as hung."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from upnextd import process
from upnextd.generations import Generation, ImportFailure, Phase

if TYPE_CHECKING:
    from upnextd.supervisor import Supervisor

STALLED_S = 15.0
"""A template that owes the answer to a fork order for longer hangs: in a hook of the service around the fork, say."""
_STACKS_S = 0.5
"""What an import that hangs gets to write its stacks."""


class Templates:
    """Starts templates and gives up those whose import hangs."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def start(self, number: int) -> Generation | None:
        """Exec a template; None when the system refuses."""
        supervisor = self._supervisor
        settings = supervisor.settings
        order = {
            "supervisor_pid": os.getpid(),
            "service": settings.service,
            "name": settings.name,
            "only": settings.only,
        }
        try:
            generation = Generation(
                number,
                order,
                self._supervisor.child_env,
                supervisor.loop,
                supervisor,
                supervisor.template_line,
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
        process.send_signal(generation.pidfd, signal.SIGUSR2)
        self._supervisor.loop.call_later(_STACKS_S, self._give_up, generation)

    def _give_up(self, generation: Generation) -> None:
        if generation.phase is Phase.IMPORTING:
            limit_s = self._supervisor.settings.import_timeout_s
            generation.failure = ImportFailure(f"the import was not done within {limit_s:g} s (--import-timeout)")
            generation.kill()
