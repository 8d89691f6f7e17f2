"""The life of a reload: a table keyed by (phase, event), every cell in this file. Pure.

    QUEUED → IMPORTING → TRYING → ROLLING → SETTLING → SWITCHING_APIS → SWITCHING → COMMITTED
        any of them but the last → FAILED
        the first three, when a newer reload is asked for → SUPERSEDED

What the actions mean is `upnextd.supervisor.reloads`'.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """How far a new generation is."""

    QUEUED = "it waits for the end of the reload before it, or of the daemon's start"
    IMPORTING = "its template imports the service"
    TRYING = "one worker of it, the canary, must get ready and stay so for a while; one process of each of its Apis must get ready"
    ROLLING = "its children take the places of the old ones"
    SETTLING = "the old workers acknowledge that they fetch no more"
    SWITCHING_APIS = "its Apis take over"
    SWITCHING = "its scheduler takes over"
    COMMITTED = "it serves"
    FAILED = "the old generation goes on"
    SUPERSEDED = "a newer reload took its place; the old generation goes on"


class Event(Enum):
    """What can happen meanwhile."""

    TURN = "the daemon is started and no other reload is under way"
    IMPORTED = "the template has the service"
    PROVEN = "the canary is ready, and was so for long enough; its Apis are ready"
    REPLACED = "every slot has a ready child of the new generation"
    SETTLED = "no old worker fetches any more"
    APIS_SWITCHED = "every process of its Apis takes connections"
    SWITCHED = "its scheduler is ready"
    BROKE = (
        "an import failed, a child of it ended without having done anything, its template is gone, or it was aborted"
    )
    NEWER = "another reload was asked for"


class Action(Enum):
    """What is done about a step."""

    IMPORT = "start its template"
    TRY = "ask for a canary"
    ROLL = "ask for its children in every slot"
    SETTLE = "report that every worker is replaced"
    SWITCH_APIS = "ask for its Apis"
    SWITCH = "ask for its scheduler"
    COMMIT = "keep its template, and the former one to fall back to"
    ROLL_BACK = "ask for the old generation everywhere, end the new one"
    LEAVE = "end its template and its canary, where it has any: nothing else is changed yet"


Cell = tuple[Phase | None, Action | None]

_NOTHING: Cell = (None, None)
_BROKEN: Cell = (Phase.FAILED, Action.ROLL_BACK)
_SUPERSEDED: Cell = (Phase.SUPERSEDED, Action.LEAVE)

TABLE: dict[Phase, dict[Event, Cell]] = {
    Phase.QUEUED: {
        Event.TURN: (Phase.IMPORTING, Action.IMPORT),
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: _NOTHING,
        Event.REPLACED: _NOTHING,
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: _NOTHING,
        Event.BROKE: (Phase.FAILED, Action.LEAVE),
        Event.NEWER: _SUPERSEDED,
    },
    Phase.IMPORTING: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: (Phase.TRYING, Action.TRY),
        Event.PROVEN: _NOTHING,
        Event.REPLACED: _NOTHING,
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: _NOTHING,
        Event.BROKE: _BROKEN,
        Event.NEWER: _SUPERSEDED,
    },
    Phase.TRYING: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: (Phase.ROLLING, Action.ROLL),
        Event.REPLACED: _NOTHING,
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: _NOTHING,
        Event.BROKE: _BROKEN,
        Event.NEWER: _SUPERSEDED,
    },
    Phase.ROLLING: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: _NOTHING,
        Event.REPLACED: (Phase.SETTLING, Action.SETTLE),
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: _NOTHING,
        Event.BROKE: _BROKEN,
        Event.NEWER: _NOTHING,
    },
    Phase.SETTLING: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: _NOTHING,
        Event.REPLACED: _NOTHING,
        Event.SETTLED: (Phase.SWITCHING_APIS, Action.SWITCH_APIS),
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: _NOTHING,
        Event.BROKE: _BROKEN,
        Event.NEWER: _NOTHING,
    },
    Phase.SWITCHING_APIS: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: _NOTHING,
        Event.REPLACED: _NOTHING,
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: (Phase.SWITCHING, Action.SWITCH),
        Event.SWITCHED: _NOTHING,
        Event.BROKE: _BROKEN,
        Event.NEWER: _NOTHING,
    },
    Phase.SWITCHING: {
        Event.TURN: _NOTHING,
        Event.IMPORTED: _NOTHING,
        Event.PROVEN: _NOTHING,
        Event.REPLACED: _NOTHING,
        Event.SETTLED: _NOTHING,
        Event.APIS_SWITCHED: _NOTHING,
        Event.SWITCHED: (Phase.COMMITTED, Action.COMMIT),
        Event.BROKE: _BROKEN,
        Event.NEWER: _NOTHING,
    },
    Phase.COMMITTED: dict.fromkeys(Event, _NOTHING),
    Phase.FAILED: dict.fromkeys(Event, _NOTHING),
    Phase.SUPERSEDED: dict.fromkeys(Event, _NOTHING),
}

OVER = frozenset({Phase.COMMITTED, Phase.FAILED, Phase.SUPERSEDED})


def step(phase: Phase, event: Event) -> tuple[Phase, Action | None]:
    """One event -> the new phase and what to do."""
    to, action = TABLE[phase][event]
    return to or phase, action
