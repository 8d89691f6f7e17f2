"""A process beside the workers that nothing else needs: exec'd with its order on stdin, started again when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from upnextd.shared import process
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import LineReader, Log

_AGAIN_FIRST_S = 0.5
_AGAIN_MOST_S = 30.0
_PROVEN_S = 10.0


class Companion:
    """Keeps one process in the slot `slot`. `entry` is what it runs ("module:function"); `order` makes what it is to do, anew for each."""

    def __init__(
        self,
        slot: str,
        entry: str,
        order: Callable[[], dict[str, Any]],
        env: Mapping[str, str],
        log: Log,
        kernel: Kernel,
    ) -> None:
        self.slot = slot
        self.pid: int | None = None
        self.restarts = 0
        self.started_at = 0.0
        self._entry = entry
        self._order = order
        self._env = env
        self._log = log
        self._kernel = kernel
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._delay_s = _AGAIN_FIRST_S
        self._again: asyncio.TimerHandle | None = None
        self._stopping = False

    def start(self) -> None:
        """Exec it; where the system refuses, later."""
        self._again = None
        try:
            self._launch()
        except OSError as error:
            self._log.fault(f"can't start the {self.slot} process: {process.why(error)}")
            self._later()

    def stop(self) -> None:
        """It has nothing to finish."""
        self._stopping = True
        if self._again is not None:
            self._again.cancel()
        self.kill()

    def kill(self) -> None:
        """End it; unless stopped, another follows."""
        if self.pid is not None:
            self._kernel.signal(self._pidfd, signal.SIGKILL)

    def _launch(self) -> None:
        order, order_in = os.pipe2(os.O_CLOEXEC)
        out, into = self._kernel.pipe()
        try:
            argv = process.python_argv(self._entry)
            self.pid = self._kernel.spawn(argv, self._env, {0: order, 1: into, 2: into})
            # By a pipe, not as an argument: a URL may have a password in it. It fits into the pipe.
            os.write(order_in, orjson.dumps(self._order()))
        except OSError:
            os.close(out)
            raise
        finally:
            for fd in (order, order_in, into):
                os.close(fd)
        self._pidfd = self._kernel.open_pidfd(self.pid)
        self.started_at = self._loop.time()
        pid = self.pid
        output = LineReader(out, self._loop, lambda line: self._log.child_line(self.slot, pid, line), self._kernel)
        self._loop.add_reader(self._pidfd, self._ended, output)

    def _ended(self, output: LineReader) -> None:
        status = self._kernel.reap(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        output.drain()
        self.pid = None
        if self._stopping:
            return
        if self._loop.time() - self.started_at > _PROVEN_S:
            self._delay_s = _AGAIN_FIRST_S
        self._log.fault(f"the {self.slot} process ended ({status}); again in {self._delay_s:g} s")
        self.restarts += 1
        self._later()

    def _later(self) -> None:
        self._again = self._loop.call_later(self._delay_s, self.start)
        self._delay_s = min(self._delay_s * 2, _AGAIN_MOST_S)
