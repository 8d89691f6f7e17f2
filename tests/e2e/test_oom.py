"""A worker that the kernel kills for memory: the cause is `oom`, its siblings live."""

from __future__ import annotations

from tests.support.cgroups import GroupedDaemon, group
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus

SERVICE = """
    import asyncio
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task(max_crashes=1)
    async def hog() -> None:
        held = []
        while True:
            held.append(bytearray(8 << 20))
            await asyncio.sleep(0)

    @worker.task
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"
"""


def test_the_kernel_kills_a_worker_for_memory() -> None:
    with group("memory", 256 << 20) as path:
        daemon = GroupedDaemon(SERVICE, workers=2)
        daemon.group = path
        with daemon, Queue(daemon) as queue:
            before = daemon.worker_pids()
            hog = queue.ended(queue.submit("hog"), 60)
            assert (hog.status, hog.cause) == (JobStatus.DEAD, "oom")
            wait_until(lambda: len(daemon.worker_pids()) == 2, 10)
            after = daemon.worker_pids()
            assert len(set(before.items()) & set(after.items())) == 1, "the sibling lives"
            causes = [c["last_exit"]["cause"] for c in daemon.status()["children"] if c["last_exit"]]
            assert causes == ["oom"]
            assert queue.ended(queue.submit("nap", seconds=0.01)).status is JobStatus.DONE
