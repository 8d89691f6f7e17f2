"""What goes wrong and what is wished for in a play, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

STEPS = 260
FLOODED = 5
"""One seed of so many begins with a backlog; another one is slow besides, so that deaths are dealt with before it is gone."""


@dataclass(frozen=True)
class Mishap:
    """At this step. `number` chooses among what there is then."""

    step: int
    kind: str
    number: int


KINDS = {
    "submit": 30, "delayed": 10, "keyed": 8, "ttl": 10, "cancel": 8, "watch": 4, "unwatch": 2, "pause": 2, "resume": 2,
    "purge queued": 1, "purge delayed": 1, "retry dead": 2, "purge dead": 1,
    "crash": 6, "crash in a read": 8, "freeze": 3, "thaw": 3, "freeze worker": 3, "cut": 6, "lose reply": 5,
    "clock": 3, "exhaust": 4, "restore": 5,
    "garble": 2, "wait": 6, "new worker": 5, "lose daemon": 1,
}  # fmt: skip


def plan_of(seed: int) -> list[Mishap]:
    rng = random.Random(f"plan {seed}")
    kinds, weights = list(KINDS), list(KINDS.values())
    count = rng.randrange(15, 60)
    picked = rng.choices(kinds, weights, k=count)
    plan = [Mishap(rng.randrange(STEPS), kind, rng.randrange(1 << 16)) for kind in picked]
    if seed % FLOODED == 1:
        deaths = ("crash", "new worker", "crash", "freeze")
        plan += [Mishap(rng.randrange(30, 120), kind, rng.randrange(1 << 16)) for kind in deaths]
    return sorted(plan, key=lambda it: it.step)
