"""What the processes that serve have in common, whatever they run: the line to the supervisor, the heartbeat, signals, the way out."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

from upnext.control.exits import ExitCode
from upnext.engine import signals
from upnext.engine.worker import stacks
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, LifespanError, SecretError, UsageError
from upnextd.shared import messages
from upnextd.shared.channel import Channel
from upnextd.shared.messages import Assignment, Message
from upnextd.shared.scoreboard import Writer

BEAT_S = 0.5


class Body:
    """What all kinds of children share: the channel, the heartbeat, signals, the way out."""

    def __init__(
        self, assignment: Assignment, page: Writer, connection: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.assignment = assignment
        self.page = page
        self.loop = loop
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.channel = Channel(connection, loop, self._received, self._orphaned)

    def _received(self, message: Message) -> None:
        if isinstance(message, messages.DescribeTasks):
            text = stacks.describe(asyncio.all_tasks(self.loop))
            self.channel.send(messages.TasksDescribed(number=message.number, text=text))
        else:
            self.on_message(message)

    def on_message(self, message: Message) -> None:
        raise NotImplementedError

    def ask_stop(self, grace_s: float) -> None:
        raise NotImplementedError

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run in the background, kept until it is done."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def must(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """As `own`; its failure ends the process, for what was asked of it will never be answered."""
        task = self.own(work)
        task.add_done_callback(self._check)
        return task

    def _check(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logging.getLogger("upnextd").critical("the child can't go on", exc_info=error)
            sys.stderr.flush()
            os._exit(ExitCode.FAILED)

    def watch_signals(self) -> None:
        signals.answer(self.loop, signal.SIGTERM, lambda: self.ask_stop(self.assignment.stop_timeout_s))
        signals.answer(self.loop, signal.SIGQUIT, lambda: os._exit(ExitCode.OK))

    async def beat(self) -> None:
        """The loop's only steady timer: what else is looked at now and then goes with it."""
        while True:
            self.page.beat()
            self.look_around()
            await asyncio.sleep(BEAT_S)

    def look_around(self) -> None:
        """Called at each beat."""

    def boot_failed(self, error: BaseException) -> int:
        """Say in one line why this child can't start; -> its exit code."""
        code = ExitCode.FAILED
        if isinstance(error, BrokerUnavailableError):
            code = ExitCode.UNAVAILABLE
        elif isinstance(error, UsageError):
            code = ExitCode.CONFIG
        line = " ".join(str(error).split()) or type(error).__name__
        lifespan = isinstance(error, LifespanError)
        named = line if lifespan or code is not ExitCode.FAILED else f"{type(error).__name__}: {line}"
        away = code is ExitCode.UNAVAILABLE and not isinstance(error, BrokerRefusedError)
        self.channel.send(messages.BootFailed(code=int(code), line=named, away=away, lifespan=lifespan))
        if code is ExitCode.FAILED and not isinstance(error, SecretError):  # its line says all
            logging.getLogger("upnextd").error("can't start", exc_info=error)
        return int(code)

    def _orphaned(self) -> None:
        # The supervisor is gone; PDEATHSIG is faster where it works.
        os._exit(ExitCode.FAILED)
