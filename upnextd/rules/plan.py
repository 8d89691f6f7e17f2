"""What should be, what is, and the difference: desired state, restart policy, crash-loop cut-off. Pure; now and rng are arguments.

Commands and signals edit `Desired` and nothing else. `reconcile` compares it with the instances there are and says what to post to
which; it is idempotent, so the supervisor calls it after every change and at every tick.

An instance is one life line of a slot. A slot normally has one; while a child is being replaced it has the old one, which serves until
its successor is READY, and the new one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from upnext.control.slot_names import api_slots, worker_slots
from upnextd.rules.slots import ENDING, SERVING, VACANT, Event, State

BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 30.0
SCHEDULER_BACKOFF_MOST_S = 3.0
"""Without a scheduler, the leases of workers that are well run out."""
BACKOFF_JITTER = 0.2
PROVEN_S = 5.0
"""A child that was READY this long is no sign of a crash loop."""
CRASH_WINDOW_S = 60.0
WORKERS_CAP = 1000
REPLACEMENT_GRACE_S = 1.0
"""What a replaced scheduler gets to end by itself."""
FLUSH_GRACE_S = 10.0
"""What a drained worker gets to end by itself: exporters and log queues send what they hold back."""
QUARANTINE = "quarantine-1"
"""The slot of the worker that runs suspects of a crash, one at a time. It counts neither as desired nor as ready."""
QUARANTINE_IDLE_S = 5.0
"""It stays for so long after the last suspect."""


class Role(StrEnum):
    """What a child is for."""

    WORKER = "worker"
    SCHEDULER = "scheduler"
    API = "api"


class Mode(StrEnum):
    """What the operator wants of the workers."""

    RUN = "run"
    PAUSE = "pause"
    DRAIN = "drain"
    DRAIN_EXIT = "drain, then exit"
    STOP = "stop"
    STOP_NOW = "stop now"

    @property
    def drains(self) -> bool:
        return self in (Mode.DRAIN, Mode.DRAIN_EXIT)


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be. `stop_by` is the monotonic second by which workers must have ended, once the mode is STOP."""

    workers: int
    generation: int
    scheduler_generation: int
    has_workers: bool = True
    """The service declares Workers; else no worker is started, whatever number is wanted."""
    mode: Mode = Mode.RUN
    scheduler: bool = True
    surge: int = 1
    """How many replacements may be on their way at once; 0 holds a rollout."""
    stop_by: float | None = None
    leave_s: float = 3600.0
    """How long a replaced child may take to finish what runs."""
    quarantine: bool = False
    """Suspects of a crash wait or run."""
    canary: int | None = None
    """A generation that is being tried: one worker of it is wanted, beside all the others."""
    canary_has_workers: bool = True
    """Its code declares Workers; else its Apis alone are tried."""
    stand_in: int | None = None
    """A generation whose children count as good, and fill empty slots, because the wanted one can't have new ones."""
    apis: tuple[tuple[str, int], ...] = ()
    """Names of the Apis that serve, and of how many processes each."""
    api_generation: int = 1
    next_apis: tuple[str, ...] = ()
    """Apis of a generation on its way in: one process of each is prepared beside those that serve, and takes no connection yet."""
    apis_by: float | None = None
    """The monotonic second by which Apis must have ended, once the mode is STOP: before the workers, for requests may await jobs."""
    renewed: tuple[tuple[str, int], ...] = ()
    """Slots that were asked to restart, each with the id of the newest instance that is to be replaced."""

    @property
    def stopping(self) -> bool:
        return self.mode in (Mode.STOP, Mode.STOP_NOW)

    @property
    def worker_slots(self) -> list[str]:
        """The slots that workers are wanted in."""
        return worker_slots(self.workers) if self.has_workers else []


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What is, of one instance. `outdated`: to be replaced; `leave_by`: replaced or not wanted, to be gone by then (monotonic s)."""

    id: int
    slot: str
    role: Role
    generation: int
    state: State
    drained: bool = False
    outdated: bool = False
    leave_s: float | None = None
    """How long it may take to leave, where that is not the desired state's `leave_s`."""
    leave_by: float | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """Make a new instance."""

    slot: str
    role: Role
    generation: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget an instance without a child."""

    instance: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Mark an instance as leaving by `by` (monotonic seconds)."""

    instance: int
    by: float


@dataclass(frozen=True, slots=True)
class Post:
    """Post an event to an instance; `until` as in `upnextd.rules.slots.step`."""

    instance: int
    event: Event
    until: float | None = None


Step = Add | Drop | Leave | Post


def renew(desired: Desired, marks: Mapping[str, int]) -> Desired:
    """Have the children of these slots replaced: all instances of a slot up to the id that `marks` gives for it."""
    return replace(desired, renewed=tuple((dict(desired.renewed) | dict(marks)).items()))


def is_outdated(desired: Desired, instance: InstanceView) -> bool:
    """A restart was asked for since it was made, or it has marked itself as used up."""
    return instance.outdated or any(slot == instance.slot and instance.id <= newest for slot, newest in desired.renewed)


def signalled_workers(workers: int, by: int) -> int:
    """One more or one less by a signal: not over the cap, and the last one stays."""
    return min(max(workers + by, min(workers, 1)), WORKERS_CAP)


def reconcile(desired: Desired, instances: Sequence[InstanceView], now: float) -> list[Step]:
    """What to do so that what is becomes what should be. Empty when it is."""
    workers = [instance for instance in instances if instance.role is Role.WORKER]
    quarantine = [instance for instance in workers if instance.slot == QUARANTINE]
    scheduler = [instance for instance in instances if instance.role is Role.SCHEDULER]
    apis = [instance for instance in instances if instance.role is Role.API]
    steps: list[Step] = []
    if desired.stopping:
        for instance in apis:
            steps += _end(instance, desired, desired.apis_by)
        held = desired.mode is Mode.STOP and any(instance.state not in VACANT for instance in apis)
        for instance in workers if not held else ():
            steps += _end(instance, desired, desired.stop_by)
    else:
        steps += _reconcile_apis(desired, apis, now)
        on_trial = [
            instance for instance in workers if instance.generation == desired.canary and instance.leave_by is None
        ]
        if desired.canary is not None and desired.canary_has_workers:
            steps += _try_out(desired.canary, on_trial)
        others = [instance for instance in workers if instance not in on_trial and instance not in quarantine]
        steps += _fill(desired.worker_slots, Role.WORKER, desired.generation, others, desired, now)
        # While the operator wants no job to start, it is not wanted: what it runs ends first.
        apart = [QUARANTINE] if desired.quarantine and desired.mode is Mode.RUN else []
        steps += _fill(apart, Role.WORKER, desired.generation, quarantine, desired, now)
        for instance in workers:
            steps += _see_off(instance, now) if instance.leave_by is not None else _set_mode(instance, desired.mode)
    wanted = ["scheduler"] if desired.scheduler else []
    steps += _fill(wanted, Role.SCHEDULER, desired.scheduler_generation, scheduler, desired, now)
    for instance in scheduler:
        if instance.leave_by is not None:
            steps += _see_off(instance, now)
    return steps


def _try_out(generation: int, instances: Sequence[InstanceView]) -> list[Step]:
    """One worker of the generation on trial. What becomes of one that ends is not decided here."""
    if not instances:
        return [Add("worker-1", Role.WORKER, generation)]
    return [Post(instance.id, Event.SPAWN) for instance in instances[:1] if instance.state is State.EMPTY]


def _fill(
    wanted: Sequence[str], role: Role, generation: int, instances: Sequence[InstanceView], desired: Desired, now: float
) -> list[Step]:
    """Give every wanted slot a current instance; have every one that is not wanted leave."""
    steps: list[Step] = []
    staying = [instance for instance in instances if instance.leave_by is None]
    current: dict[str, InstanceView] = {}
    newcomer = generation if desired.stand_in is None else desired.stand_in
    outdated = [instance for instance in staying if not _is_good(instance, generation, newcomer, desired)]
    for instance in sorted(staying, key=lambda instance: instance.generation != generation):
        if instance not in outdated:
            current.setdefault(instance.slot, instance)
    # A vacant one has no child to keep until its successor serves.
    replaced = {instance.slot for instance in outdated if instance.state not in VACANT}
    on_the_way = sum(slot in replaced and instance.state not in SERVING for slot, instance in current.items())
    for slot in wanted:
        instance = current.get(slot)
        if instance is None:
            if slot not in replaced:
                steps.append(Add(slot, role, newcomer))
            elif on_the_way < desired.surge:
                steps.append(Add(slot, role, newcomer))
                on_the_way += 1
        elif instance.state is State.EMPTY:
            steps.append(Post(instance.id, Event.SPAWN))
    for instance in staying:
        successor = current.get(instance.slot)
        twin = successor is not None and successor is not instance and instance not in outdated
        if (
            instance.slot not in wanted
            or twin
            or (instance in outdated and successor is not None and successor.state in SERVING)
        ):
            steps.append(Leave(instance.id, now + (desired.leave_s if instance.leave_s is None else instance.leave_s)))
        elif instance in outdated and instance.state in VACANT:
            # It died before its successor was there: nothing is left to hold on to.
            steps.append(Drop(instance.id))
    return steps


def _is_good(instance: InstanceView, generation: int, newcomer: int, desired: Desired) -> bool:
    """It may stay: it is of the wanted generation, or of its stand-in; of the wanted one, only with a child then."""
    if is_outdated(desired, instance):
        return False
    if newcomer == generation:
        return instance.generation == generation
    return instance.generation == newcomer or (instance.generation == generation and instance.state not in VACANT)


def _see_off(instance: InstanceView, now: float) -> list[Step]:
    """One step of a leaving instance towards its end: drain, stop, drop."""
    if instance.state in VACANT:
        return [Drop(instance.id)]
    if instance.leave_by is not None and now >= instance.leave_by and instance.state not in ENDING:
        return [Post(instance.id, Event.KILL)]
    if instance.role is Role.SCHEDULER and instance.state in SERVING:
        return [Post(instance.id, Event.STOP, now + REPLACEMENT_GRACE_S)]
    if instance.role is Role.API and instance.state in SERVING:
        return [Post(instance.id, Event.STOP, instance.leave_by)]
    if instance.state in (State.SPAWNING, State.STARTING):
        return [Post(instance.id, Event.STOP)]
    if instance.drained and instance.state is State.PAUSED:
        return [Post(instance.id, Event.STOP, now + FLUSH_GRACE_S)]
    if instance.state in (State.READY, State.PAUSED):
        return [Post(instance.id, Event.DRAIN)]
    return []


def _reconcile_apis(desired: Desired, instances: Sequence[InstanceView], now: float) -> list[Step]:
    """Those that serve, and those of a generation on its way in, which wait for their turn."""
    coming = desired.generation if desired.canary is None else desired.canary
    waiting = [
        instance
        for instance in instances
        if instance.generation == coming != desired.api_generation and instance.leave_by is None
    ]
    steps: list[Step] = []
    for name in desired.next_apis if coming != desired.api_generation else ():
        slot = api_slots([(name, 1)])[0]
        ready = [instance for instance in waiting if instance.slot == slot]
        steps += (
            [Add(slot, Role.API, coming)]
            if not ready
            else [Post(instance.id, Event.SPAWN) for instance in ready[:1] if instance.state is State.EMPTY]
        )
    others = [instance for instance in instances if instance not in waiting]
    steps += _fill(api_slots(desired.apis), Role.API, desired.api_generation, others, desired, now)
    for instance in instances:
        if instance.leave_by is not None:
            steps += _see_off(instance, now)
        elif instance.state is State.PAUSED and instance.generation == desired.api_generation:
            steps.append(Post(instance.id, Event.RESUME))
    return steps


def _end(instance: InstanceView, desired: Desired, by: float | None) -> list[Step]:
    if instance.state in VACANT:
        return [Drop(instance.id)]
    if desired.mode is Mode.STOP_NOW:
        return [] if instance.state in ENDING else [Post(instance.id, Event.KILL)]
    if instance.state in SERVING or instance.state in (State.SPAWNING, State.STARTING):
        return [Post(instance.id, Event.STOP, by)]
    return []


def _set_mode(instance: InstanceView, mode: Mode) -> list[Step]:
    if mode is Mode.RUN and instance.state in (State.PAUSED, State.DRAINING):
        return [Post(instance.id, Event.RESUME)]
    if mode is Mode.PAUSE and instance.state is State.READY:
        return [Post(instance.id, Event.PAUSE)]
    if mode.drains and not instance.drained and instance.state in (State.READY, State.PAUSED):
        return [Post(instance.id, Event.DRAIN)]
    return []


class Cause(StrEnum):
    """What kind of bad end it was. Each kind has a budget of its own, for each role."""

    FORK = "died inside the fork"
    START = "reported why it can't start"
    DEATH = "ended without a word"


@dataclass(frozen=True, slots=True)
class Exit:
    """What the restart policy needs to know of an ended child."""

    asked: bool = False
    """We asked it to end, or it is being replaced."""
    ran_job: bool = False
    ready_for_s: float | None = None
    blameless: bool = False
    """It couldn't start for reasons outside of the service: no fork, no broker."""
    role: Role = Role.WORKER
    cause: Cause = Cause.DEATH

    @property
    def budget(self) -> str:
        return f"{self.role}: {self.cause}"


@dataclass(frozen=True, slots=True)
class Record:
    """What the policy remembers: bad exits in a row per slot, and when which budget's bad exits were (monotonic s)."""

    streaks: tuple[tuple[str, int], ...] = ()
    bad_exits: tuple[tuple[str, float], ...] = ()

    def streak(self, slot: str) -> int:
        return dict(self.streaks).get(slot, 0)

    def with_streak(self, slot: str, streak: int) -> Record:
        streaks = dict(self.streaks)
        streaks[slot] = streak
        return replace(self, streaks=tuple(streaks.items()))

    def spent(self, budget: str) -> int:
        """How many bad exits a budget had lately."""
        return sum(name == budget for name, _ in self.bad_exits)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the slot: AGAIN, BACK_OFF until `until`, or GIVE_UP, which may be softened to that."""

    event: Event
    until: float | None = None
    looping: bool = False
    """Its budget is used up."""

    def softened(self) -> Verdict:
        """Go on trying, for there are others to be spared."""
        return replace(self, event=Event.BACK_OFF)


def is_proven(ended: Exit) -> bool:
    """It did something: it ran a job, or was READY for 5 s."""
    return ended.ran_job or (ended.ready_for_s is not None and ended.ready_for_s >= PROVEN_S)


def is_bad(ended: Exit) -> bool:
    """It ended by itself without having done anything, and nothing but the service can be to blame."""
    return not (ended.asked or ended.blameless or is_proven(ended))


def judge(
    record: Record, slot: str, ended: Exit, workers: int, now: float, rng: random.Random, *, others_work: bool = False
) -> tuple[Verdict, Record]:
    """Replace at once, later, or not at all.

    A child that was asked to end, ran a job or was READY for 5 s counts for nothing. Others back off, and more than max(5, 3 × workers) of
    them in 60 s, of one role and one kind, are a crash loop. It is given up only when no worker of its generation works (`others_work`).
    """
    if ended.asked or is_proven(ended):
        return Verdict(Event.AGAIN), record.with_streak(slot, 0)
    streak = record.streak(slot) + 1
    record = record.with_streak(slot, streak)
    later = Verdict(Event.BACK_OFF, now + backoff_s(streak, rng, ended.role))
    if ended.blameless:
        return later, record
    recent = tuple((budget, at) for budget, at in record.bad_exits if at > now - CRASH_WINDOW_S)
    record = replace(record, bad_exits=(*recent, (ended.budget, now)))
    if record.spent(ended.budget) <= max(5, 3 * workers if ended.role is Role.WORKER else 0):
        return later, record
    return replace(later, event=later.event if others_work else Event.GIVE_UP, looping=True), record


def backoff_s(streak: int, rng: random.Random, role: Role = Role.WORKER) -> float:
    """0.25 s, doubling to 30 s (3 s for a scheduler), ±20 %."""
    most_s = BACKOFF_MOST_S if role is Role.WORKER else SCHEDULER_BACKOFF_MOST_S
    plain_s = min(most_s, BACKOFF_FIRST_S * 2 ** min(streak - 1, 16))
    return plain_s * rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
