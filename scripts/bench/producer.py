"""The client's side, in a process of its own: obeys one JSON object a line and answers each with one.

python producer.py SERVICE      (the name of the service's module; UPNEXT_REDIS_URL says where)
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

import upnext

CHUNK_JOBS = 1000
ORDER = {"order_id": "o-123", "items": ["a", "b"]}
DAY_S = 86_400.0

service = importlib.import_module(sys.argv[1])
tasks = service.worker.tasks


def rate(count: int, begun: float) -> float:
    return round(count / (time.perf_counter() - begun), 1)


async def submit(task: str) -> dict[str, Any]:
    """One job without arguments."""
    return {"job_id": (await tasks[task].submit()).job_id}


async def fill(names: list[str], count: int, numbered: bool = False, bare: bool = False) -> dict[str, Any]:
    """`count` jobs in bulk, the tasks in turn; `numbered`: each says its number; `bare`: without arguments."""
    begun = time.perf_counter()
    for turn, start in enumerate(range(0, count, CHUNK_JOBS)):
        numbers = range(start, min(start + CHUNK_JOBS, count))
        inputs = [{"number": number} if numbered else {} if bare else ORDER for number in numbers]
        size = -(-len(inputs) // len(names))
        for part in range(0, len(inputs), size):
            name = names[(part // size + turn) % len(names)]
            await tasks[name].submit_many(inputs[part : part + size])
    return {"rate": rate(count, begun)}


async def far(count: int) -> dict[str, Any]:
    """`count` jobs that are due in a day and later."""
    begun = time.perf_counter()
    for turn, start in enumerate(range(0, count, CHUNK_JOBS)):
        task = tasks["noop"].options(delay=DAY_S + turn)
        await task.submit_many([ORDER] * min(CHUNK_JOBS, count - start))
    return {"rate": rate(count, begun)}


async def delayed(count: int) -> dict[str, Any]:
    """`count` jobs that are due between 1 and 4 s from now."""
    dice = random.Random(7)
    for _ in range(count):
        delay = dice.uniform(1, 4)
        await tasks["stamp"].options(delay=delay).submit(time.time() + delay)
    return {}


async def roundtrip(task: str, count: int) -> dict[str, Any]:
    """Submit and wait for the end, one at a time; milliseconds."""
    samples: list[float] = []
    for _ in range(count + 10):
        begun = time.perf_counter()
        await tasks[task].wait(**ORDER)
        samples.append(1000 * (time.perf_counter() - begun))
    return {"ms": samples[10:]}


async def send(count: int, in_flight: int) -> dict[str, Any]:
    """`count` events, so many at a time."""
    begun = time.perf_counter()
    for start in range(0, count, in_flight):
        some = min(in_flight, count - start)
        await asyncio.gather(*(service.happened.send(**ORDER) for _ in range(some)))
    return {"rate": rate(count, begun)}


ORDERS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    function.__name__: function for function in (submit, fill, far, delayed, roundtrip, send)
}


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        print(json.dumps(await ORDERS[order.pop("op")](**order)), flush=True)
    await upnext.aclose()


if __name__ == "__main__":
    uvloop.run(main())
