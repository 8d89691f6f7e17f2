"""The broker forgets, refuses, cuts, or goes away under a running daemon: the next job runs within 2 s of its return, no child is
replaced, nobody living is reaped, and nobody spins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.servers import Server
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.errors import QueueError

SOON_S = 2.0
"""On a calm machine."""
SERVICE = """
    import asyncio
    import upnext

    worker = upnext.Worker("shop", concurrency=4)

    @worker.task
    async def echo(n: int) -> int:
        return n

    @worker.task
    async def long(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @worker.cron("0 0 1 1 *")
    async def yearly() -> None: ...
"""


def scripts_are_flushed(server: Server) -> None:
    server.cli("SCRIPT", "FLUSH")


def clients_are_killed(server: Server) -> None:
    server.cli("CLIENT", "KILL", "TYPE", "normal")
    server.cli("CLIENT", "KILL", "TYPE", "pubsub")


def data_is_flushed(server: Server) -> None:
    server.cli("FLUSHALL")


def is_read_only_for_3_s(server: Server) -> None:
    server.cli("REPLICAOF", "127.0.0.1", "1")
    threading.Event().wait(3)
    server.cli("REPLICAOF", "NO", "ONE")


def restarts_with_its_data(server: Server) -> None:
    server.stop()
    threading.Event().wait(3)
    server.start()


def restarts_without_its_data(server: Server) -> None:
    server.kill()
    threading.Event().wait(1)
    server.restart(keep_data=False)


def is_frozen_for_longer_than_a_lease(server: Server) -> None:
    server.freeze()
    threading.Event().wait(13)
    server.thaw()


FAULTS = [
    scripts_are_flushed,
    clients_are_killed,
    data_is_flushed,
    is_read_only_for_3_s,
    restarts_with_its_data,
    restarts_without_its_data,
    is_frozen_for_longer_than_a_lease,
]
FORGETTING = {data_is_flushed, restarts_without_its_data}


@pytest.fixture
def shop(own_server: Server, daemon: Callable[..., Daemon]) -> Iterator[tuple[Server, Daemon, SyncQueueClient]]:
    started = daemon(SERVICE, redis_url=own_server.url, workers=2)
    broker = SyncQueueClient(own_server.url)
    yield own_server, started, broker
    broker.close()


def requests_per_s(server: Server, seconds: float) -> float:
    """Of all clients but this one."""

    def reads() -> int:
        return int(server.cli("INFO", "stats")["total_reads_processed"])

    before, begun = reads(), time.monotonic()
    threading.Event().wait(seconds)
    return (reads() - before - 1) / (time.monotonic() - begun)


def next_job_s(broker: SyncQueueClient) -> float:
    """How long from now until a job has run."""
    begun = time.monotonic()

    def submitted() -> str | None:
        try:
            return broker.submit(Submission("echo", b'{"n":1}'))
        except QueueError:  # this client of the test finds its connection broken, too
            return None

    job_id = wait_until(submitted, 10, "a submit to be taken")
    assert job_id is not None
    assert broker.wait(job_id, 60).status is JobStatus.DONE
    return time.monotonic() - begun


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_next_job_runs_soon_after(
    shop: tuple[Server, Daemon, SyncQueueClient], fault: Callable[[Server], None]
) -> None:
    server, daemon, broker = shop
    keys = Keys()
    next_job_s(broker)
    pids = daemon.worker_pids()
    running = broker.submit(Submission("long", b'{"seconds":8}'))
    wait_until(lambda: broker.command("XPENDING", keys.stream("long", "n"), "w")[0] == 1, 5, "the long job to run")
    idle = requests_per_s(server, 3)
    fault(server)
    took_s = next_job_s(broker)
    print(f"{fault.__name__}: next job after {took_s:.3f} s")
    assert took_s <= SOON_S * PATIENCE, f"{took_s:.2f} s; {daemon.log()}"
    assert wait_until(lambda: broker.submit(Submission("echo", b'{"n":1}', delay_s=0.01)), 5)
    delayed = broker.submit(Submission("echo", b'{"n":2}', delay_s=0.05))
    assert broker.wait(delayed, SOON_S * PATIENCE).status is JobStatus.DONE
    if fault not in FORGETTING:
        assert broker.wait(running, 60).status is JobStatus.DONE
        assert broker.command("HGET", keys.stats, "long:done") == b"1"
    after = requests_per_s(server, 3)
    print(f"requests a second: idle {idle:.1f}, after {after:.1f}")
    assert after <= 2 * idle + 20, f"idle {idle:.1f}/s, after {after:.1f}/s"
    assert daemon.worker_pids() == pids
    assert all(child["restarts"] == 0 for child in daemon.status()["children"])
    assert broker.command("HGET", keys.stats, "echo:crashes") is None
    if fault not in FORGETTING:
        assert "taken back" not in daemon.log()
        assert "registering anew" not in daemon.log()


def test_nobody_spins_while_it_is_read_only(shop: tuple[Server, Daemon, SyncQueueClient]) -> None:
    server, daemon, broker = shop
    next_job_s(broker)
    idle = requests_per_s(server, 3)
    server.cli("REPLICAOF", "127.0.0.1", "1")
    threading.Event().wait(2)  # the waits between tries have grown by then
    refused = requests_per_s(server, 4)
    cpu_s = sum(cpu_of(pid) for pid in daemon.worker_pids().values())
    threading.Event().wait(2)
    cpu_s = sum(cpu_of(pid) for pid in daemon.worker_pids().values()) - cpu_s
    server.cli("REPLICAOF", "NO", "ONE")
    assert next_job_s(broker) <= SOON_S * PATIENCE
    # each of some ten connections is made anew, and asks once or twice, about once a second
    assert refused <= idle + 40, f"idle {idle:.1f}/s, refused {refused:.1f}/s"
    assert cpu_s < 1.0, f"{cpu_s:.2f} s of CPU in 2 s"


def cpu_of(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
