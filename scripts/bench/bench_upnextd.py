"""UpNext as a user runs it: upnextd with N workers and its scheduler; results, retries and recovery are on.

The adapter and the service that upnextd loads are one file, so both sides have the same tasks.
"""

import asyncio
import os
import sys

import harness  # pyright: ignore[reportMissingImports]

import upnext

REQUIREMENTS = ["../.."]
BEST_CONCURRENCY = 100
DRAIN_JOBS = 100_000
RECOVERY_PROFILES = ["default", "hosts+host"]
SETTINGS = "nothing is tuned; concurrency 100; round trip through Task.wait(); hosts: two daemons of one worker each"

worker = upnext.Worker("bench", concurrency=harness.CONCURRENCY, redis_url=harness.REDIS_URL)


def daemon(name, processes):
    # The folder of the records is fresh for every server, and runs go side by side.
    folder = os.path.dirname(os.environ["PEERBENCH_TICKS"])
    program = os.path.join(os.path.dirname(sys.executable), "upnextd")
    command = [program, "start", os.path.abspath(__file__), "--name", name, "--workers", str(processes)]
    command += ["--redis-url", harness.REDIS_URL]
    return [*command, "--state-dir", os.path.join(folder, name), "--socket", os.path.join(folder, f"{name}.sock")]


def worker_commands(processes):
    return [daemon("bench", processes)]


def two_hosts(processes):
    if harness.PROFILE == "hosts":
        return [daemon(f"host{number}", 1) for number in range(processes)]
    return worker_commands(processes)


@worker.task
async def noop(order_id, items):
    harness.tick()


@worker.task
async def payload(text):
    harness.tick()


@worker.task
async def echo(value):
    return value


@worker.task
async def stamp(at):
    harness.tick(at)


@worker.task
async def crash():
    harness.tick()
    if harness.attempts() == 1:
        await asyncio.sleep(3)


TASKS = {task.name: task for task in (noop, payload, echo, stamp, crash)}


class Client:
    async def open(self):
        pass

    async def close(self):
        await upnext.aclose()

    async def submit(self, job, kwargs, delay=None):
        task = TASKS[job]
        if job == "echo":
            return task, kwargs  # sent by wait(), which is the call to use when the result is awaited
        if delay is not None:
            task = task.options(delay=delay)
        return await task.submit(**kwargs)

    async def result(self, handle):
        task, kwargs = handle
        return (await task.wait(**kwargs)).value

    async def submit_many(self, job, many_kwargs):
        return await TASKS[job].submit_many(many_kwargs)
