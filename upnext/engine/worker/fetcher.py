"""Takes jobs for an executor: asks without waiting for as long as that gives something, then with a read that waits.

This file decides what to ask next. `Polling` asks without waiting, `FetchConnection` has the read that waits, `Intake` takes what came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from upnext.core.fetchbudget import FetchBudget
from upnext.core.lanes import Lane
from upnext.core.spec import WorkerSpec
from upnext.core.suspects import Move, OneAtATime, Suspects, SuspectTurns
from upnext.engine.calls import lease
from upnext.engine.calls.rows import names
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire
from upnext.engine.redis.replies import EpochError, ReapedError, ReplyError
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.fetch_connection import FetchConnection
from upnext.engine.worker.host import Host
from upnext.engine.worker.intake import Intake
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.polling import HELD_BACK_REREAD_S, Polling
from upnext.engine.worker.questions import OpenQuestions, Question
from upnext.engine.worker.settling import Settling
from upnext.engine.worker.unstarted import Entry, Unstarted
from upnext.errors import BrokerFullError, BrokerUnavailableError

log = logging.getLogger("upnext.engine")

OWN_PENDING_S = 30.0
MOST_UNCONFIRMED = 20_000
"""With more ends than this unconfirmed (a broker that is away or slow) nothing is fetched."""


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
        self._budget = FetchBudget(worker.prefetch, time.perf_counter())
        self._open = OpenQuestions(Question.PLANS, Question.JOBS, Question.EVERY_LANE, Question.READY)
        self._connection = FetchConnection(broker, membership)
        self._intake = Intake(membership, executor, unstarted, broker, worker, self._budget, self._open)
        self._polling = Polling(membership, executor, self._intake, self._connection, broker, worker, self._budget)
        self._allowed = False
        self._waiter: asyncio.Future[None] | None = None
        self._quiet = asyncio.Event()
        self._turns = SuspectTurns() if suspects is Suspects.SHARE else None
        self._only = (one_at_a_time or OneAtATime()) if suspects is Suspects.ONLY else None
        if self._only is not None:
            self._only.join(self, self._kick)
        self._streams: list[str] = []
        self._late: list[Any] = []
        self._trouble_named = ""
        self._lanes: dict[str, tuple[str, str]] = {
            stream: (task, lane)
            for task in worker.tasks
            for lane, stream in zip(Lane, broker.keys.streams(task), strict=True)
        }
        self._checked_at = time.monotonic()
        self._link_seen: Wire | None = None
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
        await self._connection.connect()
        self._link_seen = self._broker.link.live

    async def end_read(self) -> None:
        """Make sure, after `run`, that the broker feeds this consumer no more. What its last read had got is the broker's to take back."""
        await self._unblock()
        await self._connection.end()

    async def aclose(self) -> None:
        await self._intake.aclose()
        await self._connection.aclose()

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
        if "NOGROUP" in reply or "WRONGTYPE" in reply:
            self._open.ask(Question.GROUP)
        elif reply != self._trouble_named:
            self._trouble_named = reply
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
        if wait_s is None and self._intake.limited:
            wait_s = HELD_BACK_REREAD_S
        if self._turns is not None:
            self._turns.others_have_none()
            if (until_s := self._turns.wait_s(time.monotonic())) is not None:
                wait_s = min(until_s, wait_s or until_s)
        await self._block(wait_s)

    async def _take_only_suspects(self, process: OneAtATime) -> None:
        """Run one suspect after the other; fetch nothing else."""
        self._signal_ready_once()
        if self._intake.suspect_running():
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
        match turns.next(
            now, idle=self._intake.idle(), room=self._executor.room > 0, suspect_runs=self._intake.suspect_running()
        ):
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
        """As `Polling.fetch_suspect`."""
        found, held_back = await self._polling.fetch_suspect()
        if self._polling.problem is not None:
            self._trouble(self._polling.problem)
        return found, held_back

    async def _poll_once(self, budget: int) -> tuple[int, float | None]:
        """In the cheapest way that overlooks nothing. -> as `Polling.fetch`"""
        if self._connection.blocked is None and (found := await self._polling.backlog(budget)):
            return found, None
        found, wait_s = await self._fetch(
            budget, everywhere=Question.EVERY_LANE in self._open and not self._executor.held
        )
        self._signal_ready_once()
        if not found and Question.EVERY_LANE in self._open:
            found, wait_s = await self._fetch(budget, everywhere=True)
        return found, wait_s

    async def _fetch(self, budget: int, *, everywhere: bool) -> tuple[int, float | None]:
        if everywhere:
            self._open.take(Question.EVERY_LANE)
        found, wait_s = await self._polling.fetch(budget, everywhere=everywhere)
        if self._polling.problem is not None:
            self._trouble(self._polling.problem)
        if found and everywhere:
            self._open.ask(Question.EVERY_LANE)  # there may be more
        return found, wait_s

    async def _refresh(self) -> None:
        """Read again what may have changed unseen: groups, plans, the server, and what the broker counts as ours."""
        if Question.GROUP in self._open:
            with self._open.answering(Question.GROUP):
                self._intake.expect_again()
                await self._broker.link.set_aside([*self._keys.lasting, *self._lanes], self._membership.epoch)
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
                await self._intake.check_pending()
                self._checked_at = time.monotonic()
                self._open.ask(Question.JOBS)

    async def _wait_for_room(self, timeout_s: float | None) -> None:
        self._open.ask(Question.ROOM)
        try:
            await self._wait(timeout_s)
        finally:
            self._open.take(Question.ROOM)

    def _signal_ready_once(self) -> None:
        if self._open.take(Question.READY):
            self._host.ready()

    def _jobs_to_fetch(self) -> int:
        executor = self._executor
        return self._budget.jobs(
            time.perf_counter(), finished=executor.finished, room=executor.room, held=len(executor.held)
        )

    async def _block(self, wait_s: float | None) -> None:
        if self._connection.blocked is None and self._streams:
            await self._connection.block(self._streams)
        await self._wait(wait_s)
        if wait_s is not None and Question.WAKE not in self._open:
            self._open.ask(Question.JOBS)
        self._collect()

    async def _wait(self, timeout_s: float | None) -> None:
        """Wait until kicked, the waiting read has something, or the time is over. One hop: while it takes turns, work stands still."""
        blocked = self._connection.blocked
        if Question.WAKE not in self._open and (blocked is None or not blocked.done()):
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None if timeout_s is None else loop.call_later(timeout_s, self._release)
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
        self._collect()

    def _kick(self) -> None:
        self._open.ask(Question.WAKE)
        self._release()

    def _release(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _collect(self) -> None:
        """Take what the waiting read has got, if it is done."""
        blocked = self._connection.blocked
        if blocked is None or not blocked.done():
            return
        reply = self._connection.reply()
        if not reply:
            if (
                self._intake.limited
            ):  # a producer of older code doesn't know of a limit and wakes no worker for its jobs
                self._open.ask(Question.JOBS)
            return
        if Question.PLANS in self._open:
            self._late += reply
            return
        for stream, entries in reply:
            task, lane = self._lanes[stream.decode()]
            self._polling.near = task if len(reply) == 1 else None
            self._intake.take(task, lane, entries)
        self._open.ask(Question.JOBS)
        self._executor.wake_runner()

    async def _unblock(self) -> None:
        """End the waiting read; what it had got counts."""
        if self._connection.blocked is not None:
            await self._connection.unblock()
            self._collect()

    def _forget_block(self) -> None:
        if self._connection.forget():
            self._open.ask(Question.PENDING)
        self._open.ask(Question.JOBS, Question.EVERY_LANE)

    # --- the truth

    async def _read_plans(self) -> None:
        """Which tasks the waiting read may take: not the paused, not the limited ones."""
        keys = self._keys
        wire = await self._broker.link.wire()
        paused, limited = wire.send("SMEMBERS", keys.paused), wire.send("HKEYS", keys.limits)
        cancels = wire.send("HKEYS", keys.cancel)
        limited_names = names(await limited, keys.limits)
        self._intake.limited = set(limited_names).intersection(self._worker.tasks)
        closed = {*names(await paused, keys.paused, "SREM"), *limited_names}
        open_tasks = [task for task in self._worker.tasks if task not in closed]
        self._streams = [keys.stream(task, lane) for lane in (Lane.HIGH, Lane.NORMAL) for task in open_tasks]
        self._polling.read_directly({stream: self._lanes[stream] for stream in self._streams})
        self._open.ask(Question.JOBS)
        for job_id in names(await cancels, keys.cancel):
            self._unstarted.cancel(job_id)
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
                self._intake.take(task, lane, entries)
        if back:
            await self._unstarted.give_up(back)
        self._executor.wake_runner()
