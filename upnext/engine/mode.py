"""What a runtime may do at the moment."""

from __future__ import annotations

from enum import Enum, auto


class Mode(Enum):
    """PAUSED only stops fetching; DRAINING also hands back what is unstarted."""

    STARTING = auto()
    RUNNING = auto()
    PAUSED = auto()
    DRAINING = auto()
    STOPPED = auto()
