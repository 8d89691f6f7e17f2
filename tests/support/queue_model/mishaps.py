"""Carries out what is planned: wishes, commands of operators, deaths, cuts, clocks, lanes that take nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from tests.support.queue_model.daemons import Daemon
from tests.support.queue_model.outside import Outside
from tests.support.queue_model.plan import Mishap
from tests.support.queue_model.workers import Worker
from tests.support.queue_model.world import World
from upnext.engine.calls import admin
from upnext.engine.calls import client as client_calls

LAST_ID = "18446744073709551615-18446744073709551615"


def _pick(number: int, among: Sequence[Any]) -> Any:
    return among[number % len(among)] if among else None


class Mishaps:
    def __init__(self, client: redis.Redis, world: World, daemons: list[Daemon], outside: Outside) -> None:
        self._client, self._world, self._daemons, self._outside = client, world, daemons, outside
        self._exhausted: dict[str, str] = {}
        self._garbled: dict[str, bytes] = {}

    def awake_workers(self) -> list[Worker]:
        return [w for d in self._daemons if not d.host.dead and not d.host.frozen for w in d.workers if not w.host.dead]

    def happen(self, it: Mishap) -> None:
        """Each kind is in one of these."""
        task = _pick(it.number, self._world.names)
        self._wish(it, task)
        self._operate(it, task)
        self._stop_or_go(it)
        self._disturb(it, task)

    def _wish(self, it: Mishap, task: str) -> None:
        number, keys, outside = it.number, self._world.keys, self._outside
        jobs = self._world.truth.jobs
        job = _pick(number, sorted(jobs, key=lambda job: jobs[job]))
        priority = "high" if number & 64 else "normal"
        match it.kind:
            case "submit":
                for _ in range(1 + number % 3):
                    outside.submit(task, priority=priority)
            case "delayed":
                outside.submit(task, priority=priority, delay_s=number % 5)
            case "keyed":
                outside.submit(task, idempotency_key=f"k{number % 2}", delay_s=1.0 if number & 32 else None)
            case "ttl":
                outside.submit(task, queue_ttl_s=1 + number % 4, delay_s=1.0 if number & 32 else None)
            case "cancel" if job:
                outside.once("operator", client_calls.cancel(keys, job), f"cancel {job}")
            case "watch" if job:
                outside.once("waiter", client_calls.watch(keys, job, f"ch{number % 2}", 1), f"watch {job}")
            case "unwatch" if job:
                outside.once("waiter", client_calls.unwatch(keys, job, f"ch{number % 2}", 1), f"unwatch {job}")
            case _:
                pass

    def _operate(self, it: Mishap, task: str) -> None:
        world, number, keys, outside = self._world, it.number, self._world.keys, self._outside
        match it.kind:
            case "pause":
                world.paused.add(task)
                outside.once("operator", admin.pause_task(keys, task), f"pause {task}")
            case "resume":
                world.paused.discard(task)
                outside.once("operator", admin.resume_task(keys, task), f"resume {task}")
            case "purge queued":
                lane = "nhb"[number % 3]
                outside.once("operator", admin.purge_queued(keys, task, lane), f"purge queued of {task} {lane}")
            case "purge delayed":
                outside.purge_delayed(task)
            case "retry dead" | "purge dead" if self._world.truth.last.dead:
                ids = [_pick(number, self._world.truth.last.dead)]
                call = (admin.retry_dead if it.kind == "retry dead" else admin.purge_dead)(keys, ids)
                outside.once("operator", call, f"{it.kind} {ids[0]}")
            case _:
                pass

    def _stop_or_go(self, it: Mishap) -> None:
        kernel, number = self._world.kernel, it.number
        awake = [d for d in self._daemons if not d.host.dead]
        running = [d for d in awake if not d.host.frozen]
        match it.kind:
            case "crash" | "crash in a read":
                within = it.kind == "crash in a read"
                if victim := _pick(number, [one for one in self.awake_workers() if one.reads or not within]):
                    victim.crash("signal:SIGSEGV")
            case "freeze" if len(running) > 1:
                self.freeze(_pick(number, running), True)
            case "thaw" if frozen := [d for d in awake if d.host.frozen]:
                self.freeze(_pick(number, frozen), False)
            case "freeze worker":
                self._freeze_worker(number)
            case "lose daemon" if len(awake) > 1:
                lost: Daemon = _pick(number, awake)
                kernel.say(f"{lost.name} is lost")
                for host in (lost.host, *(w.host for w in lost.workers)):
                    kernel.kill(host)
            case "new worker":
                host = _pick(number, running)
                if host and sum(not w.host.dead for w in host.workers) < 2:
                    host.new_worker()
            case _:
                pass

    def _freeze_worker(self, number: int) -> None:
        if victim := _pick(number, self.awake_workers()):
            victim.host.frozen = not victim.host.frozen
            self._world.kernel.say(f"{victim.name} {'freezes' if victim.host.frozen else 'thaws'}")

    def _disturb(self, it: Mishap, task: str) -> None:
        world, kernel, number, keys = self._world, self._world.kernel, it.number, self._world.keys
        match it.kind:
            case "cut":
                if line := _pick(number, [one for one in kernel.lines if not one.broken]):
                    kernel.cut(line, dropped=False)
            case "lose reply":
                kernel.lose_next_reply = True
            case "clock":
                kernel.step_back_us += (number % 61 - 30) * 1_000_000
                kernel.say(f"the server's clock is off by {kernel.step_back_us / 1e6:.0f} s")
            case "exhaust":
                for name in world.names if number & 1 else [task]:
                    self._exhaust(keys.stream(name, "b" if number & 1 else "nhbx"[number // 8 % 4]))
            case "restore":
                self.restore()
            case "garble":
                if task not in self._garbled and (raw := self._client.hget(keys.tasks, task)):
                    self._garbled[task] = raw  # pyright: ignore[reportArgumentType]
                    self._client.hset(keys.tasks, task, "{no JSON")
                    kernel.say(f"the definition of {task} can't be read")
            case "wait":
                kernel.now_us += (number % 8) * 1_000_000
            case _:
                pass

    def freeze(self, daemon: Daemon, frozen: bool) -> None:
        self._world.kernel.say(f"{daemon.name} {'freezes' if frozen else 'thaws'}")
        for host in (daemon.host, *(w.host for w in daemon.workers)):
            host.frozen = frozen
        if frozen:  # the network is gone, too: what was on its way arrives whenever
            for line in self._world.kernel.lines:
                if not line.broken and line.owner.startswith(daemon.name):
                    self._world.kernel.cut(line, dropped=False)

    def _exhaust(self, stream: str) -> None:
        if stream not in self._exhausted and self._client.exists(stream):
            info: dict[str, Any] = self._client.xinfo_stream(stream)
            self._exhausted[stream] = info["last-generated-id"].decode()
            self._client.execute_command("XSETID", stream, LAST_ID)
            self._world.kernel.say(f"{stream.rpartition('s:')[2]} takes nothing")

    def restore(self) -> None:
        for stream, last in self._exhausted.items():
            self._client.execute_command("XSETID", stream, last)
            self._world.kernel.say(f"{stream.rpartition('s:')[2]} takes entries again")
        self._exhausted.clear()
        for task, raw in self._garbled.items():
            self._client.hset(self._world.keys.tasks, task, raw)
            self._world.kernel.say(f"the definition of {task} can be read again")
        self._garbled.clear()
