"""The worker's side of its pool processes: starts them when they are needed, gives each one job at a time, replaces those that die.

A member is ended by SIGKILL when its job is cancelled or runs too long: plain code can't be stopped in any other way that is sure to work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from signal import Signals

import orjson

from upnext.core.spec import ServiceSpec, WorkerSpec
from upnext.engine import tracing
from upnext.engine.attempt import Attempt
from upnext.engine.background import BackgroundTasks
from upnext.engine.contexts import shared_task
from upnext.engine.worker import pool_frames
from upnext.engine.worker.failures import PoolCrash, RemoteError
from upnext.engine.worker.lifespan import LEAVE_S
from upnext.engine.worker.pool_frames import Kind
from upnext.errors import UsageError

log = logging.getLogger("upnext.worker")

_ENTRY = "from upnext.engine.worker.pool_process import main; main()"
_GONE_POLL_S = 0.002


def setup_of(
    service: ServiceSpec, worker: WorkerSpec, redis_url: str, namespace: str, log_setup: str | None = None
) -> bytes:
    """What a member gets first. `log_setup` as in `RuntimeSettings`. Raises UsageError for a service that has no file to import."""
    if service.path is None or service.loader is None:
        raise UsageError("sync_executor='process' needs a service file: pool processes import it")
    return orjson.dumps(
        {
            "loader": service.loader,
            "path": service.path,
            "worker": worker.name,
            "serves": next(iter(worker.tasks), None),
            "redis_url": redis_url,
            "namespace": namespace,
            "log_setup": log_setup,
        }
    )


class _Member:
    """One pool process."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process, self._reader, self._writer = process, reader, writer
        self.jobs = 0
        """How many it was given: the number of the job that it has."""

    @property
    def usable(self) -> bool:
        return self.process.poll() is None and not self._reader.at_eof()

    async def read(self) -> tuple[Kind, bytes]:
        """Raise PoolCrash when it is dead."""
        try:
            kind, length = pool_frames.read_head(await self._reader.readexactly(pool_frames.HEAD.size))
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise PoolCrash(await self.gone()) from None

    def send(self, kind: Kind, body: bytes = b"") -> None:
        self._writer.write(pool_frames.pack(kind, body))

    async def gone(self) -> str:
        """End it if need be; return how it ended, once it has."""
        if self.process.poll() is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):  # it hung up: it is ending by itself
                    await self._ended()
        self.kill()
        await self._ended()
        code = self.process.returncode
        if code >= 0:
            return f"exit:{code}"
        try:
            return f"signal:{Signals(-code).name}"
        except ValueError:
            return f"signal:{-code}"

    async def _ended(self) -> None:
        while self.process.poll() is None:  # noqa: ASYNC110 - it is all but gone, and only Linux has pidfds to wait on
            await asyncio.sleep(_GONE_POLL_S)

    async def leave(self) -> str:
        """Let it end by itself: its lifespan is left. Return how it ended."""
        self._writer.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._ended()
        return await self.gone()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._writer.close()


class ProcessPool:
    """`setup` is from `setup_of`; `spare`: how many idle members are kept; `lifespan`: whether idle ones have something to leave."""

    def __init__(self, setup: bytes, spare: int, *, lifespan: bool = False) -> None:
        self._setup, self._spare, self._lifespan = setup, spare, lifespan
        self._idle: list[_Member] = []
        self._busy: set[_Member] = set()
        self._endings = BackgroundTasks("upnext-pool")
        self._waits = BackgroundTasks("upnext-pool-wait")

    async def run(self, attempt: Attempt, payload: bytes, begins: Callable[[], None]) -> bytes:
        """-> the value, encoded. `begins` is called when a member takes it.

        Raises RemoteError (the task failed) and PoolCrash (its process died). Cancelling it ends the process.
        """
        member = await self._member()
        self._busy.add(member)
        try:
            begins()
            member.jobs += 1
            member.send(Kind.JOB, header(attempt, member.jobs) + b"\n" + payload)
            answer = await self._answer(member, attempt)
        except BaseException:
            await asyncio.shield(self._end(member))  # the job hasn't ended before its process has
            raise
        finally:
            self._busy.discard(member)
        if len(self._idle) < self._spare:
            self._idle.append(member)
        else:
            self._end(member)
        try:
            if isinstance(answer, RemoteError):
                raise answer
            return answer
        finally:
            del answer  # the error holds this frame

    async def aclose(self) -> None:
        for member in self._busy:
            self._end(member)
        for member in self._idle:
            if self._lifespan:
                self._endings.start(member.leave())
            else:
                self._end(member)
        self._idle.clear()
        while self._waits or self._endings:  # the end of one may begin another
            await self._waits.aclose()
            await self._endings.finished()

    async def _answer(self, member: _Member, attempt: Attempt) -> bytes | RemoteError:
        while True:
            kind, body = await member.read()
            match kind:
                case Kind.VALUE:
                    return body
                case Kind.ERROR:
                    error = orjson.loads(body)
                    return RemoteError(error["type"], error["message"], error["traceback"], error["delay_s"])
                case Kind.NOTE:
                    number, _, fields = body.partition(b" ")
                    if int(number) == member.jobs:
                        attempt.note(orjson.loads(fields))
                case Kind.PARK:
                    if int(body) == member.jobs:
                        attempt.begin_wait()
                case Kind.UNPARK:
                    job, wait, at_once = (int(part) for part in body.split())
                    if job == member.jobs:
                        self._waits.start(self._go_on(member, attempt, wait, at_once=bool(at_once)))
                    else:  # a thread that outlived its job
                        member.send(Kind.GO, b"%d" % wait)
                case _:
                    raise PoolCrash(f"it sent {kind.name} in the middle of a job")

    async def _go_on(self, member: _Member, attempt: Attempt, wait: int, *, at_once: bool) -> None:
        await attempt.end_wait(at_once=at_once)
        if member.usable and not at_once:
            member.send(Kind.GO, b"%d" % wait)

    async def _member(self) -> _Member:
        while self._idle:
            member = self._idle.pop()
            if member.usable:
                return member
            self._end(member)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                argv = [sys.executable, "-P", "-c", _ENTRY, str(os.getpid()), str(fd)]
                # Not asyncio's own: no other code may wait for its death, and PDEATHSIG follows the thread that starts it.
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(fd,))  # noqa: ASYNC220 - exec, a few ms
            ours.setblocking(False)
            reader, writer = await shared_task(asyncio.open_connection(sock=ours), "upnext-pool-connect")
        except BaseException:
            ours.close()
            raise
        member = _Member(process, reader, writer)
        member.send(Kind.SETUP, self._setup)
        try:
            kind, body = await member.read()
        except PoolCrash as crash:
            self._end(member)
            raise RuntimeError(f"a pool process died while it imported the service ({crash.cause})") from None
        except BaseException:
            self._end(member)
            raise
        if kind is not Kind.READY:
            self._end(member)
            raise RuntimeError(f"a pool process can't start: {body.decode(errors='replace')}")
        log.debug("pool process %d is ready", process.pid)
        return member

    def _end(self, member: _Member) -> asyncio.Task[str]:
        member.kill()
        return self._endings.start(member.gone())


def header(attempt: Attempt, number: int) -> bytes:
    """What a member must know of a job besides its arguments. `number` counts the jobs of this member."""
    return orjson.dumps(
        {
            "number": number,
            "task": attempt.spec.name,
            "job_id": attempt.job_id,
            "attempt": attempt.attempt,
            "crashes": attempt.crashes,
            "parent_id": attempt.parent_id,
            "root_id": attempt.root_id,
            "own": None if attempt.meta is None else attempt.meta.own,
            "trace": tracing.traceparent_of(attempt),
            "started_at": attempt.started_at,
            "state": attempt.state,
        }
    )
