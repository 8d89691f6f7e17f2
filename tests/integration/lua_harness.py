"""The moves of producers, holders and reapers one script at a time, with a look at everything that a script wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.integration.inspect.bench import CONSUMER, Bench, Taken, task
from tests.support.leaks import leaks
from tests.support.waiting import given
from upnext.core import entry
from upnext.core.outcome import Outcome, decode
from upnext.core.submission import Submission
from upnext.engine.calls import client as client_calls
from upnext.engine.calls import lease, worker
from upnext.engine.calls.lease import Reaped
from upnext.engine.calls.worker import Finish
from upnext.engine.redis.replies import EpochError
from upnext.engine.redis.scripts import Call

__all__ = ["CONSUMER", "PAYLOAD", "Taken", "Workbench", "task"]

PAYLOAD = b'{"order_id":"A1"}'
OTHER = "consumer-2"


class Workbench(Bench):
    def everything(self) -> dict[str, Any]:
        """All keys of the namespace with what they hold: two looks that are equal mean that nothing was written in between."""
        command = self.broker.command
        return {key.decode(): command("DUMP", key) for key in command("KEYS", self.keys.prefix + "*")}

    def leaks(self) -> list[str]:
        return leaks(redis.Redis(connection_pool=self.broker._pool()[1]), self.keys)

    def refuses_another_epoch(self, call: Callable[[str], Call[Any]]) -> None:
        """`call(epoch)` with an epoch that is not the data set's: an error, and nothing written."""
        before = self.everything()
        with pytest.raises(EpochError):
            self.broker.run(call("of-another-life"))
        assert self.everything() == before

    def now_us(self) -> int:
        """The server's clock."""
        seconds, us = self.broker.command("TIME")
        return int(seconds) * 1_000_000 + int(us)

    def now_ms(self) -> int:
        return self.now_us() // 1000

    # what is where

    def outcome(self, job_id: str) -> Outcome | None:
        raw = self.broker.command("GET", self.keys.result(job_id))
        return decode(raw) if raw else None

    def hash(self, key: str) -> dict[str, str]:
        flat = self.broker.command("HGETALL", key)
        return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def stats(self) -> dict[str, int]:
        return {name: int(value) for name, value in self.hash(self.keys.stats).items()}

    def lane(self, name: str, letter: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """(entry id, fields) of one lane."""
        rows = self.broker.command("XRANGE", self.keys.stream(name, letter), "-", "+")
        return [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in rows]

    def metas(self, name: str, letter: str) -> list[entry.Meta]:
        return [entry.decode_meta(fields.get(b"m")) for _, fields in self.lane(name, letter)]

    def lengths(self, name: str) -> str:
        """How many entries the lanes hold, like `n2 b1`."""
        counts = [(letter, len(self.lane(name, letter))) for letter in "nhbx"]
        return " ".join(f"{letter}{count}" for letter, count in counts if count)

    def pending(self, name: str, letter: str = "n") -> int:
        return self.broker.command("XPENDING", self.keys.stream(name, letter), "w")[0]

    def dead_ids(self) -> list[str]:
        return [job_id.decode() for job_id in self.broker.command("ZRANGE", self.keys.dead, 0, -1)]

    @contextmanager
    def hearing(self, channel: str) -> Generator[list[bytes]]:
        """What was published there meanwhile."""
        client = redis.Redis(connection_pool=self.broker._pool()[1])
        received: list[bytes] = []
        with client.pubsub(ignore_subscribe_messages=True) as ear:
            ear.ssubscribe(channel)
            ear.get_message(timeout=given(5))  # the confirmation
            yield received
            client.spublish(channel, "the end")
            while (heard := ear.get_message(timeout=given(5))) is None or heard["data"] != b"the end":
                if heard is not None:
                    received.append(heard["data"])

    # moves

    def submit_as(self, job: Submission, reply_to: str | None = None, nonce: str = "n1") -> client_calls.Answer:
        [answer] = self.broker.run(client_calls.submit(self.keys, [(job, reply_to)], nonce))
        return answer

    def finish_call(self, *ends: Finish, epoch: str | None = None, ttl_ms: int = 600_000) -> Call[list[Finish]]:
        ttls = {end.task: ttl_ms for end in ends}
        return worker.finish(self.keys, epoch or self.epoch, ends, ttls, time.time_ns() // 1_000_000)

    def put_back(self, one: Taken, *, delay_ms: int = 0, **changes: Any) -> worker.PutBack:
        meta = entry.Meta(job_id=one.job_id, attempt=one.meta.attempt + 1)
        for name in ("idempotency_key", "reply_to", "parent_id", "root_id", "crashes"):
            setattr(meta, name, getattr(one.meta, name))
        for name, value in changes.items():
            setattr(meta, name, value)
        home = one.meta.lane or one.lane
        return worker.PutBack(one.task, one.lane, one.entry_id, one.job_id, home, meta, delay_ms)

    def retry(self, *backs: worker.PutBack) -> list[int]:
        return self.broker.run(worker.retry(self.keys, self.epoch, backs))

    def hand_back(self, *taken: Taken) -> int:
        ours, looked_at = self.broker.run(
            worker.hand_back(self.keys, self.epoch, [(one.task, one.lane, one.entry_id) for one in taken])
        )
        assert looked_at == len(taken)
        return ours

    def promote(self, most: int = 100) -> tuple[int, int | None]:
        done = self.broker.run(lease.promote(self.keys, self.epoch, most))
        assert not done.put_off, done.put_off
        return done.count, done.next_us

    def cancel(self, job_id: str) -> int:
        return self.broker.run(client_calls.cancel(self.keys, job_id))

    def reap_call(
        self, consumer: str = CONSUMER, *started: Taken, epoch: str | None = None, **options: Any
    ) -> Call[Reaped]:
        settings: dict[str, Any] = {"final": True, "cause": "signal:SIGSEGV", **options}
        return lease.reap(
            self.keys,
            epoch or self.epoch,
            consumer=consumer,
            tasks=self.names,
            started=[(one.task, one.lane, one.entry_id.decode()) for one in started],
            **settings,
        )

    def reap(self, consumer: str = CONSUMER, *started: Taken, **options: Any) -> Reaped:
        return self.broker.run(self.reap_call(consumer, *started, **options))

    def add(self, name: str, letter: str, *fields: bytes | str) -> bytes:
        """A raw entry, as nobody of us writes it."""
        return self.broker.command("XADD", self.keys.stream(name, letter), "*", *fields)
