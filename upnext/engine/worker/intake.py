"""What becomes of entries that the broker gave: held for their start, handed back after too long, left alone, kept as dead letters.

Only this takes, so what it does not know of and the broker counts as ours is lost on the way, and is handed back.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from upnext.core.entry import META_FIELD, PAYLOAD_FIELD, Meta, decode_meta
from upnext.core.fetchbudget import HELD_TOO_LONG_S, FetchBudget, held_too_long
from upnext.core.lanes import Lane
from upnext.core.spec import WorkerSpec
from upnext.engine.attempt import Attempt
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import worker as worker_calls
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.redis.replies import EpochError, ReplyError
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.questions import OpenQuestions, Question
from upnext.engine.worker.slots import Slot
from upnext.engine.worker.unstarted import Entry, Unstarted
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.engine")

_SCHEMA_FIELD = re.compile(rb"p\d+\Z")
_PAYLOAD, _META = PAYLOAD_FIELD.encode(), META_FIELD.encode()


class Intake:
    """`limited`: names of tasks with a limit, as known by now; their jobs start before those that were fetched ahead."""

    def __init__(
        self,
        membership: Membership,
        executor: Executor,
        unstarted: Unstarted,
        broker: QueueClient,
        worker: WorkerSpec,
        budget: FetchBudget,
        questions: OpenQuestions,
    ) -> None:
        self._membership, self._executor, self._unstarted = membership, executor, unstarted
        self._broker, self._worker, self._budget, self._open = broker, worker, budget, questions
        self.limited: set[str] = set()
        self._suspect: Attempt | None = None
        self._hand_back_timer: asyncio.TimerHandle | None = None
        self._background = BackgroundTasks("upnext-hand-back")
        self._maybe_again: set[Entry] = set()
        self._left_alone: set[Entry] = set()

    async def aclose(self) -> None:
        if self._hand_back_timer is not None:
            self._hand_back_timer.cancel()
        await self._background.finished()

    def take(self, task: str, lane: str, entries: list[Any]) -> None:
        executor = self._executor
        spec = executor.tasks[task].spec
        redacts = bool(spec.options.redact)
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
            if redacts:
                attempt.redacts = payload
            if lane == Lane.SUSPECT:
                self._suspect = attempt
            executor.hold(attempt, payload, first=task in self.limited)
        if entries:
            self._budget.took(len(entries), size)
        if executor.held and self._hand_back_timer is None:
            self._hand_back_timer = asyncio.get_running_loop().call_later(HELD_TOO_LONG_S, self._held_too_long)

    def expect_again(self) -> None:
        """A group was made anew, and begins at the start: it gives what is here a second time."""
        self._maybe_again = self._unstarted.known_entries()

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

    def idle(self) -> bool:
        """Whether nothing is held, and all that runs waits for other jobs."""
        return not self._executor.busy and not self._executor.held

    def suspect_running(self) -> bool:
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

    # --- what is held for too long

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

    # --- what the broker counts as ours

    async def check_pending(self) -> None:
        """Compare what the broker believes we hold with what we do; the difference is handed back, unstarted."""
        membership = self._membership
        tasks, lost = list(self._worker.tasks), list[Entry]()
        for start in range(0, len(tasks), worker_calls.PENDING_TASKS):
            part = tasks[start : start + worker_calls.PENDING_TASKS]
            believed = await self._broker.run(
                worker_calls.own_pending(self._broker.keys, membership.epoch, membership.consumer, part)
            )
            known = self._unstarted.known_entries() | self._left_alone  # of this moment: others end meanwhile
            lost += [job for job in believed if job not in known]
        if lost:
            log.warning("%d job(s) were lost on the way here: handed back", len(lost))
            await self._unstarted.give_up(lost)
