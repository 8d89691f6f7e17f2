"""A worker's moves made by hand, one call at a time, so that a test can stop at any moment of a job's life."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from tests.support.waiting import given
from upnext.core import entry
from upnext.core.binding import Signature
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome, encode
from upnext.core.spec import CronSpec, TaskKind, TaskOptions, TaskSpec
from upnext.core.submission import Submission
from upnext.engine.calls import lease, worker
from upnext.engine.client.sync_client import SyncQueueClient

CONSUMER = "consumer-1"
TTL_MS = 600_000


def sample(order_id: str, count: int = 1) -> dict[str, int]: ...


def task(name: str, *, cron: CronSpec | None = None, event: str | None = None, **options: Any) -> TaskSpec:
    kind = TaskKind.CRON if cron else TaskKind.EVENT if event else TaskKind.TASK
    arguments = Signature.of(sample) if cron is None else Signature.of(lambda: None)
    return TaskSpec(name, kind, sample, False, arguments, TaskOptions(**options), event=event, cron=cron)


@dataclass(frozen=True, slots=True)
class Taken:
    """One fetched entry."""

    task: str
    lane: str
    entry_id: bytes
    job_id: str
    meta: entry.Meta


class Bench:
    """One registered consumer with the moves of a worker."""

    def __init__(self, broker: SyncQueueClient) -> None:
        self.broker = broker
        self.keys = broker.keys
        self.epoch = ""
        self.names: list[str] = []

    def register(
        self, *tasks: TaskSpec, consumer: str = CONSUMER, service: str = "orders", lease_ms: int = 60_000
    ) -> None:
        self.names = [one.name for one in tasks]
        record = {
            "daemon": "d1",
            "host": "here",
            "pid": 4711,
            "service": service,
            "worker": "w",
            "tasks": self.names,
            "since_ms": 1,
        }
        registration = lease.Registration(consumer, record, service, 1, lease_ms, tasks)
        self.epoch, _ = self.broker.run(lease.register(self.keys, registration, "epoch-1"))

    def submit(self, name: str, **options: Any) -> str:
        return self.broker.submit(Submission(name, b'{"order_id":"A1"}', **options))

    def fetch(
        self, budget: int = 10, *, consumer: str = CONSUMER, lanes: str = "hnb", suspect: bool = False
    ) -> list[Taken]:
        call = worker.fetch(
            self.keys,
            self.epoch,
            consumer,
            self.names,
            budget=budget,
            suspect=suspect,
            lanes=[lanes] * len(self.names),
            most_limited=10,
        )
        taken: list[Taken] = []
        for name, lane, entries in self.broker.run(call).entries:
            for entry_id, fields in entries:
                meta = entry.decode_meta(fields[3] if len(fields) > 2 else None)
                job_id = meta.job_id or f"{name}:{lane}{entry_id.decode()}"
                taken.append(Taken(name, lane, entry_id, job_id, meta))
        return taken

    def take(self, **options: Any) -> Taken:
        [one] = self.fetch(1, **options)
        return one

    def finish(self, one: Taken, value: bytes = b"null", ttl_ms: int = TTL_MS) -> None:
        self._end(
            one, Outcome(JobStatus.DONE, value=value, begun_ms=1_000, finished_ms=2_000, worker=CONSUMER), False, ttl_ms
        )

    def fail(self, one: Taken, ttl_ms: int = TTL_MS) -> None:
        """On its last attempt: it becomes a dead letter."""
        meta = one.meta
        outcome = Outcome(
            JobStatus.FAILED,
            attempt=meta.attempt,
            finished_ms=2_000,
            parent_id=meta.parent_id,
            root_id=meta.root_id,
            error=ErrorInfo("ValueError", "no such order", "Traceback\n  line 1"),
            reason=FailureReason.ERROR,
        )
        self._end(one, outcome, True, ttl_ms)

    def _end(self, one: Taken, outcome: Outcome, bury: bool, ttl_ms: int) -> None:
        ending = worker.Finish(
            one.task,
            one.lane,
            one.entry_id,
            outcome.status,
            encode(outcome),
            # what the meta of an entry that moved doesn't say, its place does
            meta=one.meta if one.meta != entry.Meta() or bury else None,
            bury=bury,
        )
        stale = self.broker.run(
            worker.finish(self.keys, self.epoch, [ending], {one.task: ttl_ms}, time.time_ns() // 1_000_000)
        )
        assert stale == []

    def retry_later(self, one: Taken, delay_ms: int) -> None:
        meta = entry.Meta(attempt=one.meta.attempt + 1, parent_id=one.meta.parent_id, root_id=one.meta.root_id)
        back = worker.PutBack(one.task, one.lane, one.entry_id, one.job_id, one.meta.lane or one.lane, meta, delay_ms)
        assert self.broker.run(worker.retry(self.keys, self.epoch, [back])) == [worker.RETRIED]

    def crash(self, *started: Taken, consumer: str = CONSUMER, cause: str = "signal:SIGSEGV") -> None:
        """The consumer dies while it runs `started`, and is reaped."""
        self.broker.run(
            lease.reap(
                self.keys,
                self.epoch,
                consumer=consumer,
                tasks=self.names,
                final=True,
                charge="crash",
                cause=cause,
                started=[(one.task, one.lane, one.entry_id.decode()) for one in started],
            )
        )

    def dead(self, name: str, count: int = 1) -> list[str]:
        """Submits and fails `count` jobs."""
        submitted = [self.submit(name) for _ in range(count)]
        for one in self.fetch(count):
            self.fail(one)
        return submitted

    @contextmanager
    def bell(self) -> Generator[list[str]]:
        """The bell's messages meanwhile."""
        client = redis.Redis(connection_pool=self.broker._pool()[1])
        words: list[str] = []
        with client.pubsub(ignore_subscribe_messages=True) as ear:
            ear.ssubscribe(self.keys.bell)
            ear.get_message(timeout=given(5))  # the confirmation
            yield words
            client.spublish(self.keys.bell, "end")
            while True:
                heard = ear.get_message(timeout=given(5))
                if heard is None:
                    continue
                if heard["data"] == b"end":
                    return
                words.append(heard["data"].decode())

    def left(self, prefixes: Sequence[str]) -> list[str]:
        """Keys of this namespace that begin with one of `prefixes` (without the namespace)."""
        return sorted(
            key.decode().removeprefix(self.keys.prefix)
            for key in self.broker.command("KEYS", "*" + self.keys.namespace + "*")
            if key.decode().removeprefix(self.keys.prefix).startswith(tuple(prefixes))
        )
