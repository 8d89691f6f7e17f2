"""Whether a SIGKILL that we didn't send was the kernel's, for memory. Pure; times are the supervisor's monotonic clock.

The kernel counts its kills for memory and names no process. A child that died by a SIGKILL that was not ours is taken for one of them while
there is a kill that no other death has been explained with. Kills that no death claims (of processes that were no children of ours) lapse,
so that a SIGKILL by hand is not called `oom` hours later.
"""

from __future__ import annotations

from dataclasses import dataclass

LAPSE_S = 3.0
"""How long after its kill a process may take to be seen dead: it gives its memory back first."""


@dataclass(frozen=True, slots=True)
class OomKills:
    """The kernel's counter as last read (None: never), and when each kill was noticed that no death has been explained with."""

    counter: int | None = None
    unclaimed: tuple[float, ...] = ()


def read(kills: OomKills, counter: int | None, now: float) -> OomKills:
    """The counter was read again, or couldn't be (None). One that went back (another cgroup, a restart) starts anew."""
    if counter is None:
        return kills
    fresh = (now,) * min(64, max(0, counter - (counter if kills.counter is None else kills.counter)))
    kept = tuple(at for at in kills.unclaimed if now - at < LAPSE_S)
    return OomKills(counter, (kept + fresh)[-64:])


def claim(kills: OomKills) -> tuple[OomKills, bool]:
    """A child died by a SIGKILL that was not ours -> whether that was for memory."""
    if not kills.unclaimed:
        return kills, False
    return OomKills(kills.counter, kills.unclaimed[1:]), True


def suspicious(signal: str | None, *, ours: bool) -> bool:
    """Whether a death can have been a kill for memory at all: by SIGKILL, and not by one of ours."""
    return signal == "SIGKILL" and not ours
