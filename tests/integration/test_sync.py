"""The blocking client: the same answers, from any thread, before and after a fork."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.lua_harness import Workbench, task
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.client import waiting as waiting_module
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DuplicateJobError,
    JobNotFoundError,
    PayloadTooLargeError,
    SubmitUncertain,
)


@pytest.fixture
def broker(redis_url: str, namespace: str) -> Iterator[SyncQueueClient]:
    broker = SyncQueueClient(redis_url, namespace)
    yield broker
    broker.close()


def finish_one(work: Workbench) -> None:
    """The worker's part, in a thread: takes one job and ends it."""

    def do() -> bool:
        for one in work.fetch(1):
            work.finish(one, b"7")
            return True
        return False

    wait_until(do, 5)


def in_background(work: Workbench) -> threading.Thread:
    thread = threading.Thread(target=finish_one, args=(work,), daemon=True)
    thread.start()
    return thread


def test_it_may_be_used_any_number_of_times(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(3):
        job_id = broker.submit(Submission("ship", b"{}"))
        finish_one(work)
        assert broker.wait(job_id, 30).value == b"7"


def test_submit_and_wait(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(2):
        worker = in_background(work)
        job_id, outcome = broker.submit_and_wait(Submission("ship", b"{}"), 5)
        assert (outcome.status, outcome.value) == (JobStatus.DONE, b"7")
        assert job_id.startswith("ship:n")
        worker.join(60)
    assert work.leaks() == []


def test_a_result_later(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("ship"))
    job_id = broker.submit(Submission("ship", b"{}", delay_s=0.0))
    work.promote()
    worker = in_background(work)
    assert broker.wait(job_id, 30).value == b"7"
    worker.join(60)
    assert broker.wait(job_id, 30).value == b"7"
    assert work.leaks() == []


def test_an_id_that_nobody_knows_and_a_wait_that_runs_out(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("ship"))
    with pytest.raises(JobNotFoundError):
        broker.wait("ship:n1-0", 30)
    job_id = broker.submit(Submission("ship", b"{}"))
    begun = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        broker.wait(job_id, 0.1)
    assert raised.value.job_id == job_id  # type: ignore[attr-defined]
    assert 0.1 <= time.monotonic() - begun < 2 * PATIENCE
    assert work.hash(work.keys.waiters) == {}


def test_keys_caps_and_many(broker: SyncQueueClient, work: Workbench) -> None:
    jobs = broker.submit_many([Submission("ship", b"{}")] * 1500)
    assert len(set(jobs)) == 1500
    first = broker.submit(Submission("ship", b"{}", idempotency_key="k"))
    with pytest.raises(DuplicateJobError) as raised:
        broker.submit(Submission("ship", b"{}", idempotency_key="k"))
    assert raised.value.job_id == first
    with pytest.raises(PayloadTooLargeError):
        broker.submit(Submission("ship", b"x" * 2_000_000))


def test_many_threads_at_once(broker: SyncQueueClient, work: Workbench) -> None:
    def submit(number: int) -> str | None:
        try:
            return broker.submit(Submission("ship", b"{}", idempotency_key="k" if number % 2 else None))
        except DuplicateJobError:
            return None

    with ThreadPoolExecutor(30) as pool:
        jobs = [job_id for job_id in pool.map(submit, range(300)) if job_id is not None]
    assert len(jobs) == len(set(jobs)) == 151
    assert len(work.lane("ship", "n")) == 151


def test_before_and_after_a_fork(broker: SyncQueueClient, work: Workbench) -> None:
    broker.submit(Submission("ship", b"{}"))
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork with threads about
        child = os.fork()
    if not child:
        try:
            os.write(writer, broker.submit(Submission("ship", b"{}")).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    theirs = os.read(reader, 1000).decode()
    os.close(reader)
    mine = broker.submit(Submission("ship", b"{}"))
    assert [f"ship:n{entry_id.decode()}" for entry_id, _ in work.lane("ship", "n")][1:] == [theirs, mine]


@pytest.mark.parametrize("keyed", [False, True])
def test_a_lost_reply_to_a_submit(server: Server, namespace: str, work: Workbench, keyed: bool) -> None:
    with Proxy(server) as path:
        broker = SyncQueueClient(path.url, namespace)
        broker.command("PING")
        path.swallow_replies()
        job = Submission("ship", b"{}", idempotency_key="k" if keyed else None)
        with ThreadPoolExecutor(1) as pool:
            submit = pool.submit(broker.submit, job)
            wait_until(lambda: len(work.lane("ship", "n")) == 1, 5)
            path.mend()
            path.cut()
            if keyed:
                assert submit.result(60).startswith("ship:n")
            else:
                with pytest.raises(SubmitUncertain):
                    submit.result(60)
        assert len(work.lane("ship", "n")) == 1
        broker.close()


def test_an_idle_connection_that_the_broker_closed_costs_nothing(own_server: Server, namespace: str) -> None:
    broker = SyncQueueClient(own_server.url, namespace)
    for fault in (
        lambda: own_server.cli("CLIENT", "KILL", "TYPE", "normal"),
        own_server.restart,
        lambda: own_server.cli("SCRIPT", "FLUSH"),
    ):
        broker.submit(Submission("ship", b"{}"))
        fault()
        assert broker.submit(Submission("ship", b"{}")).startswith("ship:n")
    broker.close()


def test_a_wait_survives_that_its_connections_are_cut(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "REREAD_S", 0.3)
    work = Workbench(SyncQueueClient(own_server.url, namespace))
    work.register(task("ship"))
    broker = SyncQueueClient(own_server.url, namespace)
    job_id = broker.submit(Submission("ship", b"{}"))
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(broker.wait, job_id, 8)
        wait_until(lambda: work.hash(work.keys.waiters), 5)
        own_server.cli("CLIENT", "KILL", "TYPE", "pubsub")
        own_server.cli("CLIENT", "KILL", "TYPE", "normal")
        finish_one(work)
        assert wait.result(60).value == b"7"
    assert work.leaks() == []
    broker.close()
    work.broker.close()


def test_a_broker_that_is_not_there(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "SUBMIT_PATIENCE_S", 0.3)
    broker = SyncQueueClient("redis://127.0.0.1:1/0", namespace)
    with pytest.raises(BrokerUnavailableError):
        broker.submit(Submission("ship", b"{}"))
    with pytest.raises(BrokerUnavailableError):
        broker.wait("ship:n1-0", 0.3)


def test_a_wrong_password(own_server: Server, namespace: str) -> None:
    own_server.cli("CONFIG", "SET", "requirepass", "secret")
    broker = SyncQueueClient(f"unix://:wrong@{own_server.socket_path}", namespace)
    with pytest.raises(BrokerRefusedError) as raised:
        broker.submit(Submission("ship", b"{}"))
    assert ":wrong" not in str(raised.value)
    broker.close()


def test_cancel(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("ship"))
    job_id = broker.submit(Submission("ship", b"{}"))
    assert broker.cancel(job_id) is True
    assert broker.cancel(job_id) is False
    assert broker.wait(job_id, 30).status is JobStatus.CANCELLED


def test_an_event(broker: SyncQueueClient, work: Workbench) -> None:
    work.register(task("paid.mail", event="paid"))
    assert broker.send("paid", b"{}", [])[0].startswith("paid.mail:n")
