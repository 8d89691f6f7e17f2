"""Workers run from code, in this process: `upnext.run(...)` and `Worker.start()`.

`upnext run` and `upnextd start` run whole service files.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from upnext import config
from upnext.core.spec import ServiceSpec
from upnext.engine.local import run_service
from upnext.errors import UsageError
from upnext.service import check_task_names, named_apart
from upnext.worker import Worker

if TYPE_CHECKING:
    from upnext.later import Api

_log = logging.getLogger("upnext")


def run(*components: Worker | Api, worker_timeout: float = 30.0, api_timeout: float = 30.0) -> None:
    """Runs workers in this process until SIGINT or SIGTERM: `upnext.run(worker)` at the end of a script. Blocks.

    worker_timeout: seconds that running jobs get to finish at the end; a second signal ends it at once.
    api_timeout: of no effect until `Api` works.

    Raises UsageError for no component or one that is no Worker, NoBrokerError when no Redis URL is known, BrokerUnavailableError or
    BrokerRefusedError when the broker can't be used at the start.
    """
    del api_timeout
    workers = [one for one in components if isinstance(one, Worker)]
    if not workers or len(workers) < len(components):
        raise UsageError("upnext.run: expects one or more Workers")
    asyncio.run(_until_signalled(workers, worker_timeout))


async def _until_signalled(workers: Sequence[Worker], timeout_s: float) -> None:
    running = Running.start(workers)
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            running.cancel()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    waiting = asyncio.create_task(asked.wait(), name="upnext signal")
    try:
        await asyncio.wait([running.task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await running.stop(timeout_s)


class Running:
    """Workers started in a running loop. Owns the asyncio task that serves them: cancelled once it drains, twice it ends at once."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task

    @classmethod
    def start(cls, workers: Sequence[Worker]) -> Running:
        """Raises UsageError or NoBrokerError at once; what happens later, `stop` raises."""
        env = os.environ
        worker_url = next((worker.redis_url for worker in workers if worker.redis_url), None)
        serving = run_service(
            service_of(workers),
            redis_url=config.redis_url(None, env, worker_url).url,
            namespace=config.namespace(None, env),
            install_signals=False,
            log=_log,
        )
        return cls(asyncio.create_task(serving, name="upnext worker"))

    def cancel(self) -> None:
        self.task.cancel()

    async def stop(self, timeout_s: float) -> None:
        """Ends it: lets running jobs finish for `timeout_s` seconds. Raises what it ended with, if that was an error."""
        for patience_s in (timeout_s, None):
            if not self.task.done():
                self.task.cancel()
                await asyncio.wait([self.task], timeout=patience_s)
        if not self.task.cancelled():
            self.task.result()


def service_of(workers: Sequence[Worker]) -> ServiceSpec:
    """The service that these workers make up, named after the first. Raises ConflictError for two tasks of one name."""
    specs = named_apart(workers)
    check_task_names(specs)
    functions = [task.function for spec in specs for task in spec.tasks.values()]
    return ServiceSpec(name=specs[0].name, workers=specs, path=_source(functions[0]) if functions else None)


def _source(function: Callable[..., Any]) -> str | None:
    """The file that declares it, for pool processes to import."""
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
