"""What the daemon has counted since it started: replaced children by cause, reloads, and the jobs of children that are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

from upnextd.shared import meters
from upnextd.shared.meters import Meters, TaskMeter


class Counters:
    """Counters that outlive the children."""

    def __init__(self) -> None:
        self.restarts: Counter[tuple[str, str]] = Counter()
        """(role, cause) -> children that ended and were to be replaced."""
        self.reloads: Counter[str] = Counter(ok=0, failed=0)
        self._gone: Meters = {}
        self._gone_apis: Meters = {}

    def child_ended(self, role: str, cause: str, counted: Meters, *, replaced: bool) -> None:
        if replaced:
            self.restarts[role, cause] += 1
        if role == "api":
            self._gone_apis = meters.total((self._gone_apis, counted))
        else:
            self._gone = meters.total((self._gone, counted))

    def to_state(self) -> dict[str, Any]:
        """As JSON, without the living."""
        return self.as_json((), ())

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `to_state` wrote."""
        tally = cls()
        tally.restarts = Counter({(row["role"], row["cause"]): row["count"] for row in state["restarts"]})
        tally.reloads = Counter(state["reloads"])
        tally._gone = {task: TaskMeter.from_json(one) for task, one in state["tasks"].items()}
        tally._gone_apis = {row: TaskMeter.from_json(one) for row, one in state["apis"].items()}
        return tally

    def as_json(self, living: Iterable[Meters], apis: Iterable[Meters] = ()) -> dict[str, Any]:
        """`living`, `apis`: what the pages of the children say now. Rows of Apis have names as of `upnextd.shared.api_meters`."""
        return {
            "restarts": [
                {"role": role, "cause": cause, "count": count} for (role, cause), count in sorted(self.restarts.items())
            ],
            "reloads": dict(self.reloads),
            "tasks": {task: meter.as_json() for task, meter in meters.total((self._gone, *living)).items()},
            "apis": {row: meter.as_json() for row, meter in meters.total((self._gone_apis, *apis)).items() if meter.ok},
        }
