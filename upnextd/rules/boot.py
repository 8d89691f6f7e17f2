"""How long the broker is waited for at the start. Pure.

`limit_s` is what `--boot-timeout` gives, 0: without end. A child tries for a while and gives up; the daemon starts another until the
limit is reached. Children of a daemon that was ready once wait longer, so that no restart follows from a short outage.
"""

from __future__ import annotations

FIRST_TRY_S = 5.0
"""The first try of a wait without end is short: soon the status says what is waited for."""
TRY_S = 45.0
"""The longest try of a child; below the limit of STARTING."""
EXTENSION_S = 120.0
"""What each failed try asks of the service manager: more than the longest try and the longest back-off together."""


def try_s(limit_s: float, waited_s: float, *, booted: bool, first: bool) -> float:
    """Return the seconds that a child tries to reach the broker. `first`: the first child of its slot."""
    if booted:
        return TRY_S
    if limit_s == 0:
        return FIRST_TRY_S if first else TRY_S
    return min(TRY_S, limit_s if first else max(1.0, limit_s - waited_s))


def goes_on(limit_s: float, waited_s: float) -> bool:
    """Whether the daemon goes on waiting after a try that found no broker."""
    return limit_s == 0 or waited_s < limit_s
