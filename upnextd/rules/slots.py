"""The life of one child in a slot: a table keyed by (state, event), and `step`, which reads it. Pure.

Everything that can change a child's state is in this file. What the actions mean in system calls is the supervisor's business; why
an event is posted is the plan's (`upnextd.rules.plan`) or the child's own.

    EMPTY → SPAWNING → STARTING → READY ⇄ PAUSED → DRAINING → STOPPING → KILLING → KILLED → EXITED → BACKOFF | FAILED → EMPTY

Three kinds of cells: a move, `_STAY` (legitimate, changes nothing) and `_ODD` (cannot happen by our own doing: reported, changes nothing).

Every state has a way out by time alone: whatever never comes, its deadline leads on, to a slot without a child in the end. Only the
states of RESTING have no deadline of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class State(Enum):
    """Where a child is in its life. The name is what `status` shows."""

    EMPTY = "no child"
    SPAWNING = "the template was asked to fork; the pid isn't known yet"
    STARTING = "it runs, but has not reported that it is ready"
    READY = "it fetches jobs"
    PAUSED = "it doesn't fetch; drained, when nothing runs in it either"
    DRAINING = "it finishes what runs and fetches nothing"
    STOPPING = "it was asked to end by a deadline"
    KILLING = "it is to die soon: it was asked to end, or its pid isn't known yet; the deadline brings SIGKILL"
    KILLED = "SIGKILL was sent; its end is awaited"
    EXITED = "it is gone; what becomes of the slot is being judged"
    BACKOFF = "the next one is due later"
    FAILED = "given up"


class Event(Enum):
    """What can happen to a child or be asked of it."""

    SPAWN = "a child is wanted here"
    FORKED = "the template reported its pid"
    FORK_FAILED = "the template couldn't fork, is gone or doesn't answer"
    BECAME_READY = "the child reported that it is ready"
    PAUSE = "asked to pause"
    RESUME = "asked to resume"
    DRAIN = "asked to drain"
    DRAINED = "the child reported that nothing runs and nothing is pending"
    STOP = "asked to end, with time for what runs"
    KILL = "asked to end now"
    HUNG = "no heartbeat for the hang timeout"
    HUNG_ON = "no heartbeat for twice that"
    GONE = "its pidfd says it ended"
    DEADLINE = "the deadline of its state passed"
    AGAIN = "judged: replace at once"
    BACK_OFF = "judged: replace later"
    GIVE_UP = "judged: don't replace"
    CLEAR = "an operator or a reload wants a fresh try"


class Action(Enum):
    """What the supervisor does about a step."""

    FORK = "ask the template for a child"
    WATCH = "open a pidfd and watch it"
    SEND_PAUSE = "send pause"
    SEND_RESUME = "send resume"
    SEND_DRAIN = "send drain"
    SEND_STOP = "send stop with the seconds left"
    DUMP = "have its stacks written"
    ABORT = "SIGABRT"
    KILL = "SIGKILL"
    ABANDON = "no longer wait for the end of what SIGKILL did not end"
    GIVE_UP_EXIT = "stop handling its end"
    CLASSIFY_EXIT = "handle its end: session, jobs, status; then decide what follows"
    LOG_UNEXPECTED = "log that this can't happen"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table."""

    to: State | None
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a state may last, in seconds."""

    spawn_s: float = 5.0
    start_s: float = 60.0
    kill_s: float = 1.0
    stop_s: float = 30.0
    """Where a stop comes without a deadline of its own."""
    end_s: float = 10.0
    """What the kernel gets for a SIGKILL: longer waits are those of a disk or a network file system that is away."""
    judge_s: float = 60.0
    """More than handling an end ever takes."""


@dataclass(frozen=True, slots=True)
class Life:
    """A child's state. Times are the supervisor's monotonic clock, in seconds."""

    state: State = State.EMPTY
    since: float = 0.0
    deadline: float | None = None
    drained: bool = False


_STAY = Cell(None)
_ODD = Cell(None, (Action.LOG_UNEXPECTED,))


def _to(state: State, *actions: Action) -> Cell:
    return Cell(state, actions)


def _do(*actions: Action) -> Cell:
    return Cell(None, actions)


_GONE = _to(State.EXITED, Action.CLASSIFY_EXIT)
_TO_KILL = _to(State.KILLED, Action.KILL)
_ALIVE_VERDICTS = {Event.AGAIN: _ODD, Event.BACK_OFF: _ODD, Event.GIVE_UP: _ODD}
_SPAWNED_ALREADY = {Event.SPAWN: _ODD, Event.FORKED: _ODD, Event.FORK_FAILED: _ODD}
_NO_CHILD = {
    Event.FORKED: _ODD,
    Event.FORK_FAILED: _ODD,
    Event.BECAME_READY: _ODD,
    Event.PAUSE: _STAY,
    Event.RESUME: _STAY,
    Event.DRAIN: _STAY,
    Event.DRAINED: _ODD,
    Event.HUNG: _ODD,
    Event.HUNG_ON: _ODD,
    Event.GONE: _ODD,
}

_ALIVE = (
    _SPAWNED_ALREADY
    | _ALIVE_VERDICTS
    | {
        Event.BECAME_READY: _STAY,
        Event.PAUSE: _STAY,
        Event.RESUME: _STAY,
        Event.DRAIN: _STAY,
        # One that crossed a resume on its way, in most states.
        Event.DRAINED: _STAY,
        Event.STOP: _to(State.STOPPING, Action.SEND_STOP),
        Event.KILL: _TO_KILL,
        Event.HUNG: _do(Action.DUMP),
        Event.HUNG_ON: _to(State.KILLING, Action.ABORT),
        Event.GONE: _GONE,
        Event.DEADLINE: _TO_KILL,
        Event.CLEAR: _STAY,
    }
)
"""The row of a child that runs and was ready: each such state names what it does otherwise."""

TABLE: dict[State, dict[Event, Cell]] = {
    State.EMPTY: _NO_CHILD
    | _ALIVE_VERDICTS
    | {
        Event.SPAWN: _to(State.SPAWNING, Action.FORK),
        Event.STOP: _STAY,
        Event.KILL: _STAY,
        Event.DEADLINE: _ODD,
        Event.CLEAR: _STAY,
    },
    State.SPAWNING: _ALIVE_VERDICTS
    | {
        Event.SPAWN: _STAY,
        Event.FORKED: _to(State.STARTING, Action.WATCH),
        Event.FORK_FAILED: _GONE,
        Event.BECAME_READY: _ODD,
        Event.PAUSE: _STAY,
        Event.RESUME: _STAY,
        Event.DRAIN: _STAY,
        Event.DRAINED: _ODD,
        # Its pid isn't known: it dies as soon as it is.
        Event.STOP: _to(State.KILLING),
        Event.KILL: _to(State.KILLING),
        Event.HUNG: _ODD,
        Event.HUNG_ON: _ODD,
        Event.GONE: _ODD,
        Event.DEADLINE: _GONE,
        Event.CLEAR: _STAY,
    },
    State.STARTING: _SPAWNED_ALREADY
    | _ALIVE_VERDICTS
    | {
        Event.BECAME_READY: _to(State.READY),
        Event.PAUSE: _STAY,
        Event.RESUME: _STAY,
        Event.DRAIN: _STAY,
        Event.DRAINED: _ODD,
        # Asked to stop first, because it may have fetched a moment ago; SIGKILL follows soon.
        Event.STOP: _to(State.KILLING, Action.SEND_STOP),
        Event.KILL: _TO_KILL,
        Event.HUNG: _STAY,
        Event.HUNG_ON: _STAY,
        Event.GONE: _GONE,
        Event.DEADLINE: _to(State.KILLED, Action.DUMP, Action.KILL),
        Event.CLEAR: _STAY,
    },
    State.READY: _ALIVE
    | {
        Event.PAUSE: _to(State.PAUSED, Action.SEND_PAUSE),
        Event.DRAIN: _to(State.DRAINING, Action.SEND_DRAIN),
    },
    State.PAUSED: _ALIVE
    | {
        Event.RESUME: _to(State.READY, Action.SEND_RESUME),
        Event.DRAIN: _to(State.DRAINING, Action.SEND_DRAIN),
    },
    State.DRAINING: _ALIVE
    | {
        # PAUSE changes nothing: a drain asks for more, and ends in PAUSED.
        Event.RESUME: _to(State.READY, Action.SEND_RESUME),
        Event.DRAINED: _to(State.PAUSED),
    },
    # A STOP here brings a nearer deadline.
    State.STOPPING: _ALIVE,
    State.KILLING: _ALIVE_VERDICTS
    | {
        Event.SPAWN: _ODD,
        # It was asked to end before its pid was known.
        Event.FORKED: _do(Action.WATCH, Action.KILL),
        Event.FORK_FAILED: _GONE,
        Event.BECAME_READY: _STAY,
        Event.PAUSE: _STAY,
        Event.RESUME: _STAY,
        Event.DRAIN: _STAY,
        Event.DRAINED: _STAY,
        Event.STOP: _STAY,
        Event.KILL: _TO_KILL,
        Event.HUNG: _STAY,
        Event.HUNG_ON: _STAY,
        Event.GONE: _GONE,
        Event.DEADLINE: _TO_KILL,
        Event.CLEAR: _STAY,
    },
    State.KILLED: _ALIVE_VERDICTS
    | {
        Event.SPAWN: _ODD,
        Event.FORKED: _do(Action.WATCH, Action.KILL),
        # Also: there was no process to send it to.
        Event.FORK_FAILED: _GONE,
        Event.BECAME_READY: _STAY,
        Event.PAUSE: _STAY,
        Event.RESUME: _STAY,
        Event.DRAIN: _STAY,
        Event.DRAINED: _STAY,
        Event.STOP: _STAY,
        Event.KILL: _STAY,
        Event.HUNG: _STAY,
        Event.HUNG_ON: _STAY,
        Event.GONE: _GONE,
        Event.DEADLINE: _to(State.EXITED, Action.ABANDON, Action.CLASSIFY_EXIT),
        Event.CLEAR: _STAY,
    },
    State.EXITED: _NO_CHILD
    | {
        Event.SPAWN: _STAY,
        # The template's answer, later than the deadline of SPAWNING: the supervisor ends such a stray by its token.
        Event.FORKED: _STAY,
        Event.FORK_FAILED: _STAY,
        Event.BECAME_READY: _STAY,
        Event.DRAINED: _STAY,
        Event.STOP: _STAY,
        Event.KILL: _STAY,
        # An abandoned one ended after all.
        Event.GONE: _STAY,
        Event.DEADLINE: _to(State.EMPTY, Action.GIVE_UP_EXIT),
        Event.AGAIN: _to(State.EMPTY),
        Event.BACK_OFF: _to(State.BACKOFF),
        Event.GIVE_UP: _to(State.FAILED),
        Event.CLEAR: _STAY,
    },
    State.BACKOFF: _NO_CHILD
    | _ALIVE_VERDICTS
    | {
        Event.SPAWN: _STAY,
        Event.STOP: _to(State.EMPTY),
        Event.KILL: _to(State.EMPTY),
        Event.DEADLINE: _to(State.EMPTY),
        Event.CLEAR: _to(State.EMPTY),
    },
    State.FAILED: _NO_CHILD
    | _ALIVE_VERDICTS
    | {
        Event.SPAWN: _STAY,
        Event.STOP: _to(State.EMPTY),
        Event.KILL: _to(State.EMPTY),
        Event.DEADLINE: _ODD,
        Event.CLEAR: _to(State.EMPTY),
    },
}

LIVING = frozenset(
    {State.STARTING, State.READY, State.PAUSED, State.DRAINING, State.STOPPING, State.KILLING, State.KILLED}
)
"""States that have a process (KILLING and KILLED may be waiting for the pid of one)."""

SERVING = frozenset({State.READY, State.PAUSED, State.DRAINING})
"""States of a child that started well and was not asked to end."""

RESTING = frozenset({State.EMPTY, State.READY, State.PAUSED, State.DRAINING, State.FAILED})
"""States that last as long as nothing else is wanted."""

ENDING = frozenset({State.KILLED, State.EXITED})
"""States in which a child is as good as gone: nothing is left to be asked of it."""

VACANT = frozenset({State.EMPTY, State.BACKOFF, State.FAILED})
"""States without a process and without one to come by itself."""


def step(
    life: Life, event: Event, now: float, limits: Limits, until: float | None = None
) -> tuple[Life, tuple[Action, ...]]:
    """One event -> the new life and what to do. `until` is the deadline that STOP and BACK_OFF bring along (monotonic seconds)."""
    cell = TABLE[life.state][event]
    drained = _drained(life, event)
    if cell.to is None:
        return replace(life, drained=drained), cell.actions
    since = life.since if cell.to is life.state else now
    return Life(cell.to, since, _deadline(cell.to, now, limits, until), drained), cell.actions


def _drained(life: Life, event: Event) -> bool:
    if event is Event.DRAINED:
        return life.state is State.DRAINING or life.drained
    return life.drained and event not in (Event.RESUME, Event.GONE, Event.DRAIN)


def _deadline(state: State, now: float, limits: Limits, until: float | None) -> float | None:
    match state:
        case State.SPAWNING:
            return now + limits.spawn_s
        case State.STARTING:
            return now + limits.start_s
        case State.STOPPING:
            return now + limits.stop_s if until is None else until
        case State.KILLING:
            return now + limits.kill_s
        case State.KILLED:
            return now + limits.end_s
        case State.EXITED:
            return now + limits.judge_s
        case State.BACKOFF:
            return now if until is None else until
        case State.EMPTY | State.READY | State.PAUSED | State.DRAINING | State.FAILED:
            return None
