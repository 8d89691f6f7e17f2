"""How much a child may print: an allowance in bytes that refills with time. Pure; times are seconds of any steady clock."""

from __future__ import annotations

RATE_BYTES_PER_S = 1 << 20
BURST_BYTES = 2 << 20
LINE_COST_BYTES = 100
"""What a line costs besides its bytes: its time, its slot, its pid."""


class LogQuota:
    """What is left of it; `take` a line, or learn that there is not enough."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = float(BURST_BYTES)
        self._at = now

    def refill(self, now: float) -> None:
        self._left = min(float(BURST_BYTES), self._left + max(0.0, now - self._at) * RATE_BYTES_PER_S)
        self._at = now

    def take(self, line_bytes: int) -> bool:
        cost = line_bytes + LINE_COST_BYTES
        if self._left < cost:
            return False
        self._left -= cost
        return True

    @property
    def exhausted(self) -> bool:
        return self._left < LINE_COST_BYTES
