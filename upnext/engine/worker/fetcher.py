"""Takes jobs for an executor: a script that looks at everything without waiting; only when it gave nothing, a read that waits.

It is the one place that takes, so what it does not know of and the broker says we hold is lost on the way, and is handed back.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any

from upnext.core.batches import LARGE_BYTES
from upnext.core.entry import META_FIELD, PAYLOAD_FIELD, Meta, decode_meta
from upnext.core.fetchbudget import HELD_TOO_LONG_S, MOST_BYTES, FetchBudget, held_too_long
from upnext.core.fetchplan import FetchPlan
from upnext.core.keys import GROUP
from upnext.core.lanes import Lane
from upnext.core.spec import WorkerSpec
from upnext.core.suspects import Move, OneAtATime, Suspects, SuspectTurns
from upnext.engine.attempt import Attempt
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import lease
from upnext.engine.calls import worker as worker_calls
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire
from upnext.engine.redis.replies import EpochError, ReapedError, ReplyError
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.host import Host
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.questions import OpenQuestions, Question
from upnext.engine.worker.settling import Settling
from upnext.engine.worker.slots import Slot
from upnext.engine.worker.unstarted import Entry, Unstarted
from upnext.errors import BrokerFullError, BrokerUnavailableError

log = logging.getLogger("upnext.engine")

BLOCK_MS = 2000
UNBLOCK_AGAIN_S = 0.05
HELD_BACK_REREAD_S = 0.8
"""Poll interval for limited tasks that have jobs: the wake-up is only a hint."""
OWN_PENDING_S = 30.0
MOST_UNCONFIRMED = 20_000
"""With more ends than this unconfirmed (a broker that is away or slow) nothing is fetched."""

SWEEP_S = 0.02
BACKLOG_JOBS = 64
"""When one look at everything finds so many jobs in a single stream, that stream is read directly until the next look, SWEEP_S later; not
where so many of its task's largest jobs would be over MOST_BYTES."""

_SCHEMA_FIELD = re.compile(rb"p\d+\Z")
_PAYLOAD, _META = PAYLOAD_FIELD.encode(), META_FIELD.encode()


class Fetcher:
    """Asks in each turn, in this order; what a question finds may end the turn (see `Question` for those that others ask):

    1. May I fetch at all? While the mode forbids it, nothing is asked of the broker.
    2. Is what I know still true: the groups of the streams (GROUP), the plans (PLANS), the server, what is pending as ours (PENDING)?
    3. Is it a suspect's turn?
    4. Can the executor take more? If not, wait for room (ROOM).
    5. Are there jobs in places that the waiting read doesn't see (JOBS), in the next lanes or in all of them (EVERY_LANE)?
    6. Else wait: with a read that the broker answers when a job comes, until something is asked (WAKE).
    """

    def __init__(
        self,
        membership: Membership,
        settling: Settling,
        executor: Executor,
        unstarted: Unstarted,
        broker: QueueClient,
        worker: WorkerSpec,
        host: Host,
        suspects: Suspects,
        one_at_a_time: OneAtATime | None,
    ) -> None:
        self._membership, self._settling, self._host = membership, settling, host
        self._executor, self._unstarted, self._broker, self._worker = executor, unstarted, broker, worker
        self._keys = broker.keys
        self._link = broker.link.another("upnext-fetch", patient=True)
        self._plan = FetchPlan(list(worker.tasks))
        self._budget = FetchBudget(worker.prefetch, time.perf_counter())
        self._open = OpenQuestions(Question.PLANS, Question.JOBS, Question.EVERY_LANE, Question.READY)
        self._allowed = False
        self._waiter: asyncio.Future[None] | None = None
        self._blocked: asyncio.Future[Any] | None = None
        self._blocked_on: Wire | None = None
        self._quiet = asyncio.Event()
        self._near: str | None = None
        self._turns = SuspectTurns() if suspects is Suspects.SHARE else None
        self._only = (one_at_a_time or OneAtATime()) if suspects is Suspects.ONLY else None
        if self._only is not None:
            self._only.join(self, self._kick)
        self._suspect: Attempt | None = None
        self._streams: list[str] = []
        self._open_streams: frozenset[str] = frozenset()
        self._limited: set[str] = set()
        self._late: list[Any] = []
        self._backlog: str | None = None
        self._largest = LARGE_BYTES
        self._swept_at = 0.0
        self._lanes: dict[str, tuple[str, str]] = {
            stream: (task, lane)
            for task in worker.tasks
            for lane, stream in zip(Lane, broker.keys.streams(task), strict=True)
        }
        self._checked_at = time.monotonic()
        self._link_seen: Wire | None = None
        self._hand_back_timer: asyncio.TimerHandle | None = None
        self._background = BackgroundTasks("upnext-hand-back")
        self._maybe_again: set[Entry] = set()
        self._left_alone: set[Entry] = set()
        self._recorded: tuple[str, int] = ("", 0)
        """Consumer and connection, as the consumer's record has them."""
        executor.watch_room(self.room)
        membership.watch(registered_anew=self.reread)

    # --- signals from outside

    def wake(self) -> None:
        """Look at limited tasks: the waiting read doesn't see their jobs."""
        self._open.ask(Question.JOBS)
        self._kick()

    def wake_for_all(self) -> None:
        """Look at all lanes of all tasks."""
        self._open.ask(Question.EVERY_LANE)
        if self._turns is not None:
            self._turns.may_wait()
        self.wake()

    def reread(self) -> None:
        """Read pauses and limits again: they may have changed, or a wake-up was lost."""
        self._open.ask(Question.PLANS)
        self.wake_for_all()

    def allow(self, allowed: bool) -> None:
        """Fetch from now on, or no more; `quiet` says when the last fetch is over."""
        self._allowed = allowed
        self._quiet.clear()
        self._kick()

    def room(self) -> None:
        """Fetch more: the executor could take it."""
        if Question.ROOM in self._open:
            self._kick()

    async def quiet(self) -> None:
        """Return when no fetch is out and none will be, while it isn't allowed."""
        await self._quiet.wait()

    async def connect(self) -> None:
        self._membership.client_id = (await self._link.wire()).client_id
        self._link_seen = self._broker.link.live

    async def end_read(self) -> None:
        """Make sure, after `run`, that the broker feeds this consumer no more. What its last read had got is the broker's to take back."""
        await self._unblock()
        if (wire := self._link.live) is not None:
            await wire.send("PING")  # answered in order: no read is on its way behind the consumer's removal

    async def aclose(self) -> None:
        if self._hand_back_timer is not None:
            self._hand_back_timer.cancel()
        await self._background.finished()
        await self._link.aclose()

    # --- the loop

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._membership.wait_registered()
                await self._turn()
                backoff.reset()
            except (EpochError, ReapedError) as error:
                self._forget_block()
                self._membership.lost(str(error))
            except BrokerUnavailableError as error:
                log.debug("fetching: %s", error)
                self._forget_block()
                self._open.ask(Question.PENDING)
                await backoff.sleep()
            except ReplyError as error:
                self._forget_block()
                self._trouble(str(error))
                await backoff.sleep()
            except BrokerFullError as error:
                log.error("fetching: %s", error)
                await backoff.sleep()

    def _trouble(self, reply: str) -> None:
        """React to an error reply about one task."""
        if "NOGROUP" in reply:
            self._open.ask(Question.GROUP)
        else:
            log.error("fetching: %s", reply)

    async def _turn(self) -> None:
        self._open.take(Question.WAKE)
        if not self._allowed:
            await self._unblock()
            if self._late:
                await self._sort_late(set(self._worker.tasks))
            self._quiet.set()
            self._signal_ready_once()
            await self._wait(None)
            self._quiet.clear()
            return
        await self._refresh()
        if self._only is not None:
            await self._take_only_suspects(self._only)
            return
        if self._turns is not None and await self._serve_suspects(self._turns):
            return
        budget = self._jobs_to_fetch()
        if budget <= 0 or self._unstarted.unconfirmed > MOST_UNCONFIRMED:
            await self._wait_for_room(HELD_BACK_REREAD_S)
            return
        wait_s: float | None = None
        if self._open.take(Question.JOBS):
            found, wait_s = await self._poll_once(budget)
            if found:
                self._open.ask(Question.JOBS)  # there may be more
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
        """Run one suspect after the other; fetch nothing else."""
        self._signal_ready_once()
        if self._suspect_running():
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
        match turns.next(now, idle=self._idle(), room=self._executor.room > 0, suspect_runs=self._suspect_running()):
            case Move.OTHERS:
                return False
            case Move.LOOK:
                call = lease.waiting_suspects(self._keys, list(self._worker.tasks))
                turns.looked(now, waiting=await self._broker.run(call) > 0)
            case Move.TAKE:
                await self._unblock()
                found, held_back = await self._fetch_suspect()
                turns.took(now, found=found, held_back=held_back)
                self._open.ask(Question.JOBS, Question.EVERY_LANE)  # for the others, when it is their turn
            case Move.WAIT:
                await self._unblock()
                await self._wait_for_room(turns.wait_s(now))
        return True

    async def _fetch_suspect(self) -> tuple[bool, bool]:
        """-> (whether one was taken, whether limits hold some back)."""
        tasks, lanes = self._plan.turn(everywhere=True)
        got = await self._broker.run(
            worker_calls.fetch(
                self._keys,
                self._membership.epoch,
                self._membership.consumer,
                tasks,
                budget=1,
                suspect=True,
                lanes=lanes,
                most_limited=1,
            )
        )
        self._membership.saw_server_time(got.server_ms)
        for task, lane, entries in got.entries:
            self._take(task, lane, entries)
            self._plan.gave([task])
        self._executor.wake_runner()
        return bool(got.entries), got.held_back

    async def _poll_once(self, budget: int) -> tuple[int, float | None]:
        """As `_fetch`, in the cheapest way that overlooks nothing."""
        reads_on = self._blocked is None and self._backlog is not None and budget >= BACKLOG_JOBS
        if reads_on and time.monotonic() - self._swept_at < SWEEP_S:
            found = await self._read_on(str(self._backlog), budget)
            if found:
                return found, None
        found, wait_s = await self._fetch(
            budget, everywhere=Question.EVERY_LANE in self._open and not self._executor.held
        )
        self._signal_ready_once()
        if not found and Question.EVERY_LANE in self._open:
            found, wait_s = await self._fetch(budget, everywhere=True)
        return found, wait_s

    async def _refresh(self) -> None:
        """Read again what may have changed unseen: groups, plans, the server, and what the broker counts as ours."""
        if Question.GROUP in self._open:
            with self._open.answering(Question.GROUP):
                # a new group begins at the start: it gives them a second time
                self._maybe_again = self._unstarted.known_entries()
                await self._membership.mend()
        if Question.PLANS in self._open:
            await self._unblock()
            with self._open.answering(Question.PLANS):
                await self._read_plans()
        if self._link_seen is not self._broker.link.live:
            await self._unblock()
            wire = await self._broker.link.wire()
            await self._settling.settled()
            self._link_seen = wire
            self._open.ask(Question.PENDING)
        if Question.PENDING in self._open or time.monotonic() - self._checked_at > OWN_PENDING_S:
            await self._unblock()
            with self._open.answering(Question.PENDING):
                await self._check_pending()

    async def _wait_for_room(self, timeout_s: float | None) -> None:
        self._open.ask(Question.ROOM)
        try:
            await self._wait(timeout_s)
        finally:
            self._open.take(Question.ROOM)

    def _idle(self) -> bool:
        """Whether nothing is held, and all that runs waits for other jobs."""
        return not self._executor.busy and not self._executor.held

    def _suspect_running(self) -> bool:
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

    def _signal_ready_once(self) -> None:
        if self._open.take(Question.READY):
            self._host.ready()

    def _jobs_to_fetch(self) -> int:
        executor = self._executor
        return self._budget.jobs(
            time.perf_counter(), finished=executor.finished, room=executor.room, held=len(executor.held)
        )

    async def _fetch(self, budget: int, *, everywhere: bool) -> tuple[int, float | None]:
        """-> (jobs taken, seconds after which a limited task may have a permit)."""
        executor = self._executor
        near, self._near = self._near, None
        tasks, lanes = self._plan.turn(near, everywhere=everywhere, always=self._limited)
        if everywhere:
            self._open.take(Question.EVERY_LANE)
        call = worker_calls.fetch(
            self._keys,
            self._membership.epoch,
            self._membership.consumer,
            tasks,
            budget=budget,
            lanes=lanes,
            most_limited=self._most_limited(),
        )
        got = await self._broker.run(call)
        self._swept_at = time.monotonic()
        self._backlog = None
        if len(got.entries) == 1 and len(got.entries[0][2]) >= BACKLOG_JOBS:
            stream = self._keys.stream(*got.entries[0][:2])
            self._largest = max(got.largest, LARGE_BYTES)
            fits = BACKLOG_JOBS * self._largest <= MOST_BYTES
            self._backlog = stream if stream in self._open_streams and fits else None
        self._membership.saw_server_time(got.server_ms)
        found = 0
        for task, lane, entries in got.entries:
            found += len(entries)
            self._take(task, lane, entries)
        if got.problem is not None:
            self._trouble(got.problem)
        if found:
            self._plan.gave(dict.fromkeys(task for task, _, _ in got.entries))
            executor.wake_runner()
            if everywhere:
                self._open.ask(Question.EVERY_LANE)  # there may be more
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
        """Read one stream with a backlog, without the script: it would copy every payload twice. -> jobs taken"""
        most = min(budget, MOST_BYTES // self._largest)
        wire = await self._recorded_wire()
        reply = await wire.send(
            "XREADGROUP", "GROUP", GROUP, self._membership.consumer, "COUNT", most, "STREAMS", stream, ">"
        )
        found = len(reply[0][1]) if reply else 0
        if found < most:
            self._backlog = None
        if found:
            self._take(*self._lanes[stream], reply[0][1])
            if self._budget.entry_bytes > self._largest:  # of a producer that doesn't note it: the script does
                self._backlog = None
            self._executor.wake_runner()
        return found

    async def _block(self, wait_s: float | None) -> None:
        if self._blocked is None and self._streams:
            wire = self._blocked_on = await self._recorded_wire()
            streams = ("STREAMS", *self._streams, *[">"] * len(self._streams))
            self._blocked = wire.send(
                "XREADGROUP", "GROUP", GROUP, self._membership.consumer, "COUNT", 1, "BLOCK", BLOCK_MS, *streams
            )
            wire.flush()
        await self._wait(wait_s)
        if wait_s is not None and Question.WAKE not in self._open:
            self._open.ask(Question.JOBS)
        if self._blocked is not None and self._blocked.done():
            self._collect()

    async def _recorded_wire(self) -> Wire:
        """The connection for reads without the script, as the consumer's record names it: a reaper cuts it, and nothing arrives late."""
        while True:
            wire = await self._link.wire()
            known = (self._membership.consumer, wire.client_id)
            if known == self._recorded:
                return wire
            await self._membership.record_connection(wire.client_id)
            self._recorded = known

    async def _wait(self, timeout_s: float | None) -> None:
        """Wait until kicked, the waiting read has something, or the time is over. One hop: while it takes turns, work stands still."""
        if Question.WAKE not in self._open and (self._blocked is None or not self._blocked.done()):
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
        self._open.ask(Question.WAKE)
        self._release()

    def _release(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _collect(self) -> None:
        blocked, self._blocked = self._blocked, None
        assert blocked is not None
        reply = blocked.result()
        if not reply:
            if self._limited:  # a producer of older code doesn't know of a limit and wakes no worker for its jobs
                self._open.ask(Question.JOBS)
            return
        if Question.PLANS in self._open:
            self._late += reply
            return
        for stream, entries in reply:
            task, lane = self._lanes[stream.decode()]
            self._near = task if len(reply) == 1 else None
            self._take(task, lane, entries)
        self._open.ask(Question.JOBS)
        self._executor.wake_runner()

    async def _unblock(self) -> None:
        """End the waiting read; what it had got counts."""
        if self._blocked is None:
            return
        assert self._blocked_on is not None
        while not self._blocked.done():
            await self._broker.link.command("CLIENT", "UNBLOCK", self._blocked_on.client_id)
            # the two connections race: a read that arrives after the command goes on waiting
            await asyncio.wait([self._blocked], timeout=UNBLOCK_AGAIN_S)
        self._collect()

    def _forget_block(self) -> None:
        """After an error: a reply still to come can't be distinguished from a lost one, so the connection goes."""
        if self._blocked is not None:
            if not self._blocked.done() and self._blocked_on is not None:
                self._blocked_on.abort()
                self._open.ask(Question.PENDING)
            elif self._blocked.done() and not self._blocked.cancelled():
                self._blocked.exception()
            self._blocked = None
        self._open.ask(Question.JOBS, Question.EVERY_LANE)

    # --- what came

    def _take(self, task: str, lane: str, entries: list[Any]) -> None:
        executor = self._executor
        spec = executor.tasks[task].spec
        size = 0
        for entry_id, fields in entries:
            if self._maybe_again and self._is_here(task, lane, entry_id):
                continue
            if not fields or fields[0] != _PAYLOAD:
                self._unknown_entry(task, lane, entry_id, fields)
                continue
            payload = fields[1]
            size += len(payload)
            meta: Meta | None = None
            if len(fields) > 2:
                try:
                    meta = decode_meta(fields[3]) if fields[2] == _META else Meta()
                except ValueError as error:
                    self._unstarted.keep_as_dead_letter(task, lane, entry_id, f"its meta can't be read: {error}")
                    continue
            attempt = Attempt(spec, lane, entry_id, meta, self._broker)
            attempt.payload_bytes = len(payload)
            if lane == Lane.SUSPECT:
                self._suspect = attempt
            executor.hold(attempt, payload, first=task in self._limited)
        if entries:
            self._budget.took(len(entries), size)
        if executor.held and self._hand_back_timer is None:
            self._hand_back_timer = asyncio.get_running_loop().call_later(HELD_TOO_LONG_S, self._held_too_long)

    def _is_here(self, task: str, lane: str, entry_id: bytes) -> bool:
        """Whether a job that was given a second time is still held or running; from now on it is pending again."""
        job = (task, lane, entry_id)
        return job in self._maybe_again and job in self._unstarted.known_entries()

    def _unknown_entry(self, task: str, lane: str, entry_id: bytes, fields: list[bytes]) -> None:
        if fields and _SCHEMA_FIELD.match(fields[0]):
            self._left_alone.add((task, lane, entry_id))
            log.error(
                "entry %s of %s was written by a newer version of upnext: left alone; upgrade this worker",
                entry_id.decode(),
                task,
            )
        else:
            self._unstarted.keep_as_dead_letter(task, lane, entry_id, f"it has no field {PAYLOAD_FIELD}")

    def _held_too_long(self) -> None:
        self._hand_back_timer = None
        executor = self._executor
        late = executor.unheld(
            lambda a, held_s: held_too_long(held_s, handed_back=a.meta is not None and a.meta.handed_back)
        )
        if late:
            self._budget.stalled(executor.finished)
            self._background.start(self._hand_back(late))
        if executor.held:
            self._hand_back_timer = asyncio.get_running_loop().call_later(HELD_TOO_LONG_S, self._held_too_long)

    async def _hand_back(self, attempts: list[Attempt]) -> None:
        try:
            await self._unstarted.hand_back(attempts)
        except (EpochError, BrokerUnavailableError, ReplyError) as error:
            log.debug("handing back: %s", error)
            self._open.ask(Question.PENDING)  # what is still ours then is found as unknown

    # --- the truth

    async def _read_plans(self) -> None:
        """Which tasks the waiting read may take: not the paused, not the limited ones."""
        keys = self._keys
        wire = await self._broker.link.wire()
        paused, limited = wire.send("SMEMBERS", keys.paused), wire.send("HKEYS", keys.limits)
        cancels = wire.send("HKEYS", keys.cancel)
        self._limited = {name.decode() for name in await limited}.intersection(self._worker.tasks)
        closed = {name.decode() for name in [*await paused, *await limited]}
        open_tasks = [task for task in self._worker.tasks if task not in closed]
        self._streams = [keys.stream(task, Lane.HIGH) for task in open_tasks] + [
            keys.stream(task, Lane.NORMAL) for task in open_tasks
        ]
        self._open_streams = frozenset(self._streams)
        self._backlog = None
        self._open.ask(Question.JOBS)
        for job_id in await cancels:
            self._unstarted.cancel(job_id.decode())
        await self._sort_late(closed)

    async def _sort_late(self, closed: set[str]) -> None:
        """What the waiting read took while the plans changed: of a task that is paused or limited by now it goes back, unstarted."""
        late, self._late = self._late, []
        back: list[Entry] = []
        for stream, entries in late:
            task, lane = self._lanes[stream.decode()]
            if task in closed:
                back += [(task, lane, entry_id) for entry_id, _ in entries]
            else:
                self._take(task, lane, entries)
        if back:
            await self._unstarted.give_up(back)
        self._executor.wake_runner()

    async def _check_pending(self) -> None:
        """Compare what the broker believes we hold with what we do; the difference is handed back, unstarted."""
        membership = self._membership
        believed = await self._broker.run(
            worker_calls.own_pending(self._keys, membership.epoch, membership.consumer, list(self._worker.tasks))
        )
        known = self._unstarted.known_entries() | self._left_alone
        lost = [job for job in believed if job not in known]
        if lost:
            log.warning("%d job(s) were lost on the way here: handed back", len(lost))
            await self._unstarted.give_up(lost)
        self._checked_at = time.monotonic()
        self._open.ask(Question.JOBS)
