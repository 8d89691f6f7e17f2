"""What the server holds after each command, and what must hold of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import redis

from tests.support.leaks import leaks
from upnext.core.entry import decode_meta, unpack
from upnext.core.keys import LANE_LETTERS, Keys

_LOOK = """
local prefix, reply, at = ARGV[1], {}, 2
local function flat(key)
  return redis.call('HGETALL', prefix .. key)
end
for index = 2, #ARGV do
  local entries = redis.call('XRANGE', ARGV[index], '-', '+')
  local pending = redis.pcall('XPENDING', ARGV[index], 'w', '-', '+', 1000)
  local groups = redis.pcall('XINFO', 'GROUPS', ARGV[index])
  reply[#reply + 1] = {entries, pending.err and {} or pending, groups[1] and groups[1][8] or '0-0'}
end
return {reply, flat('where'), flat('delayed:jobs'), redis.call('ZRANGE', prefix .. 'delayed', 0, -1), flat('waiters'), flat('cancel'),
  flat('dead:jobs'), redis.call('ZRANGE', prefix .. 'dead', 0, -1), redis.call('KEYS', prefix .. 'idem:*'),
  redis.call('KEYS', prefix .. 'r:*')}
"""


class BrokenError(AssertionError):
    """Something that must always hold does not."""


@dataclass(frozen=True)
class Place:
    """Where a job is in a stream. `consumer`: who has fetched it."""

    task: str
    lane: str
    entry_id: str
    consumer: str | None


@dataclass
class Look:
    """`live`: each job's places in streams and in the delayed set (None)."""

    live: dict[str, list[Place | None]] = field(default_factory=lambda: defaultdict(list))
    payloads: dict[str, int] = field(default_factory=dict[str, int])
    where: dict[str, str] = field(default_factory=dict[str, str])
    waiters: list[str] = field(default_factory=list[str])
    cancels: list[str] = field(default_factory=list[str])
    dead: list[str] = field(default_factory=list[str])
    keyed: dict[str, str] = field(default_factory=dict[str, str])
    """Idempotency key -> the job that holds it."""
    results: dict[str, bytes] = field(default_factory=dict[str, bytes])
    pending: dict[str, int] = field(default_factory=dict[str, int])
    """Task -> how many of its jobs are fetched."""


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}


def _number(entry_id: bytes) -> tuple[int, int]:
    ms, _, count = entry_id.partition(b"-")
    return int(ms), int(count)


class Truth:
    """Knows which jobs were accepted, and what became of each."""

    def __init__(self, client: redis.Redis, keys: Keys, tasks: Sequence[str], limits: dict[str, int]) -> None:
        self._client, self._keys, self._limits = client, keys, limits
        self._lanes = [(task, lane) for task in tasks for lane in LANE_LETTERS]
        self._sha = client.script_load(_LOOK)
        self.jobs: dict[str, int] = {}
        """Accepted job -> its number, which is its payload."""
        self.ended: dict[str, bytes] = {}
        self.removed: set[str] = set()
        """Ended by a purge, which leaves no outcome."""
        self.started: set[str] = set()
        """Jobs whose first start was by who held them."""
        self.last = Look()

    def look(self) -> Look:
        prefix = self._keys.prefix
        streams = [self._keys.stream(task, lane) for task, lane in self._lanes]
        raw: Any = self._client.execute_command("EVALSHA", self._sha, 0, prefix, *streams)
        look = Look()
        for (task, lane), (entries, pending, delivered) in zip(self._lanes, raw[0], strict=True):
            holders = {row[0]: row[1].decode() for row in pending}
            look.pending[task] = look.pending.get(task, 0) + len(pending)
            for entry_id, fields in entries:
                meta = decode_meta(fields[3] if len(fields) > 2 else None)
                name = entry_id.decode()
                job = meta.job_id or f"{task}:{lane}{name}"
                holder = holders.pop(entry_id, None)
                if holder is None and _number(entry_id) <= _number(delivered):
                    raise BrokenError(f"{job} was delivered and belongs to no consumer: nobody will ever get it")
                look.live[job].append(Place(task, lane, name, holder))
                look.payloads[job] = orjson.loads(fields[1])["n"]
            if holders:
                raise BrokenError(f"{task} {lane}: pending without an entry: {holders}")
        look.where = _pairs(raw[1])
        packed = dict(zip(raw[2][::2], raw[2][1::2], strict=True))
        if sorted(packed) != sorted(raw[3]):
            raise BrokenError(f"the delayed set and its jobs differ: {sorted(packed)} {sorted(raw[3])}")
        for job, body in packed.items():
            look.live[job.decode()].append(None)
            look.payloads[job.decode()] = orjson.loads(unpack(body)[2])["n"]
        look.waiters, look.cancels = [*_pairs(raw[4])], [*_pairs(raw[5])]
        look.dead = [job.decode() for job in raw[6][::2]]
        if sorted(look.dead) != sorted(job.decode() for job in raw[7]):
            raise BrokenError(f"dead letters and their jobs differ: {sorted(look.dead)}")
        for names, put in ((raw[8], self._keyed), (raw[9], self._result)):
            if names:
                for name, value in zip(names, self._client.mget(names), strict=True):
                    put(look, name.decode(), value)
        return look

    def _keyed(self, look: Look, name: str, value: Any) -> None:
        look.keyed[name.removeprefix(self._keys.idem_prefix)] = value.decode().rpartition(" ")[0]

    def _result(self, look: Look, name: str, value: Any) -> None:
        look.results[name.removeprefix(self._keys.result_prefix)] = value

    # --- what must hold

    def check(self, *, purging: str = "", reviving: bool = False) -> Look:
        """After a command. purging: the task whose waiting jobs it may have removed; reviving: it may have taken dead letters back."""
        before, look = self.last, self.look()
        self.last = look
        self.jobs.update(look.payloads)
        for job in self.jobs:
            self._check_job(job, before, look, purging, reviving)
        self._check_besides(look)
        return look

    def _check_job(self, job: str, before: Look, look: Look, purging: str, reviving: bool) -> None:
        places, result = look.live.get(job, []), look.results.get(job)
        if len(places) > 1:
            raise BrokenError(f"{job} is in several places: {places}")
        if job in self.removed and (places or result or job in look.dead):
            raise BrokenError(f"{job} was removed and is there again: {places} {result} {job in look.dead}")
        if reviving and job in self.ended and job in before.dead and job not in look.dead:
            del self.ended[job]
            if not places and result is None:
                self.removed.add(job)  # a dead letter was purged
        if result is not None:
            self._check_end(job, places, result)
        elif places:
            self._check_place(job, places[0], look)
        elif job not in self.removed:
            had = before.live.get(job, [])
            waited = bool(had) and (had[0] is None or had[0].consumer is None)
            if not (purging and waited and job.startswith(purging + ":")):
                raise BrokenError(f"{job} is lost: it was in {had}, and ended as {self.ended.get(job)!r}")
            self.removed.add(job)

    def _check_end(self, job: str, places: list[Place | None], result: bytes) -> None:
        if places:
            raise BrokenError(f"{job} has ended, and is in {places}")
        first = self.ended.setdefault(job, result)
        if first != result:
            raise BrokenError(f"{job} ended twice: {first!r}, {result!r}")
        if orjson.loads(result).get("y") == "expired" and job in self.started:
            raise BrokenError(f"{job} had started and expired")

    @staticmethod
    def _check_place(job: str, place: Place | None, look: Look) -> None:
        if place is None or f"{place.task}:{place.lane}{place.entry_id}" == job:
            return
        if look.where.get(job) != f"{place.lane} {place.entry_id}":
            raise BrokenError(f"{job} is in {place}, and P:where says {look.where.get(job)}")

    def _check_besides(self, look: Look) -> None:
        for what, jobs in (
            ("P:where", look.where),
            ("P:waiters", look.waiters),
            ("P:cancel", look.cancels),
            ("P:idem", look.keyed.values()),
        ):
            if left := [job for job in jobs if not look.live.get(job)]:
                raise BrokenError(f"{what} still has {left}")
        for task, most in self._limits.items():
            if look.pending[task] > most:
                raise BrokenError(f"{task} runs {look.pending[task]} times, its limit is {most}")

    def unsettled(self) -> list[str]:
        return [job for job in self.jobs if self.last.live.get(job)]

    def leaks(self) -> list[str]:
        return leaks(self._client, self._keys)
