"""What is wanted of the daemon as a whole: a table keyed by (mode, request), every cell in this file. Pure.

    STOP_NOW > STOP > DRAIN_EXIT > DRAIN > PAUSE > RUN

A request never lowers the mode, with two exceptions: `resume` lifts a pause and a drain, SIGCONT lifts a pause alone. Nothing lifts a
stop. A refusal is answered to a client, and logged for a signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from upnextd.rules.plan import Mode


class Request(Enum):
    """Every command and every signal that edits what is wanted, and what the daemon itself finds out. The value names it in lines."""

    PAUSE = "pause"
    DRAIN = "drain"
    DRAIN_EXIT = "drain --exit"
    RESUME = "resume"
    STOP = "stop"
    STOP_NOW = "stop --now"
    RELOAD = "reload"
    ABORT_RELOAD = "reload --abort"
    SCALE = "scale"
    RESTART = "restart"
    TERM = "SIGTERM"
    INT = "SIGINT"
    QUIT = "SIGQUIT"
    HUP = "SIGHUP"
    TTIN = "SIGTTIN"
    TTOU = "SIGTTOU"
    TSTP = "SIGTSTP"
    CONT = "SIGCONT"
    USR1 = "SIGUSR1"
    USR2 = "SIGUSR2"
    DRAINED = "nothing runs any more"
    FAILED = "the daemon can't go on"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the mode from now on, or why the request is refused."""

    to: Mode
    refusal: str | None = None


_STOPPING = "the daemon is stopping"
_ENDS_WHEN_DRAINED = "the daemon ends as soon as it is drained: `resume` lifts that"

_STOPS = {
    Request.STOP: Cell(Mode.STOP),
    Request.TERM: Cell(Mode.STOP),
    Request.INT: Cell(Mode.STOP),
    Request.STOP_NOW: Cell(Mode.STOP_NOW),
    Request.QUIT: Cell(Mode.STOP_NOW),
    Request.FAILED: Cell(Mode.STOP_NOW),
}


def _kept(mode: Mode) -> dict[Request, Cell]:
    """Requests that edit something else than the mode."""
    others = (
        Request.RELOAD, Request.ABORT_RELOAD, Request.SCALE, Request.RESTART, Request.HUP, Request.TTIN, Request.TTOU,
        Request.USR1, Request.USR2,
    )  # fmt: skip
    return dict.fromkeys(others, Cell(mode))


def _ending(mode: Mode) -> dict[Request, Cell]:
    """A stop under way takes a nearer stop and nothing else."""
    row = dict.fromkeys(Request, Cell(mode, _STOPPING))
    now = dict.fromkeys((Request.STOP_NOW, Request.INT, Request.QUIT, Request.FAILED), Cell(Mode.STOP_NOW))
    return row | dict.fromkeys((Request.STOP, Request.TERM, Request.USR1, Request.DRAINED), Cell(mode)) | now


TABLE: dict[Mode, dict[Request, Cell]] = {
    Mode.RUN: _kept(Mode.RUN)
    | _STOPS
    | {
        Request.PAUSE: Cell(Mode.PAUSE),
        Request.TSTP: Cell(Mode.PAUSE),
        Request.DRAIN: Cell(Mode.DRAIN),
        Request.DRAIN_EXIT: Cell(Mode.DRAIN_EXIT),
        Request.RESUME: Cell(Mode.RUN),
        Request.CONT: Cell(Mode.RUN),
        Request.DRAINED: Cell(Mode.RUN),
    },
    Mode.PAUSE: _kept(Mode.PAUSE)
    | _STOPS
    | {
        Request.PAUSE: Cell(Mode.PAUSE),
        Request.TSTP: Cell(Mode.PAUSE),
        Request.DRAIN: Cell(Mode.DRAIN),
        Request.DRAIN_EXIT: Cell(Mode.DRAIN_EXIT),
        Request.RESUME: Cell(Mode.RUN),
        Request.CONT: Cell(Mode.RUN),
        Request.DRAINED: Cell(Mode.PAUSE),
    },
    Mode.DRAIN: _kept(Mode.DRAIN)
    | _STOPS
    | {
        # It fetches nothing already.
        Request.PAUSE: Cell(Mode.DRAIN),
        Request.TSTP: Cell(Mode.DRAIN),
        Request.DRAIN: Cell(Mode.DRAIN),
        Request.DRAIN_EXIT: Cell(Mode.DRAIN_EXIT),
        Request.RESUME: Cell(Mode.RUN),
        Request.CONT: Cell(Mode.DRAIN),
        Request.DRAINED: Cell(Mode.DRAIN),
    },
    Mode.DRAIN_EXIT: _kept(Mode.DRAIN_EXIT)
    | _STOPS
    | {
        Request.PAUSE: Cell(Mode.DRAIN_EXIT),
        Request.TSTP: Cell(Mode.DRAIN_EXIT),
        Request.DRAIN: Cell(Mode.DRAIN_EXIT),
        Request.DRAIN_EXIT: Cell(Mode.DRAIN_EXIT),
        Request.RESUME: Cell(Mode.RUN),
        Request.CONT: Cell(Mode.DRAIN_EXIT),
        Request.DRAINED: Cell(Mode.STOP),
        # New code for a daemon that is about to end would only hold its end up.
        Request.RELOAD: Cell(Mode.DRAIN_EXIT, _ENDS_WHEN_DRAINED),
        Request.HUP: Cell(Mode.DRAIN_EXIT, _ENDS_WHEN_DRAINED),
    },
    Mode.STOP: _ending(Mode.STOP),
    Mode.STOP_NOW: _ending(Mode.STOP_NOW),
}

OVERTAKEN: dict[Mode, tuple[str, ...]] = {
    Mode.RUN: ("pause", "drain"),
    Mode.PAUSE: ("resume",),
    Mode.DRAIN: ("resume",),
    Mode.DRAIN_EXIT: ("resume",),
    Mode.STOP: ("pause", "drain", "resume", "scale", "restart"),
    Mode.STOP_NOW: ("pause", "drain", "resume", "scale", "restart"),
}
"""How the keys of the operations begin that can't end well any more once the mode is entered. A reload ends by its own table."""


def decide(mode: Mode, request: Request) -> Cell:
    """The cell of a request in a mode."""
    return TABLE[mode][request]
