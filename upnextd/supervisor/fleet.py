"""Everything of a daemon that survives an upgrade, as plain values, and the views of it. No loop, no I/O.

The supervisor's actors share one fleet. Processes and descriptors are held by what stands in it (`Child`, `Generation`, the broker).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from upnext.address import Address
from upnext.control.slot_names import api_of, api_slots
from upnext.core.counted import counted
from upnextd.broker.embedded import EmbeddedBroker
from upnextd.metrics.counters import Counters
from upnextd.rules import hangs, plan, rollout, slots
from upnextd.rules.plan import Desired, Mode, Role
from upnextd.rules.slots import Life, State
from upnextd.shared import log_records, messages
from upnextd.shared.messages import DeclaredApi
from upnextd.supervisor.activity import Activity
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import LastExit, PendingDeathNotices
from upnextd.supervisor.generations import Generation
from upnextd.supervisor.generations import Phase as TemplatePhase
from upnextd.supervisor.instances import Ending, Instance, SchedulerStatus, SlotHistory
from upnextd.supervisor.listeners import Listeners
from upnextd.supervisor.operations import Operations

_TAIL_LINES = 60

Json = dict[str, Any]

LONG_START_S = 5.0
"""A child that is not ready after so long is shown as a problem."""


@dataclass(slots=True, eq=False)
class Rollout:
    """One reload. `why` and `detail` say what broke it: a line, and a traceback or last words."""

    generation: int
    former: int
    phase: rollout.Phase = rollout.Phase.QUEUED
    why: str = ""
    detail: str = ""
    tail: deque[str] = field(default_factory=lambda: deque[str](maxlen=_TAIL_LINES))


@dataclass(slots=True)
class Rollouts:
    """One reload has its turn; one more may wait for it, the newest."""

    current: Rollout | None = None
    """The latest that had its turn."""
    queued: Rollout | None = None
    former: int | None = None
    """The generation before this one, whose template is kept alive."""
    last_number: int = 1
    """Of the newest generation that was ever tried."""

    @property
    def active(self) -> bool:
        return self.current is not None and self.current.phase not in rollout.OVER

    @property
    def under_way(self) -> bool:
        return self.queued is not None or self.active

    def on_trial(self, generation: int) -> bool:
        """Whether it is of a reload that isn't committed."""
        return self.current is not None and self.active and self.current.generation == generation

    def keep_line(self, generation: int, line: str) -> None:
        """Keep a line that a child of a generation on trial printed."""
        if self.current is not None and self.on_trial(generation):
            record = log_records.parse(line)
            if record is not None:
                line = f"{record.level}: {record.logger}: {record.message}" if record.logger else record.message
            self.current.tail.append(line)


@dataclass(slots=True, eq=False)
class Fleet:
    """The daemon's state. Times are monotonic seconds, unless the name says Unix milliseconds (`_ms`)."""

    name: str
    daemon_id: str
    mark: str
    """What the daemon's processes carry in their environment: what a job leaves behind is found by it. It outlives a rename."""
    desired: Desired
    since_ms: int
    since_s: float
    redis_url: str | None = None
    """Where the queue is, if a flag says so."""
    instances: list[Instance] = field(default_factory=list[Instance])
    history: dict[str, SlotHistory] = field(default_factory=dict[str, SlotHistory])
    generations: dict[int, Generation] = field(default_factory=dict[int, Generation])
    contents: dict[int, str] = field(default_factory=dict[int, str])
    """generation -> what its first template loaded."""
    broker: EmbeddedBroker | None = None
    listeners: Listeners = field(kw_only=True)
    """Where the Apis take connections."""
    rollouts: Rollouts = field(default_factory=Rollouts)
    record: plan.Record = field(default_factory=plan.Record)
    """What the restart policy remembers."""
    pending_notices: PendingDeathNotices = field(default_factory=PendingDeathNotices)
    """The deaths that no scheduler has settled yet."""
    scheduler_status: SchedulerStatus = field(default_factory=SchedulerStatus)
    operations: Operations = field(default_factory=Operations)
    counters: Counters = field(default_factory=Counters)
    activity: Activity = field(default_factory=lambda: Activity(0))
    """Not handed over by an upgrade: the program after us counts its own."""
    ending: Ending = field(default_factory=Ending)
    is_open: bool = False
    """The first import is done, and there is a broker: children may start."""
    opened_at: float = 0.0
    booted: bool = False
    """Every desired worker and the scheduler were ready once."""
    missing: dict[int, str] = field(default_factory=dict[int, str])
    """generation -> why it has no template."""
    waiting: str = ""
    """What children that can't start wait for, in one line; empty when they wait for nothing."""
    lifespan_fails: bool = False
    """Children of the committed code can't start for it; newer code may be the cure."""
    last_id: int = 0

    def next_id(self) -> int:
        """Give a number that no instance and no child of this daemon had before."""
        self.last_id += 1
        return self.last_id

    def start_failed(self, instance: Instance, why: str) -> None:
        """Keep why the child of a slot did not get ready, until one does. Of code on trial, the reload says so."""
        if not self.rollouts.on_trial(instance.generation):
            self.history.setdefault(instance.slot, SlotHistory()).start_failure = why

    def forgive(self, late_s: float) -> None:
        """Move everything that is due by the time for which the supervisor did not run."""
        if self.desired.stop_by is not None:
            self.desired = replace(self.desired, stop_by=self.desired.stop_by + late_s)
        if self.desired.apis_by is not None:
            self.desired = replace(self.desired, apis_by=self.desired.apis_by + late_s)
        for generation in self.generations.values():
            generation.forgive(late_s)
        for instance in self.instances:
            if instance.leave_by is not None:
                instance.leave_by += late_s
            if instance.life.deadline is not None:
                instance.life = replace(instance.life, deadline=instance.life.deadline + late_s)
            if instance.child is not None:
                instance.child.heart = hangs.forgive(instance.child.heart, late_s)

    # -- views --

    def api(self, generation: int, slot: str) -> DeclaredApi | None:
        """The Api of a slot, as its generation declares it."""
        found = self.generations.get(generation)
        return next((api for api in found.apis if api.name == api_of(slot)), None) if found is not None else None

    def served(self) -> list[tuple[DeclaredApi, int]]:
        """Each Api that is to serve, as declared, and in how many processes."""
        found = self.generations.get(self.desired.api_generation)
        declared = {api.name: api for api in (found.apis if found is not None else ())}
        return [(declared[name], processes) for name, processes in self.desired.apis if name in declared]

    def where_apis(self) -> str:
        """Where the Apis are served, for people: `front at http://127.0.0.1:8000, …`; empty without Apis."""
        return ", ".join(f"{api.name} at {self.listeners.url(api)}" for api, _ in self.served())

    def has_workers(self, generation: int) -> bool:
        """Whether the code of a generation declares Workers."""
        found = self.generations.get(generation)
        return found is None or bool(found.shapes)

    def ready_apis(self, generation: int) -> bool:
        """Whether every wanted process of the Apis takes connections."""
        ready = {
            s.slot
            for s in self.instances
            if s.role is Role.API and s.generation == generation and s.leave_by is None and s.life.state is State.READY
        }
        return ready.issuperset(api_slots(self.desired.apis))

    @property
    def workers(self) -> list[Instance]:
        """Those that count as desired: not the quarantine child, which comes and goes by itself."""
        return [instance for instance in self.instances if instance.counts]

    @property
    def serving(self) -> list[Instance]:
        """The desired workers, and the Apis' processes: what a restart of everything replaces."""
        return [instance for instance in self.instances if instance.counts or instance.role is Role.API]

    def ready_workers(self) -> int:
        """Count the slots whose child serves, or is paused because the operator wants it."""
        fine = {State.READY} if self.desired.mode is Mode.RUN else slots.SERVING
        return len({s.slot for s in self.workers if s.leave_by is None and s.life.state in fine})

    def running_jobs(self) -> int:
        return sum(child.page.busy() for child in self.children(Role.WORKER))

    def mode(self) -> str:
        """As `status` shows it."""
        if self.desired.stopping:
            return "stopping"
        if self.rollouts.under_way:
            return "reloading"
        if self.desired.mode is Mode.PAUSE:
            return "paused"
        if self.desired.mode.drains:
            return "drained" if self.drained() else "draining"
        return "running"

    def drained(self) -> bool:
        """Whether nothing runs and nothing is pending in any worker."""
        return all(
            s.life.state in slots.VACANT or (s.life.state is State.PAUSED and s.life.drained)
            for s in self.instances
            if s.role is Role.WORKER
        )

    def one_line(self) -> str:
        workers = len(self.desired.worker_slots)
        wanted = f"{self.ready_workers()}/{workers} workers ready"
        return (
            f"{self.name}: {self.mode()}, {wanted if workers else 'no workers wanted'},"
            f" generation {self.desired.generation}, {counted(self.running_jobs(), 'job')} running"
        )

    def instance_of(self, token: int) -> Instance | None:
        return next((s for s in self.instances if s.child is not None and s.child.token == token), None)

    def staying(self, generation: int, role: Role) -> list[Instance]:
        """The serving instances of a generation that are not being replaced, without the quarantine child."""
        return [
            instance
            for instance in self.instances
            if instance.generation == generation
            and instance.role is role
            and instance.slot != plan.QUARANTINE
            and instance.leave_by is None
            and instance.life.state in slots.SERVING
        ]

    def children(self, role: Role) -> list[Child]:
        return [
            s.child
            for s in self.instances
            if s.role is role and s.child is not None and s.life.state is not State.EXITED
        ]

    def is_outdated(self, instance: Instance) -> bool:
        """Whether it is to be replaced, by an operator's wish or for what it has used up."""
        return plan.is_outdated(self.desired, instance.view())

    def is_wanted(self, generation: int) -> bool:
        """Whether workers or the scheduler are to be of this generation."""
        return generation in (self.desired.generation, self.desired.scheduler_generation, self.desired.api_generation)

    def wanted_generation(self, role: Role) -> int:
        match role:
            case Role.WORKER:
                return self.desired.generation
            case Role.SCHEDULER:
                return self.desired.scheduler_generation
            case Role.API:
                return self.desired.api_generation

    def template(self, generation: int | None) -> Generation | None:
        """The template of a generation that can fork children; None: there is none, or it can't."""
        found = None if generation is None else self.generations.get(generation)
        able = found is not None and found.phase is TemplatePhase.READY and not found.retired
        return found if able else None

    def any_works(self, now: float, generation: int | None = None, *, apis: bool = False) -> bool:
        """Whether a worker that did something serves, or one runs a job; of this generation, those that are to stay only.

        With `apis`, their processes count, too.
        """
        for instance in self.instances:
            counts = instance.role is Role.WORKER or (apis and instance.role is Role.API)
            if not counts or instance.child is None:
                continue
            if generation is not None and (instance.generation != generation or instance.leave_by is not None):
                continue
            serves = instance.life.state in slots.SERVING and plan.is_proven(instance.as_exit(instance.child, now))
            if serves or (instance.life.state in slots.LIVING and instance.child.page.busy()):
                return True
        return False

    def template_problem(self) -> str | None:
        """Return why children can't be replaced by their like, for people; None when they can."""
        why = self.missing.get(self.desired.generation)
        if why is None:
            return None
        stand_in = self.desired.stand_in
        instead = (
            "no child can be replaced" if stand_in is None else f"generation {stand_in} replaces children that end"
        )
        return f"generation {self.desired.generation} has no template: {why}; {instead}"

    def problem(self, now: float) -> str | None:
        """Return what keeps children from being made or from starting, for people; None when nothing does. `now`: monotonic seconds."""
        return self.template_problem() or self.waiting or self._start_problem(now) or self._silent_api() or None

    def _start_problem(self, now: float) -> str:
        """Return which child does not get ready, and why, as far as that is known."""
        serving = {instance.slot for instance in self.instances if instance.life.state in slots.SERVING}
        for instance in self.instances:
            slot, child = instance.slot, instance.child
            if slot in serving or self.desired.stopping or instance.leave_by is not None:
                continue
            if (history := self.history.get(slot)) is not None and history.start_failure:
                return f"{self.name}: {slot} can't start: {history.start_failure}"
            if child is not None and instance.life.state is State.STARTING and now - child.born_at >= LONG_START_S:
                age_s = int(now - child.born_at)
                return f"{self.name}: {slot} is not ready {age_s} s after its start (`upnext ctl dump {slot}` shows where it is)"
        return ""

    def _silent_api(self) -> str:
        """Return which Api takes no connection although the daemon has started."""
        if not self.booted or self.desired.stopping:
            return ""
        ready = {api_of(s.slot) for s in self.instances if s.role is Role.API and s.life.state is State.READY}
        silent = [name for name, _ in self.desired.apis if name not in ready]
        return f"{self.name}: no process of the api {silent[0]} takes connections" if silent else ""

    def broker_url(self) -> str:
        """Where the queue is, by flag, the embedded broker, or the service itself; "" before that is known."""
        if self.redis_url is not None:
            return self.redis_url
        if self.broker is not None:
            return self.broker.url
        generation = self.generations.get(self.desired.generation)
        return next((url for url in generation.redis_urls if url), "") if generation is not None else ""

    # -- over an upgrade --

    def to_state(self) -> Json:
        """As JSON; without the children, the templates and the broker, which have descriptors."""
        return {
            "desired": dataclasses.asdict(self.desired) | {"mode": self.desired.mode.value},
            "daemon_id": self.daemon_id,
            "since_ms": self.since_ms,
            "since_s": self.since_s,
            "mark": self.mark,
            "ids": self.last_id,
            "instances": [_instance_to_state(instance) for instance in self.instances],
            "history": {
                slot: {
                    "incarnations": one.incarnations,
                    "restarts": one.restarts,
                    "start_failure": one.start_failure,
                    "last_exit": None if one.last_exit is None else one.last_exit.as_json(),
                }
                for slot, one in self.history.items()
            },
            "scheduler_status": dataclasses.asdict(self.scheduler_status),
            "notices": [messages.as_json(death) for death in self.pending_notices.pending],
            "operations": self.operations.to_state(),
            "tally": self.counters.to_state(),
            "record": dataclasses.asdict(self.record),
            "contents": list(self.contents.items()),
            "former": self.rollouts.former,
            "last_number": self.rollouts.last_number,
        }

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take in what `to_state` wrote: of a daemon that was up."""
        desired = dict(state["desired"])
        mode = Mode(desired.pop("mode"))
        renewed = tuple((slot, newest) for slot, newest in desired.pop("renewed"))
        apis = tuple((name, processes) for name, processes in desired.pop("apis"))
        next_apis = tuple(desired.pop("next_apis"))
        self.desired = Desired(**desired, mode=mode, renewed=renewed, apis=apis, next_apis=next_apis)
        self.daemon_id, self.mark = state["daemon_id"], state["mark"]
        self.since_ms, self.since_s = state["since_ms"], state["since_s"]
        self.last_id = state["ids"]
        self.instances = [_instance_from_state(one) for one in state["instances"]]
        for slot, one in state["history"].items():
            last = None if one["last_exit"] is None else LastExit(**one["last_exit"])
            self.history[slot] = SlotHistory(one["incarnations"], one["restarts"], last, one["start_failure"])
        self.scheduler_status = SchedulerStatus(**state["scheduler_status"])
        for death in state["notices"]:
            self.pending_notices.add(messages.from_json(messages.Died, death))
        self.operations = Operations.from_state(state["operations"])
        self.counters = Counters.from_state(state["tally"])
        record = state["record"]
        self.record = plan.Record(
            tuple((slot, streak) for slot, streak in record["streaks"]),
            tuple((budget, at) for budget, at in record["bad_exits"]),
        )
        self.contents = dict(state["contents"])
        self.rollouts = Rollouts(former=state["former"], last_number=state["last_number"])
        self.is_open = self.booted = True


def _instance_to_state(instance: Instance) -> Json:
    life = instance.life
    return {
        "id": instance.id,
        "slot": instance.slot,
        "role": instance.role.value,
        "generation": instance.generation,
        "life": [life.state.name, life.since, life.deadline, life.drained],
        "outdated": instance.outdated,
        "address": None if instance.address is None else dataclasses.asdict(instance.address),
        "leave_s": instance.leave_s,
        "leave_by": instance.leave_by,
        "reason": instance.reason,
    }


def _instance_from_state(state: Mapping[str, Any]) -> Instance:
    name, since, deadline, drained = state["life"]
    return Instance(
        state["id"],
        state["slot"],
        Role(state["role"]),
        state["generation"],
        Life(State[name], since, deadline, drained),
        outdated=state["outdated"],
        address=None if state["address"] is None else Address(**state["address"]),
        leave_s=state["leave_s"],
        leave_by=state["leave_by"],
        reason=state["reason"],
    )
