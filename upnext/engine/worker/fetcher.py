"""Takes jobs for an executor: a script that looks at everything without waiting; only when it gave nothing, a read that waits.

It is the one place that takes, so what it does not know of and the broker says we hold is lost on the way, and is handed back.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Any

from upnext.core.entry import META_FIELD, PAYLOAD_FIELD, Meta, decode_meta
from upnext.core.fetchplan import FetchPlan
from upnext.core.keys import GROUP
from upnext.core.spec import WorkerSpec
from upnext.core.suspects import Move, OneAtATime, Suspects, SuspectTurns
from upnext.engine.attempt import Attempt
from upnext.engine.calls import lease
from upnext.engine.calls import worker as worker_calls
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.mode import Mode
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire
from upnext.engine.redis.replies import EpochError, ReapedError, ReplyError
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.slots import Slot
from upnext.errors import BrokerFullError, BrokerUnavailableError

if TYPE_CHECKING:
    from upnext.engine.worker.runtime import WorkerRuntime

log = logging.getLogger("upnext.engine")

BLOCK_MS = 2000
MOST_JOBS = 1000
MOST_BYTES = 8 * 1024 * 1024
PREFETCH_S = 0.05
"""Short jobs are buffered for so long a time of work, to cover the round trip of a fetch."""
HELD_TOO_LONG_S = 0.1
UNBLOCK_AGAIN_S = 0.05
HELD_BACK_REREAD_S = 0.8
"""The bell is a hint: what it may have failed to say about limited tasks is looked for so often."""
OWN_PENDING_S = 30.0
MOST_UNCONFIRMED = 20_000
"""With more ends than this unconfirmed (a broker that is away or slow) nothing is fetched."""

SWEEP_S = 0.02
BACKLOG_JOBS = 64
"""When one look at everything finds so many jobs in a single stream, that stream is read directly until the next look, SWEEP_S later."""

_SCHEMA_FIELD = re.compile(rb"p\d+\Z")
_PAYLOAD, _META = PAYLOAD_FIELD.encode(), META_FIELD.encode()


class Fetcher:
    def __init__(
        self,
        runtime: WorkerRuntime,
        executor: Executor,
        broker: QueueClient,
        worker: WorkerSpec,
        suspects: Suspects,
        one_at_a_time: OneAtATime | None,
    ) -> None:
        self._runtime, self._executor, self._broker, self._worker = runtime, executor, broker, worker
        self._link = broker.link.another("upnext-fetch", patient=True)
        self._plan = FetchPlan(list(worker.tasks))
        self._kicked = False
        self._waiter: asyncio.Future[None] | None = None
        self._blocked: asyncio.Future[Any] | None = None
        self._blocked_on: Wire | None = None
        self._quiet = asyncio.Event()
        self._look = True
        self._look_everywhere = True
        self._near: str | None = None
        self._turns = SuspectTurns() if suspects is Suspects.SHARE else None
        self._only = (one_at_a_time or OneAtATime()) if suspects is Suspects.ONLY else None
        if self._only is not None:
            self._only.join(self, self._kick)
        self._plans_stale = True
        self._waits_for_room = False
        self._suspect: Attempt | None = None
        self._streams: list[str] = []
        self._open_streams: frozenset[str] = frozenset()
        self._limited: set[str] = set()
        self._late: list[Any] = []
        self._backlog: str | None = None
        self._swept_at = 0.0
        self._lanes: dict[str, tuple[str, str]] = {
            stream: (task, lane)
            for task in worker.tasks
            for lane, stream in zip("nhbx", broker.keys.streams(task), strict=True)
        }
        self._rate = 0.0
        self._rate_at = time.perf_counter()
        self._rate_count = 0
        self._stalled_at = -1
        self._entry_bytes = 200.0
        self._checked_at = time.monotonic()
        self._must_check = False
        self._link_seen: Wire | None = None
        self._hand_back_timer: asyncio.TimerHandle | None = None
        self._handing: set[asyncio.Task[None]] = set()
        self._ready_told = False
        self._group_gone = False
        self._maybe_again: set[tuple[str, str, bytes]] = set()
        self._left_alone: set[tuple[str, str, bytes]] = set()
        self.client_id: int = 0
        """The connection that reads go over, as the consumer's record has it: a reaper cuts it."""
        self._recorded: tuple[str, int] = ("", 0)

    # --- signals from outside

    def wake(self) -> None:
        """A limited task may have work: the waiting read doesn't see it."""
        self._look = True
        self._kick()

    def wake_for_all(self) -> None:
        """Any lane of any task may have work."""
        self._look_everywhere = True
        if self._turns is not None:
            self._turns.heard()
        self.wake()

    def reread(self) -> None:
        """Pauses or limits may have changed, or the bell was away."""
        self._plans_stale = True
        self.wake_for_all()

    def replan(self) -> None:
        """The mode changed."""
        self._quiet.clear()
        self._kick()

    def room(self) -> None:
        """The executor could take more."""
        if self._waits_for_room:
            self._kick()

    async def quiet(self) -> None:
        """Returns when no fetch is out and none will be, while the mode forbids it."""
        await self._quiet.wait()

    async def connect(self) -> None:
        self.client_id = (await self._link.wire()).client_id
        self._link_seen = self._broker.link.live

    async def end_read(self) -> None:
        """After `run`: nothing is fed to this consumer any more. What its last read had got is the broker's to take back."""
        await self._unblock()
        if (wire := self._link.live) is not None:
            await wire.send("PING")  # answered in order: no read is on its way behind the consumer's removal

    async def aclose(self) -> None:
        if self._hand_back_timer is not None:
            self._hand_back_timer.cancel()
        await asyncio.gather(*self._handing, return_exceptions=True)
        await self._link.aclose()

    # --- the loop

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._runtime.registered()
                await self._turn()
                backoff.reset()
            except (EpochError, ReapedError) as error:
                self._forget_block()
                self._runtime.lost_registration(str(error))
            except BrokerUnavailableError as error:
                log.debug("fetching: %s", error)
                self._forget_block()
                self._must_check = True
                await backoff.sleep()
            except ReplyError as error:
                self._forget_block()
                self._trouble(str(error))
                await backoff.sleep()
            except BrokerFullError as error:
                log.error("fetching: %s", error)
                await backoff.sleep()

    def _trouble(self, what: str) -> None:
        """The broker could not read a task."""
        if "NOGROUP" in what:
            self._group_gone = True
        else:
            log.error("fetching: %s", what)

    async def _turn(self) -> None:
        self._kicked = False
        if not self._may_fetch():
            await self._unblock()
            if self._late:
                await self._sort_late(set(self._worker.tasks))
            self._quiet.set()
            self._told_ready()
            await self._wait(None)
            self._quiet.clear()
            return
        await self._reread()
        if self._only is not None:
            await self._take_only_suspects(self._only)
            return
        if self._turns is not None and await self._serve_suspects(self._turns):
            return
        budget = self._budget()
        if budget <= 0 or self._runtime.unconfirmed > MOST_UNCONFIRMED:
            await self._wait_for_room(HELD_BACK_REREAD_S)
            return
        wait_s: float | None = None
        if self._look:
            self._look = False
            found, wait_s = await self._look_around(budget)
            if found:
                self._look = True  # there may be more
                if found <= 4:
                    await asyncio.sleep(0)  # a few: let them run before the next request goes out
                return
        if wait_s is None and self._limited:
            wait_s = HELD_BACK_REREAD_S
        if self._turns is not None:
            self._turns.others_have_none()
            if (until_s := self._turns.wait_s(time.monotonic())) is not None:
                wait_s = min(until_s, wait_s or until_s)
        await self._block(wait_s)

    async def _take_only_suspects(self, process: OneAtATime) -> None:
        """One after the other; nothing else is ever fetched."""
        self._told_ready()
        if self._suspect_runs():
            await self._wait_for_room(None)
            return
        process.give_back(self)
        if self._executor.room > 0 and process.take(self):
            found, _ = await self._fetch_suspect()
            if found:
                return
            process.give_back(self)
        await self._wait_for_room(HELD_BACK_REREAD_S)

    async def _serve_suspects(self, turns: SuspectTurns) -> bool:
        """-> whether this turn is not for other jobs."""
        now = time.monotonic()
        match turns.next(now, idle=self._idle(), room=self._executor.room > 0, suspect_runs=self._suspect_runs()):
            case Move.OTHERS:
                return False
            case Move.LOOK:
                call = lease.waiting_suspects(self._runtime.keys, list(self._worker.tasks))
                turns.looked(now, waiting=await self._broker.run(call) > 0)
            case Move.TAKE:
                await self._unblock()
                found, held_back = await self._fetch_suspect()
                turns.took(now, found=found, held_back=held_back)
                self._look = self._look_everywhere = True  # for the others, when it is their turn
            case Move.WAIT:
                await self._unblock()
                await self._wait_for_room(turns.wait_s(now))
        return True

    async def _fetch_suspect(self) -> tuple[bool, bool]:
        """-> (whether one was taken, whether limits hold some back)."""
        runtime = self._runtime
        tasks, lanes = self._plan.turn(everywhere=True)
        got = await self._broker.run(
            worker_calls.fetch(
                runtime.keys,
                runtime.epoch,
                runtime.consumer,
                tasks,
                budget=1,
                suspect=True,
                lanes=lanes,
                most_limited=1,
            )
        )
        self._executor.server_offset_s = got.server_ms / 1000 - time.time()
        for task, lane, entries in got.entries:
            self._take(task, lane, entries)
            self._plan.gave([task])
        self._executor.go()
        return bool(got.entries), got.held_back

    async def _look_around(self, budget: int) -> tuple[int, float | None]:
        """As `_fetch`, in the cheapest way that overlooks nothing."""
        reads_on = self._blocked is None and self._backlog is not None and budget >= BACKLOG_JOBS
        if reads_on and time.monotonic() - self._swept_at < SWEEP_S:
            found = await self._read_on(str(self._backlog), budget)
            if found:
                return found, None
        found, wait_s = await self._fetch(budget, everywhere=self._look_everywhere and not self._executor.held)
        self._told_ready()
        if not found and self._look_everywhere:
            found, wait_s = await self._fetch(budget, everywhere=True)
        return found, wait_s

    async def _reread(self) -> None:
        """The truth about plans and about what we hold, where it may have changed behind our back."""
        if self._group_gone:
            self._maybe_again = (
                self._runtime.known_entries()
            )  # a new group begins at the start: it gives them a second time
            await self._runtime.mend_groups()
            self._group_gone = False
        if self._plans_stale:
            await self._unblock()
            await self._read_plans()
        if self._link_seen is not self._broker.link.live:
            await self._unblock()
            wire = await self._broker.link.wire()
            await self._runtime.settled()
            self._link_seen = wire
            self._must_check = True
        if self._must_check or time.monotonic() - self._checked_at > OWN_PENDING_S:
            await self._unblock()
            await self._check_pending()

    async def _wait_for_room(self, timeout_s: float | None) -> None:
        self._waits_for_room = True
        try:
            await self._wait(timeout_s)
        finally:
            self._waits_for_room = False

    def _idle(self) -> bool:
        """Nothing is held, and whatever runs waits for other jobs."""
        return not self._executor.busy and not self._executor.held

    def _suspect_runs(self) -> bool:
        """Whether the suspect taken last is held or runs: until it ends, is taken away, or waits for another job."""
        suspect = self._suspect
        if suspect is None:
            return False
        if suspect in self._executor.running:
            return suspect.slot is not Slot.WAITING
        if any(attempt is suspect for attempt, *_ in self._executor.held):
            return True
        self._suspect = None
        return False

    def _may_fetch(self) -> bool:
        return self._runtime.mode is Mode.RUNNING

    def _told_ready(self) -> None:
        if not self._ready_told:
            self._ready_told = True
            self._runtime.first_fetch_is_out()

    def _budget(self) -> int:
        executor = self._executor
        now = time.perf_counter()
        passed = now - self._rate_at
        if passed > 0.005:
            ended = executor.finished - self._rate_count
            share = min(1.0, passed / 0.02)  # older than a few turns says nothing
            self._rate += share * (ended / passed - self._rate)
            self._rate_at, self._rate_count = now, executor.finished
        depth = int(self._rate * PREFETCH_S) if self._worker.prefetch is None else self._worker.prefetch
        if executor.finished == self._stalled_at:
            depth = 0  # what was fetched ahead had to be handed back, and nothing has ended since
        most = min(MOST_JOBS, max(1, int(MOST_BYTES / self._entry_bytes)))
        budget = min(most, executor.room + depth)
        if executor.held and budget < depth // 4:
            return 0  # no small fetches while there is work
        return budget

    async def _fetch(self, budget: int, *, everywhere: bool) -> tuple[int, float | None]:
        """-> (jobs taken, seconds after which a limited task may have a permit)."""
        executor, runtime = self._executor, self._runtime
        near, self._near = self._near, None
        tasks, lanes = self._plan.turn(near, everywhere=everywhere, always=self._limited)
        if everywhere:
            self._look_everywhere = False
        call = worker_calls.fetch(
            runtime.keys,
            runtime.epoch,
            runtime.consumer,
            tasks,
            budget=budget,
            lanes=lanes,
            most_limited=self._most_limited(),
        )
        got = await self._broker.run(call)
        self._swept_at = time.monotonic()
        self._backlog = None
        if len(got.entries) == 1 and len(got.entries[0][2]) >= BACKLOG_JOBS:
            stream = runtime.keys.stream(*got.entries[0][:2])
            self._backlog = stream if stream in self._open_streams else None
        executor.server_offset_s = got.server_ms / 1000 - time.time()
        found = 0
        for task, lane, entries in got.entries:
            found += len(entries)
            self._take(task, lane, entries)
        if got.problem is not None:
            self._trouble(got.problem)
        if found:
            self._plan.gave(dict.fromkeys(task for task, _, _ in got.entries))
            executor.go()
            self._look_everywhere = self._look_everywhere or everywhere  # there may be more
        wait_s = None
        if got.retry_after_ms is not None:
            wait_s = got.retry_after_ms / 1000
        if got.held_back:
            wait_s = min(wait_s or HELD_BACK_REREAD_S, HELD_BACK_REREAD_S)
        return found, wait_s

    def _most_limited(self) -> int:
        """As many of a limited task as can start; one may wait for the next slot, or a busy worker would never take any."""
        executor = self._executor
        waiting = sum(held[0].spec.name in self._limited for held in executor.held) if self._limited else 0
        return max(0 if waiting else 1, executor.free - waiting)

    async def _read_on(self, stream: str, budget: int) -> int:
        """Reads one stream with a backlog, without the script: it would copy every payload twice. -> jobs taken"""
        wire = await self._recorded_wire()
        reply = await wire.send(
            "XREADGROUP", "GROUP", GROUP, self._runtime.consumer, "COUNT", budget, "STREAMS", stream, ">"
        )
        found = len(reply[0][1]) if reply else 0
        if found < budget:
            self._backlog = None
        if found:
            self._take(*self._lanes[stream], reply[0][1])
            self._executor.go()
        return found

    async def _block(self, wait_s: float | None) -> None:
        if self._blocked is None and self._streams:
            wire = self._blocked_on = await self._recorded_wire()
            streams = ("STREAMS", *self._streams, *[">"] * len(self._streams))
            self._blocked = wire.send(
                "XREADGROUP", "GROUP", GROUP, self._runtime.consumer, "COUNT", 1, "BLOCK", BLOCK_MS, *streams
            )
            wire.flush()
        await self._wait(wait_s)
        if wait_s is not None and not self._kicked:
            self._look = True
        if self._blocked is not None and self._blocked.done():
            self._collect()

    async def _recorded_wire(self) -> Wire:
        """The connection for reads without the script, as the consumer's record names it: a reaper cuts it, and nothing arrives late."""
        while True:
            wire = await self._link.wire()
            known = (self._runtime.consumer, wire.client_id)
            if known == self._recorded:
                return wire
            await self._runtime.record_connection(*known)
            self._recorded, self.client_id = known, wire.client_id

    async def _wait(self, timeout_s: float | None) -> None:
        """Until kicked, the waiting read has something, or the time is over. One hop: while it takes turns, work stands still."""
        if not self._kicked and (self._blocked is None or not self._blocked.done()):
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None if timeout_s is None else loop.call_later(timeout_s, self._release)
            blocked = self._blocked
            if blocked is not None:
                blocked.add_done_callback(self._release)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
                if blocked is not None:
                    blocked.remove_done_callback(self._release)
        if self._blocked is not None and self._blocked.done():
            self._collect()

    def _kick(self) -> None:
        self._kicked = True
        self._release()

    def _release(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _collect(self) -> None:
        blocked, self._blocked = self._blocked, None
        assert blocked is not None
        reply = blocked.result()
        if not reply:
            # a producer of older code doesn't know of a limit and rings no bell for its jobs
            self._look = self._look or bool(self._limited)
            return
        if self._plans_stale:
            self._late += reply
            return
        for stream, entries in reply:
            task, lane = self._lanes[stream.decode()]
            self._near = task if len(reply) == 1 else None
            self._take(task, lane, entries)
        self._look = True
        self._executor.go()

    async def _unblock(self) -> None:
        """Ends the waiting read; what it had got counts."""
        if self._blocked is None:
            return
        assert self._blocked_on is not None
        while not self._blocked.done():
            await self._broker.link.command("CLIENT", "UNBLOCK", self._blocked_on.client_id)
            # the two connections race: a read that arrives after the command goes on waiting
            await asyncio.wait([self._blocked], timeout=UNBLOCK_AGAIN_S)
        self._collect()

    def _forget_block(self) -> None:
        """After an error: a reply still to come can't be told from a lost one, so the connection goes."""
        if self._blocked is not None:
            if not self._blocked.done() and self._blocked_on is not None:
                self._blocked_on.abort()
                self._must_check = True
            elif self._blocked.done() and not self._blocked.cancelled():
                self._blocked.exception()
            self._blocked = None
        self._look = self._look_everywhere = True

    # --- what came

    def _take(self, task: str, lane: str, entries: list[Any]) -> None:
        executor = self._executor
        spec = executor.tasks[task].spec
        size = 0
        for entry_id, fields in entries:
            if self._maybe_again and self._is_here(task, lane, entry_id):
                continue
            if not fields or fields[0] != _PAYLOAD:
                self._alien(task, lane, entry_id, fields)
                continue
            payload = fields[1]
            size += len(payload)
            meta: Meta | None = None
            if len(fields) > 2:
                try:
                    meta = decode_meta(fields[3]) if fields[2] == _META else Meta()
                except ValueError as error:
                    self._runtime.bury_garbage(task, lane, entry_id, f"its meta can't be read: {error}")
                    continue
            attempt = Attempt(spec, lane, entry_id, meta, self._broker)
            if lane == "x":
                self._suspect = attempt
            executor.hold(attempt, payload, first=task in self._limited)
        if entries:
            self._entry_bytes += 0.1 * (100 + size / len(entries) - self._entry_bytes)
        if executor.held and self._hand_back_timer is None:
            self._hand_back_timer = asyncio.get_running_loop().call_later(HELD_TOO_LONG_S, self._held_too_long)

    def _is_here(self, task: str, lane: str, entry_id: bytes) -> bool:
        """Whether a job that was given a second time is still held or running; from now on it is pending again."""
        job = (task, lane, entry_id)
        return job in self._maybe_again and job in self._runtime.known_entries()

    def _alien(self, task: str, lane: str, entry_id: bytes, fields: list[bytes]) -> None:
        if fields and _SCHEMA_FIELD.match(fields[0]):
            self._left_alone.add((task, lane, entry_id))
            log.error(
                "entry %s of %s was written by a newer version of upnext: left alone; upgrade this worker",
                entry_id.decode(),
                task,
            )
        else:
            self._runtime.bury_garbage(task, lane, entry_id, f"it has no field {PAYLOAD_FIELD}")

    def _held_too_long(self) -> None:
        self._hand_back_timer = None
        executor = self._executor
        late = executor.unheld(
            lambda a, held_s: held_s >= HELD_TOO_LONG_S and not (a.meta is not None and a.meta.handed_back)
        )
        if late:
            self._rate = 0.0
            self._stalled_at = executor.finished
            task = asyncio.create_task(self._hand_back(late), name="upnext-hand-back")
            self._handing.add(task)
            task.add_done_callback(self._handing.discard)
        if executor.held:
            self._hand_back_timer = asyncio.get_running_loop().call_later(HELD_TOO_LONG_S, self._held_too_long)

    async def _hand_back(self, attempts: list[Attempt]) -> None:
        try:
            await self._runtime.hand_back(attempts)
        except (EpochError, BrokerUnavailableError, ReplyError) as error:
            log.debug("handing back: %s", error)
            self._must_check = True  # what is still ours then is found as unknown

    # --- the truth

    async def _read_plans(self) -> None:
        """Which tasks the waiting read may take: not the paused, not the limited ones."""
        keys = self._runtime.keys
        wire = await self._broker.link.wire()
        paused, limited = wire.send("SMEMBERS", keys.paused), wire.send("HKEYS", keys.limits)
        cancels = wire.send("HKEYS", keys.cancel)
        self._limited = {name.decode() for name in await limited}.intersection(self._worker.tasks)
        closed = {name.decode() for name in [*await paused, *await limited]}
        open_tasks = [task for task in self._worker.tasks if task not in closed]
        self._streams = [keys.stream(task, "h") for task in open_tasks] + [
            keys.stream(task, "n") for task in open_tasks
        ]
        self._open_streams = frozenset(self._streams)
        self._backlog = None
        self._plans_stale = False
        self._look = True
        for job_id in await cancels:
            self._runtime.cancel(job_id.decode())
        await self._sort_late(closed)

    async def _sort_late(self, closed: set[str]) -> None:
        """What the waiting read took while the plans changed: of a task that is paused or limited by now it goes back, unstarted."""
        late, self._late = self._late, []
        back: list[tuple[str, str, bytes]] = []
        for stream, entries in late:
            task, lane = self._lanes[stream.decode()]
            if task in closed:
                back += [(task, lane, entry_id) for entry_id, _ in entries]
            else:
                self._take(task, lane, entries)
        if back:
            await self._broker.run(worker_calls.hand_back(self._runtime.keys, self._runtime.epoch, back))
        self._executor.go()

    async def _check_pending(self) -> None:
        """Compares what the broker believes we hold with what we do; the difference is handed back, unstarted."""
        runtime = self._runtime
        believed = await self._broker.run(
            worker_calls.own_pending(runtime.keys, runtime.epoch, runtime.consumer, list(self._worker.tasks))
        )
        known = runtime.known_entries() | self._left_alone
        lost = [job for job in believed if job not in known]
        if lost:
            log.warning("%d job(s) were lost on the way here: handed back", len(lost))
            await self._broker.run(worker_calls.hand_back(runtime.keys, runtime.epoch, lost))
        self._checked_at = time.monotonic()
        self._must_check = False
        self._look = True
