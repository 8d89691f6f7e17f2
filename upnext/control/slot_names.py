"""The names of a daemon's slots, as `status` and reports have them: `worker-N`, and `api-NAME-N` for the processes of an Api."""

from __future__ import annotations

from collections.abc import Sequence


def worker_slots(workers: int) -> list[str]:
    """The slots that so many workers have."""
    return [f"worker-{number}" for number in range(1, workers + 1)]


def api_slots(apis: Sequence[tuple[str, int]]) -> list[str]:
    """The slots that so many processes of each Api have."""
    return [f"api-{name}-{number}" for name, processes in apis for number in range(1, processes + 1)]


def api_of(slot: str) -> str:
    """api-front-2 -> front; "" for a slot of no Api."""
    return slot.removeprefix("api-").rpartition("-")[0] if slot.startswith("api-") else ""
