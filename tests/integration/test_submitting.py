"""Submission at full length: shared round trips, lost replies, blocking forms in threads and forks, loops that end without goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.serving import broker_is, serving
from tests.support.waiting import wait_until
from upnext import DuplicateJobError, Worker
from upnext.core.keys import Keys
from upnext.core.submission import Submission
from upnext.engine.client import waiting as waiting_module
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.errors import BrokerUnavailableError, QueueError, SubmitUncertain

TASK = "ship"


def job(n: int = 0, **more: object) -> Submission:
    return Submission(TASK, b'{"n":%d}' % n, **more)  # type: ignore[arg-type]


def queued(server: Server, namespace: str) -> int:
    return int(server.cli("XLEN", Keys(namespace).stream(TASK, "n")))


@contextlib.contextmanager
def requests(server: Server) -> Iterator[Callable[[], int]]:
    """Counts scripts and XADDs, as clients send them."""

    def count() -> int:
        stats = server.cli("INFO", "commandstats")
        calls = {
            name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "client|setname")
        }
        return int(calls["evalsha"] + calls["eval"])

    before = count()
    yield lambda: count() - before


# --- round trips


async def test_ten_thousand_jobs_take_ten_requests(own_server: Server, namespace: str) -> None:
    broker, blocking = QueueClient(own_server.url, namespace), SyncQueueClient(own_server.url, namespace)
    await broker.submit_many([job()] * 2)  # the script is known from here on
    with requests(own_server) as asked:
        assert len(await broker.submit_many([job(n) for n in range(10_000)])) == 10_000
        assert asked() == 10
        assert len(blocking.submit_many([job(n) for n in range(2_500)])) == 2_500
        assert asked() == 13
    await broker.aclose()
    blocking.close()


async def test_concurrent_submits_share_writes(own_server: Server, namespace: str) -> None:
    broker = QueueClient(own_server.url, namespace)
    await broker.submit_many([job(idempotency_key="first")])

    def reads() -> int:
        return int(own_server.client().info("stats")["total_reads_processed"])

    before = reads()
    ids = await asyncio.gather(*(broker.submit(job(n)) for n in range(500)))
    assert len(set(ids)) == 500
    assert reads() - before < 20, "the server reads up to 16 KiB at once"
    with requests(own_server) as asked:
        keyed = await asyncio.gather(*(broker.submit(job(n, idempotency_key=str(n))) for n in range(500)))
        assert len(set(keyed)) == 500
        assert asked() == 1
    await broker.aclose()


async def test_of_a_hundred_producers_with_one_key_one_gets_in(redis_url: str, namespace: str, server: Server) -> None:
    brokers = [QueueClient(redis_url, namespace) for _ in range(20)]
    blocking = SyncQueueClient(redis_url, namespace)

    def one() -> str:
        return blocking.submit(job(idempotency_key="k"))

    with ThreadPoolExecutor(40) as pool:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(broker.submit(job(idempotency_key="k")) for broker in brokers for _ in range(3)),
            *(loop.run_in_executor(pool, one) for _ in range(40)),
            return_exceptions=True,
        )
    [holder] = [answer for answer in answers if isinstance(answer, str)]
    refused = [answer for answer in answers if isinstance(answer, DuplicateJobError)]
    assert len(refused) == 99
    assert {error.job_id for error in refused} == {holder}
    assert queued(server, namespace) == 1
    for broker in brokers:
        await broker.aclose()
    blocking.close()


# --- a lost reply


async def test_a_lost_reply_is_told(server: Server, namespace: str) -> None:
    with Proxy(server) as proxy:
        broker = QueueClient(proxy.url, namespace)
        await broker.submit_many([job()])  # the server knows the script: its first reply is no NOSCRIPT
        proxy.swallow_replies()
        lost = asyncio.create_task(broker.submit(job()))
        many = asyncio.create_task(broker.submit_many([job()] * 3))
        await asyncio.to_thread(wait_until, lambda: queued(server, namespace) == 5)
        proxy.cut()
        for one in (lost, many):
            with pytest.raises(SubmitUncertain, match="idempotency key"):
                await one
        assert queued(server, namespace) == 5
        proxy.mend()
        await broker.aclose()


async def test_a_lost_reply_is_settled_by_the_key(server: Server, namespace: str) -> None:
    with Proxy(server) as proxy:
        broker = QueueClient(proxy.url, namespace)
        await broker.submit_many([job()])
        proxy.swallow_replies()
        lost = asyncio.create_task(broker.submit(job(idempotency_key="k")))
        await asyncio.to_thread(wait_until, lambda: queued(server, namespace) == 2)
        proxy.mend()
        proxy.cut()
        job_id = await lost
        assert queued(server, namespace) == 2
        with pytest.raises(DuplicateJobError) as held:
            await broker.submit(job(idempotency_key="k"))
        assert held.value.job_id == job_id
        await broker.aclose()


async def test_a_lost_reply_is_settled_by_the_key_also_when_the_job_has_ended_since(
    server: Server, namespace: str
) -> None:
    worker, ran = Worker("w"), list[int]()

    @worker.task
    async def ship(n: int) -> int:
        ran.append(n)
        return n

    heard = worker.event("heard")

    @heard.on
    async def listens(n: int) -> None:
        ran.append(n)

    async with serving(server.url, namespace, worker):
        with Proxy(server) as proxy:
            broker, blocking = QueueClient(proxy.url, namespace), SyncQueueClient(proxy.url, namespace)
            await broker.submit_many([job(1)])
            await asyncio.to_thread(blocking.submit, job(2))
            await broker.send("unheard", b"{}", [])
            submits = [
                lambda: broker.submit(job(3, idempotency_key="k")),
                lambda: asyncio.to_thread(blocking.submit, job(4, idempotency_key="l")),
                lambda: broker.send("heard", b'{"n":5}', [], idempotency_key="m"),
                lambda: asyncio.to_thread(blocking.send, "heard", b'{"n":6}', [], idempotency_key="m"),
            ]
            for number, submit in enumerate(submits, 3):
                await broker.link.command("PING")  # connected, all of them
                await asyncio.to_thread(blocking.command, "PING")
                proxy.swallow_replies()
                lost = asyncio.create_task(submit())
                await asyncio.to_thread(wait_until, lambda last=number: last in ran)
                ended = wait_until_released(server, Keys(namespace))
                await ended
                proxy.mend()
                proxy.cut()
                assert await lost
            assert sorted(ran) == [1, 2, 3, 4, 5, 6]
            await broker.aclose()
            blocking.close()


def wait_until_released(server: Server, keys: Keys) -> asyncio.Future[object]:
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(
        None, lambda: wait_until(lambda: not server.cli("KEYS", f"{keys.idem_prefix}*"), 5, "the key to be free")
    )


def test_a_lost_reply_of_the_blocking_form(server: Server, namespace: str) -> None:
    with Proxy(server) as proxy, ThreadPoolExecutor(1) as pool:
        broker = SyncQueueClient(proxy.url, namespace)
        broker.submit(job())
        proxy.swallow_replies()
        lost = pool.submit(broker.submit, job())
        wait_until(lambda: queued(server, namespace) == 2)
        proxy.cut()
        with pytest.raises(SubmitUncertain):
            lost.result(60)
        proxy.mend()
        broker.command("PING")
        proxy.swallow_replies()
        keyed = pool.submit(broker.submit, job(idempotency_key="k"))
        wait_until(lambda: queued(server, namespace) == 3)
        proxy.mend()
        proxy.cut()
        assert keyed.result(60)
        assert queued(server, namespace) == 3
        broker.close()


async def test_a_broker_that_is_away_is_no_riddle(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so nothing is uncertain; and after a restart old connections cost no submit."""
    monkeypatch.setattr(waiting_module, "SUBMIT_PATIENCE_S", 0.3)
    broker, blocking = QueueClient(own_server.url, namespace), SyncQueueClient(own_server.url, namespace)
    await broker.submit(job())
    blocking.submit(job())
    own_server.stop()
    await asyncio.sleep(0)
    await asyncio.to_thread(wait_until, lambda: broker.link.live is None)
    for submit in (lambda: broker.submit(job()), lambda: asyncio.to_thread(blocking.submit, job())):
        with pytest.raises(BrokerUnavailableError):
            await submit()
    own_server.start()
    await broker.submit(job())
    blocking.submit(job())
    own_server.restart()
    assert blocking.submit(job())
    await broker.aclose()
    blocking.close()


# --- blocking forms


def tasks() -> Worker:
    worker = Worker("w", concurrency=8)

    @worker.task
    async def double(n: int) -> int:
        return 2 * n

    return worker


@contextlib.contextmanager
def served(server: Server, namespace: str) -> Iterator[Worker]:
    """The service in a thread of its own, for tests that have no loop."""
    worker, up, stop = tasks(), threading.Event(), threading.Event()

    async def main() -> None:
        async with serving(server.url, namespace, worker):
            up.set()
            await asyncio.to_thread(stop.wait)

    with broker_is(server.url, namespace):
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        try:
            assert up.wait(100)
            yield worker
        finally:
            stop.set()
            thread.join(100)


def test_blocking_forms_many_times_from_many_threads(server: Server, namespace: str) -> None:
    with served(server, namespace) as worker:
        double = worker.tasks["double"]

        def work(start: int) -> list[int]:
            values = [double.wait_sync(start + n).value for n in range(10)]
            values += [future.value_sync(60) for future in double.submit_many_sync([(start + n,) for n in range(10)])]
            return values

        with ThreadPoolExecutor(8) as pool:
            for start, values in zip(range(0, 800, 100), pool.map(work, range(0, 800, 100)), strict=True):
                assert values == [2 * (start + n) for n in range(10)] * 2


FORKING = """
    import os, sys, threading, warnings
    import upnext
    from upnext.engine.client.sync_client import SyncQueueClient

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    worker = upnext.Worker("w")

    @worker.task
    def ship(n: int) -> int: ...

    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            ship.submit_sync(0)

    ship.submit_sync(1)                      # before the fork: the parent's connections exist
    threads = [threading.Thread(target=busy) for _ in range(4)]
    [thread.start() for thread in threads]   # some of them hold locks at the moment of a fork
    ids = set()
    for round in range(25):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                found = [ship.submit_sync(n).job_id for n in range(3)]
                grandchild = os.fork()
                if not grandchild:
                    found = [ship.submit_sync(9).job_id]
                os.write(write, (" ".join(found) + " ").encode())
                if grandchild:
                    os.waitpid(grandchild, 0)
            except BaseException as error:
                os.write(write, repr(error).encode())
            os._exit(0)
        os.close(write)
        ship.submit_sync(2)
        with os.fdopen(read) as pipe:
            ids_read = pipe.read().split()
        os.waitpid(child, 0)
        assert len(ids_read) == 4 and all(one.startswith("ship:n") for one in ids_read), ids_read
        ids.update(ids_read)
    stop.set()
    [thread.join() for thread in threads]
    assert len(ids) == 100
    ship.submit_sync(3)
    print("fine")
"""


def program(source: str, url: str, namespace: str, *flags: str) -> tuple[str, str, int]:
    """-> what it printed, what it complained of, its exit code."""
    environment = {**os.environ, "UPNEXT_REDIS_URL": url, "UPNEXT_NAMESPACE": namespace}
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(source)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    # With -X dev asyncio tells of what took longer than 0.1 s, as anything may on a busy machine.
    complaints = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("Executing <")]
    return done.stdout, "".join(complaints), done.returncode


@pytest.mark.parametrize("path", ["unix", "tcp"])
def test_before_and_after_a_fork_with_threads_at_work(server: Server, namespace: str, path: str) -> None:
    done = program(FORKING, server.url if path == "unix" else server.tcp_url, namespace)
    assert done == ("fine\n", "", 0)


DJANGO_STYLE = """
    import asyncio, threading
    import upnext

    worker = upnext.Worker("w")

    @worker.task
    def ship(n: int) -> int: ...

    def view(n):                      # a plain view
        return ship.submit_sync(n).job_id

    async def async_view(n):          # an async view that calls plain code in a thread, as sync_to_async does
        return await asyncio.to_thread(view, n), (await ship.submit(n)).job_id

    ids = {view(0)}
    for n in range(5):                # async_to_sync: a loop of its own for each request
        ids.update(asyncio.run(async_view(n)))

    async def request(n):             # a plain call right in a loop blocks it, and works
        return ship.submit_sync(n).job_id

    ids.update(asyncio.run(request(n)) for n in range(3))
    found = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(async_view(7)))) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    ids.update(one for pair in found for one in pair)
    assert len(ids) == 1 + 10 + 3 + 10, len(ids)
    print("fine")
"""


def test_django_style_code(server: Server, namespace: str) -> None:
    done = program(DJANGO_STYLE, server.url, namespace, "-W", "error", "-X", "dev")
    assert done == ("fine\n", "", 0)


# --- loops that end without aclose

ENDINGS = {
    "run": "asyncio.run(main())",
    "uvloop": "import uvloop; uvloop.run(main())",
    "runner": "\n    with asyncio.Runner() as runner:\n        runner.run(main()); runner.run(main())",
    "bare loop": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close(); del loop",
    "failure": "\n    try:\n        asyncio.run(main(fail=True))\n    except ZeroDivisionError:\n        pass",
    "cancelled": "\n    try:\n        asyncio.run(asyncio.wait_for(main(endless=True), 0.2))\n    except TimeoutError:\n        pass",
    "several": "\n    for _ in range(3):\n        asyncio.run(main())",
}
ENDING = """
    import asyncio, gc
    import upnext

    worker = upnext.Worker("w")

    @worker.task
    async def ship(n: int) -> int: ...

    async def main(fail=False, endless=False):
        future = await ship.submit(1)
        await ship.submit_many([(1,), (2,)])
        try:
            await future.result(0.05)       # opens the ear as well
        except TimeoutError:
            pass
        waiting = asyncio.create_task(future.result())
        await asyncio.sleep(0.01)
        if fail:
            1 / 0
        if endless:
            await waiting
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    {ending}
    gc.collect()
    print("fine")
"""


@pytest.mark.parametrize("path", ["unix", "tcp"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_loop_that_ends_without_aclose_warns_of_nothing(
    server: Server, namespace: str, ending: str, path: str
) -> None:
    source = ENDING.replace("{ending}", ENDINGS[ending])
    done = program(source, server.url if path == "unix" else server.tcp_url, namespace, "-W", "error", "-X", "dev")
    assert done == ("fine\n", "", 0)


def test_errors_of_the_queue_have_one_root() -> None:
    assert issubclass(SubmitUncertain, QueueError)
    assert not issubclass(SubmitUncertain, BrokerUnavailableError), "nothing was sent is not what it says"
