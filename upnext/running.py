"""Workers and Apis run from code, in this process: `upnext.run(...)` and `Worker.start()`.

`upnext run` and `upnextd start` run whole service files.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from upnext import config, console_log
from upnext.api import Api
from upnext.core.naming import ServiceName, service_name
from upnext.core.spec import ServiceSpec
from upnext.embedded import run_broker
from upnext.engine.client import per_loop
from upnext.engine.local import Front, run_service
from upnext.engine.worker import pool_process
from upnext.errors import UsageError
from upnext.project import environment
from upnext.service import LOADER, apis_apart, apis_placed, check_task_names, named_apart, vague_name_warning
from upnext.worker import Worker

_log = logging.getLogger("upnext")


def run(*components: Worker | Api, worker_timeout: float = 30.0, api_timeout: float = 30.0) -> None:
    """Runs workers and Apis in this process until SIGINT or SIGTERM: `upnext.run(worker, api)` at the end of a script. Blocks.

    Without any Redis it uses the embedded broker of the daemon that is named like the script (UPNEXTD_NAME), or starts one that ends with
    it. Where the program has no logging of its own, it shows what is logged, jobs' starts and ends among it, on stderr (UPNEXT_LOG_LEVEL).

    worker_timeout: seconds that running jobs get to finish at the end; a second SIGINT ends it at once.
    api_timeout: the most that requests get, where an Api's own graceful_timeout is not shorter. Apis end before workers.

    Raises UsageError for no component or one that is neither, BrokerUnavailableError or BrokerRefusedError when the broker can't be used
    at the start, BrokerInUseError when another process has its embedded broker in the same place, ListenError when an address is taken,
    LifespanError.
    """
    if pool_process.serving:
        raise UsageError(
            'upnext.run: this is a pool process importing the script; guard the call with if __name__ == "__main__":'
        )
    workers = [one for one in components if isinstance(one, Worker)]
    apis = [one for one in components if isinstance(one, Api)]
    if not components or len(workers) + len(apis) < len(components):
        raise UsageError("upnext.run: expects one or more Workers and Apis")
    console_log.install(config.log_level(None, environment(os.environ)))
    namespace = config.namespace(None, environment(os.environ))
    service = service_of(workers, environment(os.environ), main=True, apis=apis)
    with reachable([service], environment(os.environ), service.file or service.name) as ([service], passing):
        settle([service], None, namespace)
        try:
            left = asyncio.run(_serve(service, namespace, worker_timeout, api_timeout, passing=passing))
        finally:
            per_loop.settle(None)
    if left:
        _log.warning("these jobs did not finish in time, and will run again: %s", ", ".join(left))


async def _serve(
    service: ServiceSpec, namespace: str, worker_timeout_s: float, api_timeout_s: float, *, passing: bool
) -> list[str]:
    front = front_of(service, api_timeout_s)
    return await run_service(
        service,
        redis_url=None,
        namespace=namespace,
        install_signals=True,
        stop_s=max(0.0, worker_timeout_s),
        passing=passing,
        front=front,
        logs_jobs=True,
    )


def settle(specs: Sequence[ServiceSpec], redis_url: str | None, namespace: str) -> None:
    """From now on requests and lifespans of this process submit where these services' workers are; `redis_url` is a flag's."""
    configured = config.configured_url(redis_url, environment(os.environ), daemon=False)
    named = [one.redis_url for spec in specs for one in (*spec.apis, *spec.workers) if one.redis_url]
    home = per_loop.Home(configured.url if configured else None, named[0] if named else None, namespace)
    per_loop.settle(home)


def front_of(service: ServiceSpec, most_s: float | None = None) -> Front | None:
    """What serves its Apis, which get `most_s` seconds at most to end; None where there are none."""
    if not service.apis:
        return None
    from upnext.api_server import ApisHere  # noqa: PLC0415 - uvicorn is imported by what serves

    limits = [api.graceful_timeout_s if most_s is None else min(api.graceful_timeout_s, most_s) for api in service.apis]
    apis = [replace(api, graceful_timeout_s=max(0.0, limit)) for api, limit in zip(service.apis, limits, strict=True)]
    return ApisHere(apis)


@contextmanager
def reachable(
    services: Sequence[ServiceSpec],
    env: Mapping[str, str],
    file: str,
    *,
    name: str | None = None,
    redis_url: str | None = None,
    lifeline: int | None = None,
) -> Generator[tuple[list[ServiceSpec], bool]]:
    """The services, each Worker with the URL that it is to use, for the time of the block; and whether what they register goes with them.

    `redis_url` (a flag) and the environment go before a Worker's own. Where none names a Redis, the embedded broker of the daemon `name`
    (by default: named like `file`) is used, or one is started that ends with the block, or, with `lifeline`, with the process that holds
    the other end of that descriptor.
    Raises UsageError for a bad URL, BrokerInUseError, BrokerUnavailableError.
    """
    urls = {
        own: config.configured_url(redis_url, env, own)
        for own in (spec.redis_url for service in services for spec in service.workers)
    }
    with ExitStack() as stack:
        broker = None
        if None in urls.values():
            broker = stack.enter_context(run_broker.broker(config.daemon_name(name, env, file), env, lifeline))

        def url(own: str | None) -> str | None:
            found = urls[own]
            return found.url if found is not None else broker and broker.url

        ready = [
            replace(service, workers=tuple(replace(spec, redis_url=url(spec.redis_url)) for spec in service.workers))
            for service in services
        ]
        yield ready, lifeline is not None or (broker is not None and broker.own)


class Running:
    """Workers started in a running loop. Owns the asyncio task that serves them."""

    def __init__(self, task: asyncio.Task[list[str]], stopping: asyncio.Event) -> None:
        self._task = task
        self._stopping = stopping

    @classmethod
    async def start(cls, workers: Sequence[Worker]) -> Running:
        """Returns when they take jobs. Raises what keeps them from it."""
        ready, stopping = asyncio.Event(), asyncio.Event()
        serving = run_service(
            _with_known_urls(service_of(workers, environment(os.environ)), environment(os.environ)),
            redis_url=None,
            namespace=config.namespace(None, environment(os.environ)),
            install_signals=False,
            stop_s=_AS_LONG_AS_STOP_SAYS_S,
            on_ready=ready.set,
            stopping=stopping,
        )
        task = asyncio.create_task(serving, name="upnext worker")
        until_ready = asyncio.create_task(ready.wait(), name="upnext worker ready")
        try:
            await asyncio.wait([task, until_ready], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            until_ready.cancel()
        return cls(task, stopping)

    async def stop(self, timeout_s: float) -> None:
        """Ends it: lets running jobs finish for `timeout_s` seconds. Raises what it ended with, if that was an error."""
        self._stopping.set()
        await asyncio.wait([self._task], timeout=timeout_s)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            _log.warning("the worker did not stop within %s s; jobs that were running will run again", timeout_s)
        if not self._task.cancelled():
            self._task.result()


_AS_LONG_AS_STOP_SAYS_S = 86_400.0


def _with_known_urls(service: ServiceSpec, env: Mapping[str, str]) -> ServiceSpec:
    """Raises NoBrokerError when there is a Worker whose URL no place names, and no running daemon has a broker."""
    workers = (replace(spec, redis_url=config.redis_url(None, env, spec.redis_url).url) for spec in service.workers)
    return replace(service, workers=tuple(workers))


def service_of(
    workers: Sequence[Worker], env: Mapping[str, str], *, main: bool = False, apis: Sequence[Api] = ()
) -> ServiceSpec:
    """The service that these workers and Apis make up.

    It is named by UPNEXT_SERVICE, else after its file: the script that runs (`main`), or the one that declares its first task.
    Raises ConflictError for two tasks of one name, UsageError for a name that can't be used.
    """
    specs = named_apart(workers)
    check_task_names(specs)
    functions = [task.function for spec in specs for task in spec.tasks.values()]
    path = _source(functions[0]) if functions else None
    file, module = _main_file() if main else (path, functions[0].__module__ if functions else None)
    given = config.service_name(None, env)
    if given is not None:
        named = ServiceName(given)
    elif file is None and module in (None, "__main__"):
        named = ServiceName([*specs, *apis][0].name)
    else:
        named = service_name(file and os.path.abspath(file), module)
    for line in vague_name_warning(named, file):
        _log.warning("%s", line)
    return ServiceSpec(
        name=named.name, workers=specs, path=path, loader=LOADER, file=file, apis=apis_placed(apis_apart(apis), {})
    )


def _main_file() -> tuple[str | None, str | None]:
    """The script that runs, and its dotted name where it was started as a module (`python -m`)."""
    script = sys.modules["__main__"]
    spec = getattr(script, "__spec__", None)
    return getattr(script, "__file__", None), spec.name.removesuffix(".__main__") if spec is not None else None


def _source(function: Callable[..., Any]) -> str | None:
    """The file that declares it, for pool processes to import."""
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
