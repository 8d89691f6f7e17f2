"""ownership: what is served or declared stays, what is withdrawn or has lapsed goes, whatever the order of events."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest

from upnext.core.ownership import (
    ANNOUNCE_S,
    ANNOUNCER_LEASE_MS,
    GRACE_MS,
    LAPSE_MS,
    SKEW_AFTER_MS,
    Announcer,
    Definition,
    Fate,
    claimants,
    fate,
    living,
    owner_of,
    skews,
)
from upnext.core.spec import TaskKind

NOW = 10_000_000_000
DAY_MS = 86_400_000
CRON = Definition("tidy", TaskKind.CRON, "shop", generation_ms=100, seen_ms=NOW, daemon="d1")


def announcer(
    name: str = "d1",
    *,
    generation_ms: int = 200,
    declares: Collection[str] = (),
    serves: Collection[str] = (),
    service: str = "shop",
) -> Announcer:
    stated = dict.fromkeys((*declares, *serves), "()")
    return Announcer(name, service, generation_ms, NOW + 1, stated, frozenset(serves))


def aged(definition: Definition, ms: int) -> Definition:
    return replace(definition, seen_ms=NOW - ms)


def decide(definition: Definition, *announcers: Announcer, served: Collection[str] = ()) -> Fate:
    return fate(definition, announcers, served, NOW)


def test_newer_code_of_the_same_daemon_withdraws_at_once() -> None:
    assert decide(CRON, announcer()) is Fate.WITHDRAWN


def test_what_is_served_stays_whatever_newer_code_says() -> None:
    assert decide(CRON, announcer(), announcer("d2", generation_ms=50, serves=["tidy"])) is Fate.KEPT
    assert decide(CRON, announcer(), served=["tidy"]) is Fate.KEPT


def test_only_splits_declare_for_each_other() -> None:
    assert decide(aged(CRON, DAY_MS), announcer("d2", declares=["tidy"], serves=["else"])) is Fate.KEPT


def test_older_code_withdraws_nothing() -> None:
    assert decide(CRON, announcer("d2", generation_ms=99)) is Fate.KEPT


def test_another_service_has_no_say() -> None:
    assert decide(CRON, announcer("d2", service="mail")) is Fate.KEPT


def test_a_daemon_that_may_be_restarting_is_waited_for() -> None:
    newer = announcer("d2")
    assert decide(aged(CRON, GRACE_MS), newer) is Fate.KEPT
    assert decide(aged(CRON, GRACE_MS + ANNOUNCER_LEASE_MS), newer) is Fate.LAPSED
    handler = replace(aged(CRON, GRACE_MS + ANNOUNCER_LEASE_MS), kind=TaskKind.EVENT)
    assert decide(handler, newer) is Fate.LAPSED


def test_one_that_never_comes_back_is_not() -> None:
    assert decide(replace(CRON, daemon=None), announcer("d2")) is Fate.WITHDRAWN


@pytest.mark.parametrize("kind", TaskKind)
def test_each_kind_lapses_in_its_time(kind: TaskKind) -> None:
    definition = replace(CRON, kind=kind)
    limit_ms = LAPSE_MS[kind] + ANNOUNCER_LEASE_MS
    assert decide(aged(definition, limit_ms - 1)) is Fate.KEPT
    assert decide(aged(definition, limit_ms)) is Fate.LAPSED


def test_passing_code_leaves_nothing() -> None:
    passing = replace(CRON, passing=True)
    assert decide(passing) is Fate.LAPSED
    assert decide(passing, served=["tidy"]) is Fate.KEPT
    assert decide(passing, announcer("d2", declares=["tidy"])) is Fate.KEPT


def test_who_claims_a_name() -> None:
    one, other = announcer("d1", serves=["a"]), announcer("d2", declares=["a", "b"])
    assert claimants("a", [one, other]) == [one, other]
    assert claimants("b", [one, other]) == [other]
    assert claimants("c", [one, other]) == []


def test_a_lease_counts_until_its_end() -> None:
    assert living([announcer()], NOW) == [announcer()]
    assert living([announcer()], NOW + 1) == []


def test_rows_of_older_versions_have_their_owner_elsewhere() -> None:
    assert owner_of({"owner": "shop/worker"}) == "shop/worker"
    assert owner_of({"service": "worker"}) == "worker"
    assert owner_of({}) == ""


# --- skew


def stated(name: str, begun_ms: int, file: str, signature: str = "()") -> Announcer:
    return Announcer(
        name, "shop", begun_ms, NOW + 1, {"ship": signature}, frozenset({"ship"}), host=f"host-{name}", file=file
    )


def test_two_codes_side_by_side_for_long_are_a_skew() -> None:
    old = stated("d1", NOW - DAY_MS, "/r/1/shop.py")
    new = stated("d2", NOW - SKEW_AFTER_MS, "/r/2/shop.py", "(x)")
    found = skews([old, new], NOW)["ship"]
    assert (found.since_ms, found.files, found.signatures) == (
        NOW - SKEW_AFTER_MS,
        ("/r/1/shop.py", "/r/2/shop.py"),
        ("()", "(x)"),
    )
    assert found.hosts == ("host-d1", "host-d2")
    assert skews([old, replace(new, generation_ms=NOW - SKEW_AFTER_MS + 1)], NOW) == {}, "a rolling deploy"


def test_one_code_on_many_hosts_is_none() -> None:
    assert skews([stated(name, NOW - DAY_MS, "/shop.py") for name in "abc"], NOW) == {}
    other = replace(stated("d2", NOW - DAY_MS, "/mail.py"), service="mail")
    assert skews([stated("d1", NOW - DAY_MS, "/shop.py"), other], NOW) == {}


# --- the model: daemons of two services that start, stop, die, reload and split by --only, in any order


NAMES = {"c1": TaskKind.CRON, "c2": TaskKind.CRON, "h1": TaskKind.EVENT, "h2": TaskKind.EVENT, "t1": TaskKind.TASK}


@dataclass
class Daemon:
    name: str
    service: str
    generation_ms: int = 0
    declares: set[str] = field(default_factory=set)
    serves: set[str] = field(default_factory=set)
    up: bool = False


@dataclass
class World:
    """What the scripts keep, in plain values. A name is of one service: names are never shared here."""

    rng: random.Random
    now_ms: int = NOW
    daemons: list[Daemon] = field(default_factory=list)
    announcers: dict[str, Announcer] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)

    def names_of(self, service: str) -> list[str]:
        return [f"{service}.{name}" for name in NAMES]

    def start(self, daemon: Daemon) -> None:
        """New code, perhaps with --only."""
        names = self.names_of(daemon.service)
        daemon.declares = {name for name in names if self.rng.random() < 0.7}
        daemon.serves = {name for name in daemon.declares if self.rng.random() < 0.6}
        daemon.generation_ms = self.now_ms
        daemon.up = True
        for name in daemon.serves:
            known = self.definitions.get(name)
            if known is None or known.generation_ms <= daemon.generation_ms:
                kind = NAMES[name.rpartition(".")[2]]
                self.definitions[name] = Definition(
                    name, kind, daemon.service, daemon.generation_ms, self.now_ms, daemon.name
                )
        self.announce(daemon)

    def announce(self, daemon: Daemon) -> None:
        self.announcers[daemon.name] = Announcer(
            daemon.name, daemon.service, daemon.generation_ms, self.now_ms + ANNOUNCER_LEASE_MS,
            dict.fromkeys(daemon.declares, "()"), frozenset(daemon.serves),
        )  # fmt: skip
        for name in daemon.declares & self.definitions.keys():
            self.definitions[name] = replace(self.definitions[name], seen_ms=self.now_ms)

    def stop(self, daemon: Daemon, *, cleanly: bool) -> None:
        daemon.up = False
        if cleanly:
            self.announcers.pop(daemon.name, None)

    def pass_time(self, ms: int) -> None:
        """The living announce meanwhile, as often as they do."""
        until = self.now_ms + ms
        if ms < 10 * DAY_MS // 100:
            while self.now_ms < until:
                self.now_ms = min(until, self.now_ms + int(ANNOUNCE_S * 1000))
                self.announce_all()
        self.now_ms = until
        self.announce_all()

    def announce_all(self) -> None:
        for daemon in self.daemons:
            if daemon.up:
                self.announce(daemon)

    def tidy(self) -> set[str]:
        alive = living(self.announcers.values(), self.now_ms)
        served = {name for daemon in self.daemons if daemon.up for name in daemon.serves}
        gone = {
            name
            for name, definition in self.definitions.items()
            if fate(definition, alive, served, self.now_ms) is not Fate.KEPT
        }
        for name in gone:
            del self.definitions[name]
        return gone

    def up(self, service: str) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon.up and daemon.service == service]


@pytest.mark.parametrize("seed", range(200))
def test_nothing_that_is_served_or_declared_disappears_and_the_rest_does(seed: int) -> None:
    world = World(random.Random(seed))
    world.daemons = [Daemon("d1", "shop"), Daemon("d2", "shop"), Daemon("d3", "mail"), Daemon("d4", "mail")]
    for _ in range(60):
        daemon = world.rng.choice(world.daemons)
        match world.rng.randrange(4):
            case 0 | 1:
                world.start(daemon)
            case 2:
                world.stop(daemon, cleanly=world.rng.random() < 0.6)
            case _:
                world.pass_time(world.rng.choice([1_000, 15_000, 40_000, 100_000, 200_000]))
        world.now_ms += 1
        before = dict(world.definitions)
        gone = world.tidy()
        for service in ("shop", "mail"):
            up = world.up(service)
            newest = max(up, key=lambda one: one.generation_ms, default=None)
            for one in up:
                assert not gone & one.serves, "served"
                assert one.serves <= world.definitions.keys(), "served"
            if newest is not None:
                assert not gone & newest.declares, "declared by the newest"
        for name in gone:
            definition = before[name]
            away_ms = world.now_ms - definition.seen_ms
            newer = [one for one in world.up(definition.service) if one.generation_ms > definition.generation_ms]
            lapses_ms = LAPSE_MS[definition.kind]
            assert (
                newer
                or away_ms > lapses_ms
                or any(
                    one.generation_ms > definition.generation_ms
                    for one in living(world.announcers.values(), world.now_ms)
                )
            ), "taken by older code, or before its time"

    # however it went: time alone ends what nobody declares, and spares what is declared
    world.pass_time(ANNOUNCER_LEASE_MS + GRACE_MS + 60_000)
    world.tidy()
    for name, definition in world.definitions.items():
        up = world.up(definition.service)
        newest = max(up, key=lambda one: one.generation_ms, default=None)
        if any(name in one.serves for one in up) or (newest is not None and name in newest.declares):
            continue
        assert not (newest and newest.generation_ms > definition.generation_ms), "withdrawn, and still there"
        assert definition.kind is not TaskKind.CRON or any(name in one.declares for one in up), (
            "lapsed, and still there"
        )
    world.pass_time(8 * DAY_MS)
    world.tidy()
    declared = {name for daemon in world.daemons if daemon.up for name in daemon.declares}
    assert world.definitions.keys() <= declared
