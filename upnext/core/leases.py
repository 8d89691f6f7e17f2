"""Whether a lease has ended, judged by what was seen of it: clocks of the server and of hosts are stepped, and have no say.

Who holds a lease changes its value before a lease's time (TTL) has passed. So it has ended when its value stayed unchanged for one TTL of
the observer's monotonic clock. That the value lies in the past, or hours ahead, says nothing.

An observer that did not look has seen nothing either: a pause (of this process, the machine, the broker, the connection) may have kept the
holders from renewing. After one, every lease gets a whole TTL again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Sighting:
    """The value that a lease had at every look since `since_s`."""

    value: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Sightings:
    """What one observer saw of the leases of others. Times are seconds of one monotonic clock.

    ttl_s: how long a lease holds. most_gap_s: a longer time without a look is a pause.
    """

    ttl_s: float
    most_gap_s: float
    leases: Mapping[str, Sighting] = field(default_factory=dict[str, Sighting])
    looked_s: float | None = None
    """When the latest look began."""

    def after(self, values: Mapping[str, str], asked_s: float, answered_s: float) -> Sightings:
        """With one more look: `values` were read at some moment between `asked_s` and `answered_s`."""
        paused = self.looked_s is None or answered_s - self.looked_s > self.most_gap_s
        known: Mapping[str, Sighting] = {} if paused else self.leases
        leases = {
            name: seen if (seen := known.get(name)) is not None and seen.value == value else Sighting(value, answered_s)
            for name, value in values.items()
        }
        return replace(self, leases=leases, looked_s=asked_s)

    def forgotten(self) -> Sightings:
        """After the connection broke: nothing that was seen before counts."""
        return replace(self, leases={}, looked_s=None)

    def ended(self) -> dict[str, str]:
        """Leases that had ended at the latest look, with the value that they still had; those that ended first come first."""
        if self.looked_s is None:
            return {}
        over = [(seen.since_s, name) for name, seen in self.leases.items() if self._ends_s(seen) <= self.looked_s]
        return {name: self.leases[name].value for _, name in sorted(over)}

    def next_end_s(self) -> float | None:
        """When the first lease ends that has not ended yet, if it is not renewed."""
        looked_s = self.looked_s
        if looked_s is None:
            return None
        ends = (self._ends_s(seen) for seen in self.leases.values())
        return min((end_s for end_s in ends if end_s > looked_s), default=None)

    def _ends_s(self, seen: Sighting) -> float:
        return seen.since_s + self.ttl_s


def renewed_within(end_ms: float, server_ms: int, lease_ms: int, within_s: float) -> bool:
    """Whether a lease that ends at `end_ms` was renewed in the last `within_s`, when the server's clock says `server_ms`.

    A clock that was set back meanwhile makes it look renewed.
    """
    return server_ms - (end_ms - lease_ms) < within_s * 1000
