"""The scheduler's process: it runs the engine's scheduler, and is its line to the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import orjson

from upnext.control.exits import ExitCode
from upnext.engine.scheduler.scheduler import DeathNotice, Started
from upnext.errors import BrokerUnavailableError
from upnextd.forked.body import Body
from upnextd.shared import messages
from upnextd.shared.messages import Assignment, Message
from upnextd.shared.scoreboard import Writer

STATUS_WITHIN_S = 5.0
"""A supervisor that does not answer within this time is not reported; the next turn asks again."""


class SchedulerChild(Body):
    """Runs the scheduler and carries death notices and acknowledgements between it and the supervisor."""

    def __init__(
        self,
        assignment: Assignment,
        page: Writer,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[Callable[[str], None]], Any],
    ) -> None:
        super().__init__(assignment, page, connection, loop)
        self._ready = False
        self._last_report: tuple[Any, ...] = ()
        self._alive_known = asyncio.Event()
        self._scheduler = factory(self._reaped)
        self._scheduler.on_lost = self._lost
        self._scheduler.on_leading = self._leading
        self._scheduler.on_renamed = self._renamed
        self._scheduler.on_suspects = self.look_around
        self._scheduler.reports.ask = self._ask_status
        self._asked = 0
        self._status: asyncio.Future[str] | None = None
        self._run: asyncio.Task[None] | None = None

    async def main(self) -> int:
        self.watch_signals()
        beating = self.must(self.beat())
        # Without the list of the living, a fresh scheduler would take them for the dead of an earlier life.
        await self._alive_known.wait()
        self._run = self.own(self._scheduler.run())
        booting = self.must(self._boot())
        await asyncio.wait([self._run])
        beating.cancel()
        booting.cancel()
        if self._run.cancelled() or (error := self._run.exception()) is None:
            return ExitCode.OK
        if not self._ready:
            return self.boot_failed(error)
        logging.getLogger("upnextd").critical("the scheduler failed", exc_info=error)
        return ExitCode.FAILED

    def on_message(self, message: Message) -> None:
        match message:
            case messages.Alive():
                self._scheduler.alive(list(message.consumers))
                self._alive_known.set()
            case messages.Died():
                self._scheduler.died(_notice(message))
            case messages.DaemonStatus():
                if self._status is not None and not self._status.done() and message.number == self._asked:
                    self._status.set_result(message.status)
            case messages.Stop():
                self.ask_stop(message.grace_s)
            case _:
                return

    def ask_stop(self, grace_s: float) -> None:  # noqa: ARG002 - it has nothing to finish
        self.stopping = True
        if not self._ready or self._run is None:
            os._exit(ExitCode.OK)
        self.must(self._scheduler.stop())

    async def _ask_status(self) -> dict[str, Any] | None:
        """What the daemon reports of itself; None when it does not answer."""
        self._asked += 1
        self._status = self.loop.create_future()
        self.channel.send(messages.AskStatus(number=self._asked))
        try:
            async with asyncio.timeout(STATUS_WITHIN_S):
                return orjson.loads(await self._status)
        except TimeoutError:
            return None

    def _lost(self, consumer: str) -> None:
        self.channel.send(messages.LeaseLost(consumer=consumer))

    def _reaped(self, consumer: str) -> None:
        self.channel.send(messages.Reaped(consumer=consumer))

    def _renamed(self, daemon_id: str) -> None:
        self.channel.send(messages.Renamed(daemon_id=daemon_id))

    def _leading(self) -> None:
        if self._ready:
            self.look_around()

    async def _boot(self) -> None:
        """Ready once connected."""
        deadline = self.loop.time() + self.assignment.boot_timeout_s
        while not self._scheduler.connected:
            if self.loop.time() >= deadline:
                late = f"did not answer within {self.assignment.boot_timeout_s:g} s (--boot-timeout)"
                os._exit(self.boot_failed(BrokerUnavailableError(f"Redis at {self._scheduler.where} {late}")))
            await asyncio.sleep(0.01)
        self._ready = True
        self.channel.send(messages.Ready(paused=False))
        self.look_around()

    def look_around(self) -> None:
        """Say what changed."""
        scheduler = self._scheduler
        now = (bool(scheduler.leader), scheduler.epoch, bool(scheduler.connected), bool(scheduler.suspects))
        if now != self._last_report:
            self._last_report = now
            leader, epoch, connected, suspects = now
            self.channel.send(
                messages.SchedulerReport(leader=leader, epoch=epoch, connected=connected, suspects=suspects)
            )


def _notice(death: messages.Died) -> DeathNotice:
    return DeathNotice(
        death.consumer,
        death.cause,
        death.charge,
        tuple(map(_started, death.started)),
        death.detail,
        death.crash,
        death.suspects,
        tuple(map(_started, death.ended)),
    )


def _started(job: messages.StartedJob) -> Started:
    return Started(job.task, job.lane, job.entry_id, job.job_id, job.age_s)
