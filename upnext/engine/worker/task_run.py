"""A task as the executor sees it: everything that can be known before the first job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from upnext.core.spec import SyncExecutor, TaskKind, TaskSpec
from upnext.engine.worker.cache import Cache


@dataclass(slots=True)
class TaskRun:
    """`plain`: an async function with nothing around it."""

    spec: TaskSpec
    index: int
    decode: Callable[[bytes], tuple[tuple[Any, ...], dict[str, Any]]]
    encode_result: Callable[[Any], bytes]
    function: Callable[..., Any]
    is_async: bool
    in_process: bool
    timeout_s: float | None
    hooked: bool
    cache: Cache | None
    plain: bool


def runs_in_process(spec: TaskSpec, sync_executor: SyncExecutor) -> bool:
    """Whether it runs in a pool process; `sync_executor` is its Worker's."""
    return not spec.is_async and (spec.options.executor or sync_executor) is SyncExecutor.PROCESS


def task_run(spec: TaskSpec, index: int, sync_executor: SyncExecutor) -> TaskRun:
    """`index` counts in the order of WorkerSpec.tasks."""
    lenient = getattr(spec.arguments, "decode_event", None) if spec.kind is TaskKind.EVENT else None
    hooked, cache = spec.hooks.any(), Cache.of(spec)
    return TaskRun(
        spec=spec,
        index=index,
        decode=lenient or spec.arguments.decode,
        encode_result=spec.arguments.encode_result,
        function=spec.function,
        is_async=spec.is_async,
        in_process=runs_in_process(spec, sync_executor),
        timeout_s=spec.options.timeout_s,
        hooked=hooked,
        cache=cache,
        plain=spec.is_async and not hooked and cache is None,
    )
