"""A daemon's scheduler: leases of its consumers, promotion of due jobs, reaping of the dead, and, while it leads, crons.

It knows nothing of processes: the supervisor tells it who lives and who died.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from upnext.core.keys import Keys
from upnext.core.leases import Sightings, renewed_within
from upnext.core.ownership import ANNOUNCE_S, ANNOUNCER_LEASE_MS, Source
from upnext.core.spec import ServiceSpec
from upnext.engine.calls import lease, rows
from upnext.engine.redis import wakeups
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire
from upnext.engine.redis.endpoint import parse_url
from upnext.engine.redis.lookout import Lookout
from upnext.engine.redis.places import Places
from upnext.engine.redis.preflight import check_broker
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import EpochError, ReplyError
from upnext.engine.redis.subscriber import Listener
from upnext.engine.scheduler.announcements import Announcements
from upnext.engine.scheduler.consumer_sweep import ConsumerSweep
from upnext.engine.scheduler.cron_loop import CronWork
from upnext.engine.scheduler.reaper import NO_LEASE, DeathNotice, Reaper, Started
from upnext.engine.scheduler.reports import Reports
from upnext.engine.scheduler.sampling import Sampling
from upnext.engine.worker.membership import LEASE_MS
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, QueueError

__all__ = ["DeathNotice", "Scheduler", "SchedulerSettings", "Started"]

log = logging.getLogger("upnext.scheduler")

BEAT_S = 2.5
LEADERSHIP_MS = 6_000
PROMOTE_JOBS = 200
MOST_REAPED = 20
"""So many lost consumers are begun with at each beat."""
SUSPECTS_OF_TASKS = 500
"""At a beat so many tasks are looked at for suspects."""
KEYS_CHECK_S = 30.0
"""Between two looks for keys of a wrong type."""
SILENT_S = 2.0
"""A broker that owes an answer for longer counts as away."""
SOONEST_S = 0.05
"""Beats are not closer than that."""
FINE_S = 0.002
"""The last bit before a job is due is slept by the thread, to the microsecond."""

_LEADERSHIP = "leadership"


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """`since_ms`: when this daemon started (Unix ms, this host's clock); older consumers of this daemon id are of its former life.

    since_s: the same on this host's monotonic clock, when it took the lock of its state directory: no process of a former life lived then.
    """

    redis_url: str
    namespace: str
    daemon_id: str
    service: ServiceSpec | None = None
    generation_ms: int = 0
    since_ms: int = 0
    host_name: str = field(default_factory=socket.gethostname)
    returns: bool = True
    """This daemon has the same id after a restart."""
    passing: bool = False
    """The service is being developed: what it registers goes when it stops."""
    since_s: float = field(default_factory=time.monotonic)
    fires: bool = True
    """It fires crons while it leads."""


def _ignore(_consumer: str) -> None:
    """The default of a callback."""


def _nothing() -> None:
    """The default of a callback."""


class _NothingRegisteredError(BrokerUnavailableError):
    """The broker serves; there is no data set to keep yet."""


class Scheduler:
    """`on_reaped(consumer)` acknowledges a death notice; `on_lost(consumer)` says that a living consumer of ours was reaped by others.

    `on_leading()` is called after every change of `leader` or `epoch`. `on_renamed(daemon_id)`:
    another daemon has our id, so we have a new one.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        on_reaped: Callable[[str], None],
        on_lost: Callable[[str], None] = _ignore,
    ) -> None:
        self._settings = settings
        self.on_lost = on_lost
        self.on_leading: Callable[[], None] = _nothing
        self.on_renamed: Callable[[str], None] = _ignore
        self._daemon_id = settings.daemon_id
        self._keys = Keys(settings.namespace)
        self._token = secrets.token_hex(8)
        endpoint = parse_url(settings.redis_url)
        self.where = endpoint.describe()
        """The broker's place, for people: without the password."""
        self._link = Link(endpoint, "upnext-scheduler", lookout=Lookout(Places(endpoint), self._keys.slot))
        self._listener = Listener(
            self._link, "upnext-bell", self._keys, [self._keys.bell], self._on_message, self._bell_was_away
        )
        self._beat_now = asyncio.Event()
        service = settings.service
        self._tasks = [] if service is None else [name for worker in service.workers for name in worker.tasks]
        self._reaper = Reaper(self._link, self._keys, lambda: self._epoch, on_reaped, self._set_apart, self._tasks)
        self._tasks_looked_at = 0
        self._suspects_in: set[int] = set()
        """Where in `_tasks` the parts begin that have some."""
        self.suspects = False
        """Whether suspects of a crash wait for a process that runs them alone."""
        self.on_suspects: Callable[[], None] = _nothing
        """Called when `suspects` changes."""
        self._crons = CronWork(
            self._link, self._keys, lambda: self._epoch, self._term, self._server_ms, self._beat_now.set
        )
        self._sweep = ConsumerSweep(
            self._link, self._keys, lambda: self._epoch, lambda: self.leader, self._reaper.unowned
        )
        self._sampling = Sampling(self._link, self._keys, lambda: self._epoch, lambda: self.leader, self._server_ms)
        self._alive: set[str] = set()
        self._beaten: set[str] = set()
        self._epoch = ""
        self._offset_ms = 0
        self._promote_now = asyncio.Event()
        self._stopped = asyncio.Event()
        self._asked_at: float | None = None
        self._served = True
        self._client_id = 0
        self._backoff = Backoff()
        pause_s = LEASE_MS / 2000  # within half a lease, who missed a beat has renewed after the next
        self._leases = Sightings(LEASE_MS / 1000, pause_s)
        self._leadership = Sightings(LEADERSHIP_MS / 1000, pause_s)
        self._former_done = False
        self._announce_now = asyncio.Event()
        self._link.on_aside = self._announce_now.set
        self._connections = 0
        self._keys_checked_at = -KEYS_CHECK_S
        self._connected_at = 0.0
        self._announcements = Announcements(
            self._link,
            self._keys,
            lambda: self._epoch,
            Source(
                settings.daemon_id,
                settings.host_name,
                settings.service and settings.service.file,
                settings.returns,
                settings.passing,
            ),
            settings.service,
            settings.generation_ms,
            self._token,
        )
        self.reports = Reports(
            self._link,
            self._keys,
            lambda: self._epoch,
            lambda: self._daemon_id,
            settings.host_name,
            self._token,
            returns=settings.returns,
        )
        self.leader = False
        self.epoch = 0
        """Term of the leadership that this scheduler saw last; its own while `leader`."""

    @property
    def connected(self) -> bool:
        """Whether the broker answers, and serves: one cut off from its cluster answers, too."""
        owed_s = 0.0 if self._asked_at is None else time.monotonic() - self._asked_at
        return self._link.live is not None and owed_s < SILENT_S and self._served

    def alive(self, consumers: Collection[str]) -> None:
        """The daemon's living consumers; call it on every change."""
        self._alive = set(consumers)
        self.reports.changed()
        if not self._epoch:  # one that is new registers now, and so makes the data set known
            self._backoff.reset()
            self._beat_now.set()

    def died(self, notice: DeathNotice) -> None:
        """A child died. Repeat it until `on_reaped` acknowledges: that is harmless."""
        self._alive.discard(notice.consumer)
        self.reports.changed()
        self._reaper.died(notice)
        if not self._epoch:
            self._beat_now.set()  # without the epoch nothing can be taken back

    async def run(self) -> None:
        """Until `stop`. A broker that is away is waited for; BrokerRefusedError is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._keep_beating(), name="upnext-beat"),
                    group.create_task(self._keep_promoting(), name="upnext-promote"),
                    *([group.create_task(self._crons.run(), name="upnext-crons")] if self._settings.fires else []),
                    group.create_task(self._sweep.run(), name="upnext-consumer-sweep"),
                    group.create_task(self._sampling.run(), name="upnext-sampling"),
                    group.create_task(self._keep_announcing(), name="upnext-announce"),
                    group.create_task(self.reports.run(), name="upnext-report"),
                ]
                await self._stopped.wait()
                for loop in loops:
                    loop.cancel()
        except* BrokerRefusedError as refused:
            raise refused.exceptions[0] from None
        finally:
            await self._reaper.aclose()
            await self._resign()
            await self._listener.aclose()
            await self._link.aclose()

    async def stop(self) -> None:
        self.stop_soon()

    def stop_soon(self) -> None:
        """End `run`; from its loop."""
        self._stopped.set()

    async def _resign(self) -> None:
        led, self.leader = self.leader, False
        if self._link.live is None or not self._epoch:
            return
        try:
            async with asyncio.timeout(0.5):
                await self._announcements.withdraw()
                await self.reports.withdraw()
                if not led:
                    return
                await self._link.run(lease.resign(self._keys, self._epoch, daemon=self._daemon_id, token=self._token))
        except (TimeoutError, QueueError) as error:
            log.debug("resigning: %s", error)  # announcement and leadership end by themselves

    # --- beats

    async def _keep_beating(self) -> None:
        backoff = self._backoff
        checked = False
        while True:
            self._asked_at = time.monotonic()
            try:
                if not checked:
                    await check_broker(self._link, self._keys)
                    await self._listener.start()
                    checked = True
                await self._beat()
                self._served = True
                backoff.reset()
                wait_s = self._until_next_beat_s()
            except BrokerRefusedError:
                if not checked:
                    raise
                wait_s = backoff.next_s()
            except EpochError:
                log.warning("the broker has another data set: its consumers register anew")
                self._epoch = ""
                self._lead(False, self.epoch)
                wait_s = backoff.next_s()
            except (BrokerUnavailableError, ReplyError) as error:
                level = logging.WARNING if isinstance(error, ReplyError) else logging.DEBUG
                log.log(level, "beat of %s: %s", self._settings.daemon_id, error)
                self._served = isinstance(error, ReplyError | _NothingRegisteredError)
                if self.leader:
                    log.warning("not leading any more: %s", error)
                self._lead(False, self.epoch)
                wait_s = backoff.next_s()
            self._asked_at = None
            self._beat_now.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._beat_now.wait()
            except TimeoutError:
                pass

    async def _beat(self) -> None:
        wire = await self._link.wire()
        if wire.client_id != self._client_id:
            self._client_id = wire.client_id
            self._connections += 1
            self._connected_at = time.monotonic()
            self._announce_now.set()
            self.reports.changed()
            self._leases, self._leadership = self._leases.forgotten(), self._leadership.forgotten()
        await self._know_the_data_set(wire)
        await self._set_aside_bad_keys()
        asked_ms, asked_s = time.time_ns() // 1_000_000, time.monotonic()
        beaten = set(self._alive)
        beat = await self._link.run(
            lease.beat(
                self._keys,
                self._epoch,
                daemon=self._daemon_id,
                token=self._token,
                lease_ms=LEASE_MS,
                leadership_ms=LEADERSHIP_MS,
                consumers=sorted(beaten),
                ended_leadership=self._leadership.ended().get(_LEADERSHIP, ""),
            )
        )
        answered_s = time.monotonic()
        self._offset_ms = beat.server_ms - (asked_ms + time.time_ns() // 1_000_000) // 2
        self._lead(beat.leads, beat.term)
        self.reports.beat(watched=beat.watched)
        for consumer in beat.missing:
            if consumer in self._beaten:  # one that is new tells its name before it registers
                self.on_lost(consumer)
        self._beaten = beaten
        theirs = {name: end for name, end in beat.leases.items() if name not in self._alive}
        self._leases = self._leases.after(theirs, asked_s, answered_s)
        held = {} if beat.leads else {_LEADERSHIP: beat.leadership}
        self._leadership = self._leadership.after(held, asked_s, answered_s)
        if not self._former_done:
            await self._reap_former(beat, asked_s - self._settings.since_s)
        self._reap_the_lost(beat.graves)
        if beat.next_due_ms is not None and beat.next_due_ms <= beat.server_ms + BEAT_S * 1000:
            self._promote_now.set()
        await self._look_for_suspects()

    def _lead(self, leads: bool, term: int) -> None:
        before = (self.leader, self.epoch)
        self.leader, self.epoch = leads, term
        if leads and not before[0]:
            log.info("leading (term %d)", term)
            self._crons.wake()
        if before != (leads, term):
            self.on_leading()

    def _reap_the_lost(self, graves: Sequence[str]) -> None:
        for consumer in graves:
            if consumer not in self._alive:
                self._reaper.ended(consumer)
        for consumer, end in islice(self._leases.ended().items(), MOST_REAPED):
            self._reaper.ended(consumer, end)

    def _until_next_beat_s(self) -> float:
        """A beat's time, or less when a lease or the leadership would have ended before."""
        ends = [end for end in (self._leases.next_end_s(), self._leadership.next_end_s()) if end is not None]
        return min([BEAT_S, *(max(SOONEST_S, end - time.monotonic()) for end in ends)])

    async def _look_for_suspects(self) -> None:
        """One part of the tasks at each beat. This daemon's own crashes are known at once; others', or former ones', are found this way."""
        part = self._tasks_looked_at
        tasks = self._tasks[part : part + SUSPECTS_OF_TASKS]
        if tasks and await self._link.run(lease.waiting_suspects(self._keys, tasks)):
            self._suspects_in.add(part)
        else:
            self._suspects_in.discard(part)
        more = part + SUSPECTS_OF_TASKS
        self._tasks_looked_at = more if more < len(self._tasks) else 0
        self._tell_suspects()

    def _set_apart(self, tasks: Sequence[str]) -> None:
        positions = (self._tasks.index(task) for task in tasks if task in self._tasks)
        self._suspects_in.update(at // SUSPECTS_OF_TASKS * SUSPECTS_OF_TASKS for at in positions)
        self._tell_suspects()

    def _tell_suspects(self) -> None:
        suspects = bool(self._suspects_in)
        if suspects != self.suspects:
            self.suspects = suspects
            self.on_suspects()

    async def _know_the_data_set(self, wire: Wire) -> None:
        if not self._epoch:
            raw = await wire.send("GET", self._keys.epoch)
            if raw is None or re.fullmatch(rb"[\w.:-]+", raw) is None:
                raise _NothingRegisteredError("no worker has registered yet")
            self._epoch = raw.decode()
            self._announcements.reset()
            self._announce_now.set()
            self.reports.changed()

    async def _set_aside_bad_keys(self) -> None:
        """Now and then: a script that can do without a key of another type says nothing of it."""
        if time.monotonic() >= self._keys_checked_at + KEYS_CHECK_S:
            self._keys_checked_at = time.monotonic()
            with suppress(ReplyError, BrokerRefusedError):  # of the user's rights
                await self._link.set_aside(self._keys.lasting, self._epoch)

    async def _reap_former(self, beat: lease.Beat, held_s: float) -> None:
        """What a former life of this daemon held, at once. Its processes are dead: none renewed a lease after we took the lock."""
        raw = await self._link.command("HGETALL", self._keys.consumers)
        left_over: dict[str, str] = {}
        for name, record in rows.pairs(raw):
            owner, known = rows.readable(record), rows.name(name, self._keys.consumers)
            if owner is None or known is None:
                rows.bad_row(self._keys.consumers, name, "has no consumer's record", "HDEL")
                continue
            since_ms = owner.get("since_ms")
            former = isinstance(since_ms, int) and since_ms < self._settings.since_ms
            if owner.get("daemon") == self._settings.daemon_id and former:
                left_over[known] = beat.leases.get(known, NO_LEASE)
        left_over = {name: end for name, end in left_over.items() if name not in self._alive}
        self._former_done = True
        if any(renewed_within(float(end), beat.server_ms, LEASE_MS, held_s) for end in left_over.values()):
            self._rename()
            return
        for name, end in left_over.items():
            self._reaper.left_over(name, end)

    def _rename(self) -> None:
        """Another daemon, which lives, has our id. What it holds is its own; if some of that is ours, its leases will end."""
        self._daemon_id = secrets.token_hex(8)
        self.on_renamed(self._daemon_id)

    def _term(self) -> int | None:
        return self.epoch if self.leader and self._epoch else None

    def _server_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._offset_ms

    # --- announcing

    async def _keep_announcing(self) -> None:
        """Every ANNOUNCE_S, and at once on a new connection or data set."""
        while True:
            wait_s = ANNOUNCE_S
            self._announce_now.clear()
            if self._epoch and self._link.live is not None:
                # After an outage of the broker no daemon is announced until the others are back, too.
                up_s = time.monotonic() - self._connected_at
                settled = self._connections <= 1 or up_s > ANNOUNCER_LEASE_MS / 1000
                try:
                    await self._announcements.turn(leads=self.leader, settled=settled)
                except EpochError as error:
                    log.debug("announcing: %s", error)
                    self._beat_now.set()
                except BrokerUnavailableError as error:
                    log.debug("announcing: %s", error)
                    wait_s = BEAT_S
                except ReplyError as error:
                    log.warning("what this daemon declares can't be announced: %s", error)
            try:
                async with asyncio.timeout(wait_s):
                    await self._announce_now.wait()
            except TimeoutError:
                pass

    # --- promotion

    async def _keep_promoting(self) -> None:
        """Sleeps until the head of the delayed set is due; the bell says when there is a new head."""
        backoff = Backoff()
        wait_s: float | None = None
        while True:
            await self._sleep_until_due(wait_s)
            self._promote_now.clear()
            if not self._epoch:
                wait_s = 0.1
                continue
            try:
                asked_at = time.monotonic()
                done = await self._link.run(lease.promote(self._keys, self._epoch, PROMOTE_JOBS))
                for job_id, why in done.put_off:
                    log.warning("job %s is due and was put off: %s", job_id, why)
                # The answer is about half a round trip old, and as long as that is the way of the next question.
                wait_s = None if done.next_us is None else done.next_us / 1e6 - (time.monotonic() - asked_at) / 2
                backoff.reset()
            except EpochError as error:
                log.debug("promote: %s", error)
                self._beat_now.set()
                wait_s = backoff.next_s()
            except BrokerUnavailableError as error:
                log.debug("promote: %s", error)
                wait_s = backoff.next_s()
            except ReplyError as error:
                log.warning("promoting delayed jobs: %s", error)
                wait_s = backoff.next_s()

    async def _sleep_until_due(self, wait_s: float | None) -> None:
        """Until `wait_s` has passed, or there is a new head."""
        due_at = time.monotonic() + (wait_s or 0)
        try:
            async with asyncio.timeout(None if wait_s is None else wait_s - FINE_S):
                await self._promote_now.wait()
        except TimeoutError:
            # The loop's timers go by milliseconds. The loop is held up for no longer than FINE_S.
            time.sleep(max(0.0, due_at - time.monotonic()))  # noqa: ASYNC251

    def _on_message(self, _channel: str, data: bytes) -> None:
        match wakeups.parse(data):
            case (wakeups.Word.DELAYED, _):
                self._promote_now.set()
            case (wakeups.Word.PLANS, _):
                self._crons.wake()
            case (wakeups.Word.WATCHED, _):
                self.reports.look()
            case _:
                pass

    def _bell_was_away(self) -> None:
        self._beat_now.set()
        self._promote_now.set()
        self._crons.wake()
