"""When a child counts as hung: its heartbeat counter did not change. Pure; times are the supervisor's monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Pulse(Enum):
    """What a look at the heartbeat says."""

    FINE = "fine"
    HUNG = "hung: dump its stacks"
    HUNG_ON = "hung for twice the timeout: end it"


@dataclass(frozen=True, slots=True)
class Heart:
    """The last change of a child's heartbeat, and what was reported about it since."""

    counter: int
    changed_at: float
    reported: Pulse = Pulse.FINE

    def age_s(self, now: float) -> float:
        return max(0.0, now - self.changed_at)


def look(heart: Heart, counter: int, now: float, hang_timeout_s: float) -> tuple[Heart, Pulse]:
    """A look at the counter -> the heart, and what is new: each of HUNG and HUNG_ON is reported once."""
    if counter != heart.counter:
        return Heart(counter, now), Pulse.FINE
    age_s = heart.age_s(now)
    if age_s >= 2 * hang_timeout_s and heart.reported is Pulse.HUNG:
        return replace(heart, reported=Pulse.HUNG_ON), Pulse.HUNG_ON
    if age_s >= hang_timeout_s and heart.reported is Pulse.FINE:
        return replace(heart, reported=Pulse.HUNG), Pulse.HUNG
    return heart, Pulse.FINE


def due(heart: Heart, hang_timeout_s: float) -> float | None:
    """When the next thing is to be reported of this heart, should it not beat again; None: nothing is left."""
    match heart.reported:
        case Pulse.FINE:
            return heart.changed_at + hang_timeout_s
        case Pulse.HUNG:
            return heart.changed_at + 2 * hang_timeout_s
        case Pulse.HUNG_ON:
            return None


def forgive(heart: Heart, late_s: float) -> Heart:
    """The supervisor itself was stopped for so long: that time doesn't count."""
    return replace(heart, changed_at=heart.changed_at + late_s)
