"""A seed: its plan, played in an order of events drawn from the seed, then calm until everything has settled."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import redis

from tests.support.queue_model.daemons import Daemon
from tests.support.queue_model.kernel import Ask, Change, Kernel, Scripts
from tests.support.queue_model.mishaps import Mishaps
from tests.support.queue_model.outside import Outside
from tests.support.queue_model.plan import FLOODED, STEPS, Mishap, plan_of
from tests.support.queue_model.truth import BrokenError, Truth
from tests.support.queue_model.world import Rules, World
from upnext.core.binding import Signature
from upnext.core.keys import Keys
from upnext.core.spec import TaskKind, TaskOptions, TaskSpec
from upnext.engine.calls import admin
from upnext.engine.redis.scripts import Call

SETTLING_STEPS = 6_000
SETTLING_S = 1_500
LIMIT = 3
_ID = re.compile(r"(\w+:[a-z])?\d{13}-\d+")
NOT_CHECKED = {"beat", "attach", "unowned_consumers", "own_pending"}
"""Scripts that move no job."""


def _spec(name: str, **options: Any) -> TaskSpec:
    return TaskSpec(name, TaskKind.TASK, print, False, Signature.of(lambda n: None), TaskOptions(**options))


class Play:
    def __init__(
        self, client: redis.Redis, seed: int, plan: Sequence[Mishap], rules: Rules, scripts: Scripts, namespace: str
    ) -> None:
        self._seed, self._plan, self._client = seed, plan, client
        rng = self._rng = random.Random(f"order {seed}")
        keys = Keys(namespace)
        specs = [_spec("free"), _spec("slim", max_concurrency=LIMIT), _spec("bulk"), _spec("slow", max_crashes=2)]
        limits = {"slim": LIMIT}
        raw = redis.Redis(connection_pool=client.connection_pool)
        raw.response_callbacks.clear()  # replies as the server gives them
        kernel = self.kernel = Kernel(raw, scripts, rng)
        self._truth = Truth(client, keys, [spec.name for spec in specs], limits)
        self._world = World(kernel, keys, self._truth, rules, specs, set(limits), rng)
        kernel.seen, kernel.label, kernel.arrives_late = self._seen, self._label, self._before_late
        self._names: dict[str, str] = {}
        self._outside = Outside(self._world)
        self._daemons: list[Daemon] = []
        self._mishaps = Mishaps(client, self._world, self._daemons, self._outside)

    # entry ids are the server's: a trace names them by the order in which they appeared

    def _label(self, text: str) -> str:
        return _ID.sub(lambda it: f"{it[1] or ''}{self._names.setdefault(it[0], f'#{len(self._names) + 1}')}", text)

    def _seen(self, ask: Ask, reply: Any) -> None:
        if isinstance(ask.what, int) or (not isinstance(ask.what, Call) and ask.what[0] == "HGET"):
            return
        name = ask.what.script.name if isinstance(ask.what, Call) else ""
        if name in NOT_CHECKED:
            return
        purging = ask.note.split()[3] if name.startswith("purge_") and name != "purge_dead" else ""
        self._truth.check(purging=purging, reviving=name in {"retry_dead", "purge_dead"})

    def _before_late(self, ask: Ask) -> None:
        """A read that finds its lane empty takes nothing: half of the late ones come right after a job."""
        if isinstance(ask.what, tuple) and ask.what[0] == "XREADGROUP" and self._rng.random() < 0.5:
            task, lane = ask.note.split()[3:5]
            self.kernel.deliver(self._outside.sudden(task, "high" if lane == "h" else "normal"))

    def run(self) -> None:
        self._begin()
        plan = list(self._plan)
        for step in range(STEPS):
            while plan and plan[0].step <= step:
                self._mishaps.happen(plan.pop(0))
            self.kernel.step()
        self._calm_down()
        self._settle()
        self._truth.check()
        if left := self._truth.unsettled():
            raise BrokenError(f"stuck: {[(job, self._truth.last.live[job]) for job in left]}")
        if left := self._truth.leaks():
            raise BrokenError(f"left behind: {left}")

    def _begin(self) -> None:
        flooded = self._seed % FLOODED < 2
        if slow := self._seed % FLOODED == 1:
            self.kernel.pace = 20
        for name in ("d1",) if flooded and not slow else ("d1", "d2"):
            self._daemons.append(Daemon(self._world, name))
            self._daemons[-1].new_worker()
        if flooded:
            for _ in range(35):
                self._outside.submit("free")
                self._outside.submit("bulk")
                self._outside.submit("slim")

    def _calm_down(self) -> None:
        """Nothing goes wrong any more, but what is late still arrives; one worker works."""
        kernel = self.kernel
        kernel.say("calm")
        kernel.calm, kernel.lose_next_reply = True, False
        self._mishaps.restore()
        self._world.paused.clear()
        self._resume_all()
        for daemon in self._daemons:
            if not daemon.host.dead:
                self._mishaps.freeze(daemon, False)
        if all(daemon.host.dead for daemon in self._daemons):
            self._daemons.append(Daemon(self._world, f"d{len(self._daemons) + 1}"))
        if not self._mishaps.awake_workers():
            next(d for d in self._daemons if not d.host.dead).new_worker()

    def _settle(self) -> None:
        kernel = self.kernel
        end_us = kernel.now_us + SETTLING_S * 1_000_000
        for step in range(SETTLING_STEPS):
            kernel.step()
            if step % 200 == 0 and self._client.scard(self._world.keys.paused):  # by a command that was late
                self._resume_all()
            if kernel.now_us > end_us:
                return
            if not self._truth.unsettled() and not kernel.late and self._producers_are_done() and self._no_graves():
                return

    def _resume_all(self) -> None:
        for task in self._world.names:
            self._outside.once("operator", admin.resume_task(self._world.keys, task), f"resume {task}")

    def _producers_are_done(self) -> bool:
        return not any(actor.name == "producer" and not actor.over for actor in self.kernel.actors)

    def _no_graves(self) -> bool:
        return self._rng.random() < 0.95 or not self._client.zcard(self._world.keys.graves)


def play(
    client: redis.Redis, seed: int, plan: Sequence[Mishap] | None = None, *, rules: Rules | None = None,
    change: Change | None = None, namespace: str = "model",
) -> list[str]:  # fmt: skip
    """-> the trace. Raises BrokenError (or what a machine raised) with the trace as its note."""
    client.flushdb()
    game = Play(
        client, seed, plan_of(seed) if plan is None else plan, rules or Rules(), Scripts(client, change), namespace
    )
    try:
        game.run()
    except Exception as error:  # of whatever kind: the trace belongs to it
        error.add_note("\n".join(game.kernel.trace))
        raise
    return game.kernel.trace


def shrink(client: redis.Redis, seed: int, tries: int = 300, **options: Any) -> list[Mishap]:
    """Drop parts of a failing seed's plan while it still fails. -> what is left"""

    def fails(plan: list[Mishap]) -> bool:
        try:
            play(client, seed, plan, **options)
        except Exception:  # noqa: BLE001 -- any failure counts
            return True
        return False

    plan = plan_of(seed)
    size = len(plan) // 2
    while size and tries > 0:
        at = 0
        while at < len(plan) and tries > 0:
            without = plan[:at] + plan[at + size :]
            tries -= 1
            if fails(without):
                plan = without
            else:
                at += size
        size //= 2
    return plan
