"""Takes dead consumers' jobs back: cut its fetch connection, move its entries, sweep until nothing can arrive any more, remove it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from upnext.core.keys import Keys
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import lease
from upnext.engine.calls.rows import readable
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import EpochError, ReplyError
from upnext.engine.worker.fetch_connection import BLOCK_MS
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.scheduler")

SWEEPS_S = (0.0, 0.05, 0.25, 1.0, 2 * BLOCK_MS / 1000 + 0.5)
"""When to look again, counted from the first look: a read that waited on the server may still be fed until twice its time has passed."""

_MOST_PENDING = 2000
"""A consumer's entries that are looked through for what had ended."""

NO_LEASE = "0"
"""No lease has this end."""


@dataclass(frozen=True, slots=True)
class Started:
    """A job that had started when its worker died."""

    task: str
    lane: str
    entry_id: str
    job_id: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeathNotice:
    """A consumer's process is dead, as its supervisor knows for certain.

    `cause` is for people (`signal:SIGSEGV`, `oom`, `exit:3`, `hung`, `stopped`); `charge`: count it against the jobs that had started;
    `detail` is the stack of a hang. A process may have held several consumers: `crash` names its end, `suspects` counts what had started in
    all of them; without, this consumer was the only one. Of `ended`, jobs whose end was never recorded count as started, too: one that
    ends its process right after its own end would else be run again and again.
    """

    consumer: str
    cause: str
    charge: bool
    started: tuple[Started, ...] = ()
    detail: str = ""
    crash: str = ""
    suspects: int | None = None
    ended: tuple[Started, ...] = ()


@dataclass(frozen=True, slots=True)
class _Case:
    consumer: str
    seen: str
    """The end of a foreign consumer's lease that has ended; "" for one of this daemon."""
    charge: str
    cause: str
    detail: str = ""
    started: tuple[Started, ...] = ()
    tasks: tuple[str, ...] = ()
    """Where it is known to hold something, besides what its record says."""
    cut: set[int] = field(default_factory=set[int])
    """The connections of it that were cut."""
    crash: str = ""
    suspects: int | None = None
    ended: tuple[Started, ...] = ()
    shown: dict[str, None] = field(default_factory=dict[str, None])
    """Crashes whose culprit it has shown, and whose other suspects are not free yet."""


def _entry_order(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


class Reaper:
    """`reaped(consumer)` is called once its jobs are back; sweeping goes on after that. `set_apart(tasks)`: some of
    them, jobs of these tasks, are suspects now.

    `tasks` are those of this daemon: where one crash may have left its suspects, besides the tasks of the consumer that shows the culprit.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        epoch: Callable[[], str],
        reaped: Callable[[str], None],
        set_apart: Callable[[Sequence[str]], None],
        tasks: Sequence[str],
    ) -> None:
        self._link, self._keys, self._epoch, self._reaped = link, keys, epoch, reaped
        self._set_apart, self._tasks = set_apart, tasks
        self._open: set[str] = set()
        self._background = BackgroundTasks("upnext-reap")
        self._reported: set[str] = set()

    def died(self, notice: DeathNotice) -> None:
        """A local death. Repeating a notice is harmless."""
        charge = "crash" if notice.charge else "none"
        known = (notice.consumer, "", charge, notice.cause, notice.detail, notice.started)
        self._begin(_Case(*known, crash=notice.crash, suspects=notice.suspects, ended=notice.ended))

    def ended(self, consumer: str, seen: str = NO_LEASE) -> None:
        """A foreign consumer's lease, whose end is `seen`, has ended; or its grave is open."""
        self._begin(_Case(consumer, seen, "host", "lost host"))

    def left_over(self, consumer: str, seen: str = NO_LEASE) -> None:
        """A consumer of this daemon's former life, whose lease's end is `seen`. If it is renewed, it is another daemon's."""
        self._begin(_Case(consumer, seen, "host", "its supervisor died"))

    def unowned(self, consumer: str, tasks: Iterable[str]) -> None:
        """It has neither lease nor grave, and yet a place in the groups of these tasks."""
        self._begin(_Case(consumer, NO_LEASE, "none", "neither lease nor record", tasks=tuple(tasks)))

    async def aclose(self) -> None:
        await self._background.aclose()

    def _begin(self, case: _Case) -> None:
        if case.consumer in self._reported and not case.seen:
            self._reaped(case.consumer)
        if case.consumer in self._open:
            return
        self._open.add(case.consumer)
        self._background.start(self._reap(case), f"upnext-reap-{case.consumer}")

    async def _reap(self, case: _Case) -> None:
        try:
            await self._work(case)
        finally:
            self._open.discard(case.consumer)

    async def _work(self, case: _Case) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        begun = loop.time()
        sweep = 0
        while sweep < len(SWEEPS_S):
            await asyncio.sleep(max(0.0, begun + SWEEPS_S[sweep] - loop.time()))
            try:
                record = await self._record(case.consumer)
                if record is None:  # without one it can't be fed by us: what is left of it goes at once
                    await self._sweep(case, case.tasks, final=True)
                    self._report(case)
                    return
                await self._cut(case, record)
                if case.ended:
                    case = await self._with_unrecorded(case)
                tasks = dict.fromkeys((*record["tasks"], *case.tasks))
                if not await self._sweep(case, list(tasks), final=sweep == len(SWEEPS_S) - 1):
                    return
                self._report(case)
                sweep += 1
                backoff.reset()
            except (
                BrokerUnavailableError,
                EpochError,
            ) as error:  # an outage; or the scheduler is about to learn the epoch
                log.debug("reaping %s: %s", case.consumer, error)
                await backoff.sleep()
            except (ReplyError, ValueError, KeyError, TypeError) as error:  # a record that can't be read, too
                log.warning("reaping %s: %s", case.consumer, error)
                await backoff.sleep()

    async def _free(self, crash: str, tasks: Sequence[str]) -> None:
        """The culprit of that crash is known: its other suspects need not be run alone any more."""
        freed = 0
        for task in dict.fromkeys((*tasks, *self._tasks)):
            after: str | None = ""
            while after is not None:
                moved, after = await self._link.run(lease.free_suspects(self._keys, self._epoch(), crash, task, after))
                freed += moved
        if freed:
            log.info("the culprit of the crash of %s is known: %d other suspect(s) are none any more", crash, freed)

    def _report(self, case: _Case) -> None:
        if case.consumer not in self._reported:
            self._reported.add(case.consumer)
            if len(self._reported) > 10_000:
                self._reported.clear()
        if not case.seen:
            self._reaped(case.consumer)

    async def _record(self, consumer: str) -> dict[str, Any] | None:
        raw = await self._link.command("HGET", self._keys.consumers, consumer)
        return readable(raw) if raw else None

    async def _cut(self, case: _Case, record: dict[str, Any]) -> None:
        """A lost host's waiting read would be fed for ever, and one still on its way would create the consumer anew.

        Until the first sweep has taken its lease it can record another connection, so each sweep looks again. The id may have been given
        to another client since: look before.
        """
        client_id = int(record.get("client_id") or 0)
        if client_id and client_id not in case.cut:
            case.cut.add(client_id)
            listed = await self._link.command("CLIENT", "LIST", "ID", client_id)
            if b"name=upnext-fetch " in listed:
                await self._link.command("CLIENT", "KILL", "ID", client_id)

    async def _with_unrecorded(self, case: _Case) -> _Case:
        """What had ended and is still pending had started, and its end was not recorded."""
        by_stream: dict[tuple[str, str], dict[str, Started]] = {}
        for job in case.ended:
            by_stream.setdefault((job.task, job.lane), {})[job.entry_id] = job
        running = {(job.task, job.lane, job.entry_id) for job in case.started}
        found: list[Started] = []
        for (task, lane), jobs in by_stream.items():
            order = sorted(jobs, key=_entry_order)
            stream = self._keys.stream(task, lane)
            try:
                rows = await self._link.command(
                    "XPENDING", stream, "w", order[0], order[-1], _MOST_PENDING, case.consumer
                )
            except ReplyError:  # no such group any more: nothing is pending there
                continue
            pending = {row[0].decode() for row in rows}
            found += [job for entry, job in jobs.items() if entry in pending and (task, lane, entry) not in running]
        suspects = len(case.started) if case.suspects is None else case.suspects
        return replace(case, started=(*case.started, *found), suspects=suspects + len(found), ended=())

    async def _sweep(self, case: _Case, tasks: Sequence[str], *, final: bool) -> bool:
        """-> False when it turns out to live."""
        backoff = Backoff()
        parts = lease.reap_parts(tasks)
        while parts:
            done = await self._link.run(
                lease.reap(
                    self._keys,
                    self._epoch(),
                    consumer=case.consumer,
                    tasks=parts[0],
                    seen=case.seen,
                    final=final,
                    more=len(parts) > 1,
                    charge=case.charge,
                    cause=case.cause,
                    detail=case.detail,
                    started=[(job.task, job.lane, job.entry_id) for job in case.started],
                    crash=case.crash,
                    suspects=case.suspects,
                )
            )
            if done.pending < 0:
                return False
            if done.apart:
                self._set_apart(tasks)
            case.shown.update(dict.fromkeys(done.shown))
            for crash in list(case.shown):
                await self._free(crash, tasks)
                del case.shown[crash]
            if done.moved or done.buried:
                log.warning(
                    "%s is dead (%s): %d job(s) taken back%s",
                    case.consumer, case.cause, done.moved, f", {done.buried} buried" if done.buried else "",
                )  # fmt: skip
            if not done.pending:
                parts.popleft()
            elif done.problem:
                log.warning("%s is dead, and not all of its jobs can be taken back: %s", case.consumer, done.problem)
                parts.rotate(-1)
                await backoff.sleep()
        return True
