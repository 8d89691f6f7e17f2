"""Exit codes of `upnext` and `upnextd`: part of the public contract."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process of ours tells its caller by ending."""

    OK = 0
    FAILED = 1
    """The operation, or the job asked about, failed; or there is no such job."""
    NOT_RUNNING = 3
    """No daemon answers on the control socket."""
    DEGRADED = 4
    """`ctl status`: fewer workers or processes of an Api ready than desired, a child hangs, or the broker is away."""
    USAGE = 64
    """Bad arguments."""
    UNAVAILABLE = 69
    """Redis is not reachable, refuses, or is configured nowhere; or an address to listen on is taken."""
    CRASH_LOOP = 70
    """Children die as fast as they start, and there is no earlier generation to go back to."""
    LOCKED = 73
    """Another daemon of this name holds the lock."""
    TIMEOUT = 75
    """A deadline passed: a wait timed out, or jobs were killed at the end of a stop."""
    CONFIG = 78
    """The service can't be imported."""
