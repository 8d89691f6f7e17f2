"""What all machines of a play share, and the rules by which they go."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.queue_model.kernel import Kernel
from tests.support.queue_model.truth import Truth
from upnext.core.fetchplan import FetchPlan
from upnext.core.keys import Keys
from upnext.core.spec import TaskSpec
from upnext.engine.worker.results import CLEARED

LEASE_MS = 10_000


@dataclass(frozen=True)
class Rules:
    """How the machines behave; a test takes a mend back by another value."""

    backlog_over_cut_line: bool = True
    """A backlog is read over the line that a reaper cuts."""
    sweeps: bool = True
    """Leaders look for consumers that nobody keeps."""
    plan: Callable[[Sequence[str]], FetchPlan] = FetchPlan
    limited_first: bool = False
    cleared: dict[str, Any] = field(default_factory=lambda: CLEARED)
    """What is cleared for the next attempt of a job."""


@dataclass(eq=False)
class World:
    kernel: Kernel
    keys: Keys
    truth: Truth
    rules: Rules
    specs: list[TaskSpec]
    limited: set[str]
    rng: random.Random
    epoch: str = "model"
    paused: set[str] = field(default_factory=set[str])
    consumers: int = 0

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def new_consumer(self) -> str:
        self.consumers += 1
        return f"c{self.consumers}"
