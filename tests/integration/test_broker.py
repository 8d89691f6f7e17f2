"""The client on asyncio: submits that travel together, waiters that miss no end, keys that let one in."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.fleet import Fleet, task
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import PATIENCE, wait_until_async
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import client
from upnext.engine.client import waiting as waiting_module
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.client.waiting import PAYLOAD_CAP_BYTES
from upnext.engine.redis import connection as wire_module
from upnext.errors import (
    BrokerFullError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DuplicateJobError,
    JobNotFoundError,
    PayloadTooLargeError,
    SubmitUncertain,
    UsageError,
)


async def echo(number: int = 1) -> int:
    return number


async def slow(wait_s: float = 0.1) -> int:
    await asyncio.sleep(wait_s)
    return 7


# --- submitting


async def test_concurrent_submits_cost_a_command_each(server: Server, namespace: str) -> None:
    with Proxy(server) as path:
        broker = QueueClient(path.url, namespace)
        await broker.submit(Submission("ship", b"{}"))
        before = int(server.client().info("stats")["total_commands_processed"])
        jobs = await asyncio.gather(*(broker.submit(Submission("ship", b"{}")) for _ in range(500)))
        assert len(set(jobs)) == 500
        after = int(server.client().info("stats")["total_commands_processed"])
        assert after - before < 530
        await broker.aclose()


async def test_a_task_of_any_name(redis_url: str, namespace: str) -> None:
    broker = QueueClient(redis_url, namespace)
    names = ["100%d", "%", "größe:x", "a%%b%b"]
    for name in names * 2:  # the first by the script, which connects
        job_id = await broker.submit(Submission(name, b'{"share":"5%d"}'))
        entry_id = job_id.removeprefix(f"{name}:n")
        [(_, fields)] = await broker.link.command("XRANGE", broker.keys.stream(name, "n"), entry_id, entry_id)
        assert fields == [b"p1", b'{"share":"5%d"}']
    await broker.aclose()


async def test_concurrent_submits_to_a_full_broker(own_server: Server, namespace: str) -> None:
    broker = QueueClient(own_server.url, namespace)
    await broker.submit(Submission("ship", b"{}"))
    await broker.link.command("CONFIG", "SET", "maxmemory", "1")
    reported = await asyncio.gather(
        *(broker.submit(Submission("ship", b"{}")) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in reported] == [BrokerFullError] * 3
    await broker.link.command("CONFIG", "SET", "maxmemory", "0")
    assert await broker.link.command("XLEN", broker.keys.stream("ship", "n")) == 1
    assert await asyncio.gather(*(broker.submit(Submission("ship", b"{}")) for _ in range(3)))
    await broker.aclose()


async def test_the_jobs_of_one_turn_keep_their_order(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        jobs = await asyncio.gather(*(fleet.submit("echo", number=number) for number in range(50)))
        raw = await fleet.command("XRANGE", fleet.keys.stream("echo", "n"), "-", "+")
        assert [f"echo:n{entry_id.decode()}" for entry_id, _ in raw] == jobs


async def test_a_payload_over_the_cap_is_refused_before_it_is_sent(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        fits = b'"' + b"x" * (PAYLOAD_CAP_BYTES - 2) + b'"'
        await fleet.broker.submit(Submission("ship", fits))
        with pytest.raises(PayloadTooLargeError, match="ship"):
            await fleet.broker.submit(Submission("ship", fits + b" "))
        with pytest.raises(PayloadTooLargeError):
            await fleet.broker.submit_many([Submission("ship", b"{}"), Submission("ship", fits + b" ")])
        assert await fleet.lengths("ship") == "n1"


async def test_a_hundred_producers_with_one_key_make_one_job(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        producers = [QueueClient(redis_url, namespace) for _ in range(100)]
        job = Submission("echo", b"{}", idempotency_key="order-1")
        answers = await asyncio.gather(*(producer.submit(job) for producer in producers), return_exceptions=True)
        [made] = [answer for answer in answers if isinstance(answer, str)]
        duplicates = [answer for answer in answers if isinstance(answer, DuplicateJobError)]
        assert len(duplicates) == 99
        assert {duplicate.job_id for duplicate in duplicates} == {made}
        assert await fleet.lengths("echo") == "n1"
        await fleet.worker(task(echo))
        await fleet.broker.wait(made, 30)
        assert await fleet.leaks() == []
        assert await producers[0].submit(job) != made
        await asyncio.gather(*(producer.aclose() for producer in producers))


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_lost_reply_to_a_submit(server: Server, namespace: str, keyed: bool) -> None:
    """Without a key nobody can know: it says so. With one the repeat finds out. Never two jobs."""
    with Proxy(server) as path:
        async with Fleet(server.url, namespace) as fleet:
            broker = QueueClient(path.url, namespace)
            await broker.link.wire()
            path.swallow_replies()
            job = Submission("echo", b"{}", idempotency_key="order-1" if keyed else None)
            submit = asyncio.create_task(broker.submit(job))

            async def arrived() -> bool:
                return await fleet.lengths("echo") == "n1"

            await fleet.until(arrived)
            path.mend()
            path.cut()
            if keyed:
                assert (await asyncio.wait_for(submit, 30)).startswith("echo:n")
            else:
                with pytest.raises(SubmitUncertain):
                    await asyncio.wait_for(submit, 30)
            assert await fleet.lengths("echo") == "n1"
            await broker.aclose()


async def test_a_lost_reply_to_many_and_to_a_send(server: Server, namespace: str) -> None:
    with Proxy(server) as path:
        async with Fleet(server.url, namespace) as fleet:
            broker = QueueClient(path.url, namespace)
            # the scripts are known: their first run would wait for the reply that says they are not
            await broker.submit_many([Submission("other", b"{}")])
            await broker.send("nobody-listens", b"{}", [])
            path.swallow_replies()
            many = asyncio.create_task(broker.submit_many([Submission("echo", b"{}")] * 3))
            sent = asyncio.create_task(broker.send("paid", b"{}", ["paid.mail"]))

            async def arrived() -> bool:
                return await fleet.lengths("echo") == "n3" and await fleet.lengths("paid.mail") == "n1"

            await fleet.until(arrived)
            path.mend()
            path.cut()
            for uncertain in (many, sent):
                with pytest.raises(SubmitUncertain):
                    await asyncio.wait_for(uncertain, 30)
            assert await arrived()
            await broker.aclose()


async def test_a_submit_waits_a_while_for_a_broker_that_is_away(own_server: Server, namespace: str) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await fleet.worker(task(echo))
        await asyncio.to_thread(own_server.stop)
        submit = asyncio.create_task(fleet.run("echo", number=4))
        await fleet.until(lambda: fleet.broker.link.live is None)
        await asyncio.to_thread(own_server.start)
        try:
            assert (await submit).value == b"4"
        except SubmitUncertain:  # it was on its way at the very moment
            assert (await fleet.run("echo", number=4)).value == b"4"


async def test_and_then_gives_up(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "SUBMIT_PATIENCE_S", 0.3)
    broker = QueueClient("redis://127.0.0.1:1/0", namespace)
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        await broker.submit(Submission("ship", b"{}"))
    assert 0.2 < time.monotonic() - begun < 3 * PATIENCE
    await broker.aclose()


async def test_a_wrong_password_is_told_at_once(own_server: Server, namespace: str) -> None:
    own_server.cli("CONFIG", "SET", "requirepass", "secret")
    broker = QueueClient(f"unix://:wrong@{own_server.socket_path}", namespace)
    begun = time.monotonic()
    with pytest.raises(BrokerRefusedError) as raised:
        await broker.submit(Submission("ship", b"{}"))
    assert "wrong" not in str(raised.value).replace("WRONGPASS", "")
    assert time.monotonic() - begun < 2 * PATIENCE
    await broker.aclose()


# --- waiting


async def test_the_reply_comes_to_who_submitted(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(slow), concurrency=10)
        begun = time.monotonic()
        outcomes = await asyncio.gather(*(fleet.run("slow") for _ in range(10)))
        assert [outcome.value for outcome in outcomes] == [b"7"] * 10
        assert time.monotonic() - begun < 1.5 * PATIENCE
        assert await fleet.command("EXISTS", fleet.keys.waiters) == 0


async def test_a_result_later_from_somewhere_else(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(slow))
        other = QueueClient(redis_url, namespace)
        job_id = await fleet.submit("slow")
        waits = [other.wait(job_id, 30), other.wait(job_id, 30), fleet.broker.wait(job_id, 30)]
        assert [outcome.value for outcome in await asyncio.gather(*waits)] == [b"7"] * 3
        assert (await other.wait(job_id, 30)).value == b"7"
        await other.aclose()
        assert await fleet.leaks() == []


async def test_an_id_that_nobody_knows(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        for job_id in ("ship:n1-0", "ship:d1-1", "unheard-of:h5-5"):
            begun = time.monotonic()
            with pytest.raises(JobNotFoundError) as raised:
                await fleet.broker.wait(job_id, 30)
            assert raised.value.job_id == job_id
            assert time.monotonic() - begun < 2 * PATIENCE
        with pytest.raises(UsageError):
            await fleet.broker.wait("no id", 30)


async def test_the_caller_s_own_wait_runs_out_and_leaves_nothing(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        job_id = await fleet.submit("echo")
        begun = time.monotonic()
        with pytest.raises(TimeoutError) as raised:
            await fleet.broker.wait(job_id, 0.1)
        assert raised.value.job_id == job_id  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError) as raised:
            await fleet.broker.submit_and_wait(Submission("echo", b"{}"), 0.1)
        assert raised.value.job_id.startswith("echo:n")  # type: ignore[attr-defined]
        assert 0.19 <= time.monotonic() - begun < 2 * PATIENCE, "timers go by milliseconds"

        async def unregistered() -> bool:
            return not await fleet.command("EXISTS", fleet.keys.waiters)

        await fleet.until(unregistered)


async def test_a_wait_that_is_cancelled_leaves_nothing(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        job_id = await fleet.submit("echo")
        wait = asyncio.create_task(fleet.broker.wait(job_id))

        async def registered() -> bool:
            return await fleet.command("EXISTS", fleet.keys.waiters) == 1

        await fleet.until(registered)
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)

        async def gone() -> bool:
            return not await registered()

        await fleet.until(gone)
        assert not fleet.broker._waits


async def test_a_lost_wake_up_is_made_good_by_rereading(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "REREAD_S", 0.2)
    async with Fleet(redis_url, namespace) as fleet:
        monkeypatch.setattr(fleet.broker, "_on_message", lambda channel, data: None)
        await fleet.worker(task(slow))
        assert (await fleet.run("slow", timeout_s=3)).value == b"7"
        job_id = await fleet.submit("slow")
        assert await fleet.value(job_id, 3) == 7
        assert await fleet.leaks() == []


async def test_an_ear_that_was_cut_rereads_at_once(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()

    async def ship() -> int:
        await release.wait()
        return 3

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        run = asyncio.create_task(fleet.run("ship"))
        await fleet.until(lambda: len(life.board.cells) == 1)
        assert fleet.broker._listener is not None
        wire = fleet.broker._listener._link.live
        assert wire is not None
        begun = time.monotonic()
        wire.abort()
        release.set()
        assert (await run).value == b"3"
        assert time.monotonic() - begun < 2 * PATIENCE


async def test_results_of_many_waiters_under_load(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(echo), concurrency=20)
        outcomes = await asyncio.gather(*(fleet.run("echo", number=number) for number in range(1000)))
        assert [int(outcome.value) for outcome in outcomes] == list(range(1000))
        assert await fleet.leaks() == []


async def test_a_dead_letter_tells_how_it_ended_also_long_after(redis_url: str, namespace: str) -> None:
    async def broken() -> None:
        raise ValueError("no")

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(broken, result_ttl_s=0.0))
        job_id = await fleet.submit("broken")
        assert (await fleet.broker.wait(job_id, 30)).status is JobStatus.FAILED
        assert (await fleet.broker.wait(job_id, 30)).status is JobStatus.FAILED


async def test_events_reach_handlers_of_other_services_and_of_workers_that_are_away(
    redis_url: str, namespace: str
) -> None:
    got: list[str] = []

    async def mail(order_id: str) -> None:
        got.append(f"mail {order_id}")

    async def ship(order_id: str, **rest: object) -> None:
        got.append(f"ship {order_id} {sorted(rest)}")

    async with Fleet(redis_url, namespace) as fleet:
        away = await fleet.worker(task(mail, event="paid"), service="mailing")
        await away.stop()
        await fleet.worker(task(ship, event="paid"), service="shipping")
        sent = await fleet.broker.send("paid", b'{"order_id":"A1","total":3}', [])
        assert [job_id.rpartition(":")[0] for job_id in sent] == ["paid.mail", "paid.ship"]
        await fleet.broker.wait(sent[1], 30)
        assert got == ["ship A1 ['total']"]
        await fleet.worker(task(mail, event="paid"), service="mailing")
        await fleet.broker.wait(sent[0], 30)
        assert got[1:] == ["mail A1"]
        assert await fleet.broker.send("unheard-of", b"{}", []) == []
        assert await fleet.leaks() == []


async def test_a_closed_client_says_so(redis_url: str, namespace: str) -> None:
    broker = QueueClient(redis_url, namespace)
    await broker.submit(Submission("ship", b"{}"))
    await broker.aclose()
    with pytest.raises(BrokerUnavailableError, match="closed"):
        await broker.run(client.unwatch(broker.keys, "ship:n1-0", "x", 1))


async def test_a_wait_right_after_one_that_ran_out_is_told_at_once(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the first wait's registration must not take the second's."""
    monkeypatch.setattr(waiting_module, "REREAD_S", 1000.0)
    fleet = Fleet(redis_url, namespace)
    let_go = asyncio.Event()

    async def held_up() -> int:
        await let_go.wait()
        return 7

    async with fleet:
        await fleet.worker(task(held_up))
        job_id = await fleet.submit("held_up")
        with pytest.raises(TimeoutError):
            await fleet.broker.wait(job_id, 0.05)
        second = asyncio.create_task(fleet.broker.wait(job_id, 60))
        await asyncio.sleep(0)
        await fleet.until(lambda: not fleet.broker._background)
        let_go.set()
        assert (await second).value == b"7"
        assert await fleet.leaks() == []


async def test_while_replies_are_owed_nothing_more_is_sent(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "SUBMIT_PATIENCE_S", 1.0)
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 1000.0)
    broker = QueueClient(own_server.url, namespace)
    job = Submission("ship", b"{}")
    first = await broker.submit(job)
    own_server.freeze()
    sent = asyncio.create_task(broker.submit(job))
    try:
        await wait_until_async(lambda: broker.link.doubted, 10, "the doubt")
        with pytest.raises(BrokerUnavailableError) as refused:
            await broker.submit(job)
        assert not isinstance(refused.value, SubmitUncertain)
        monkeypatch.setattr(waiting_module, "SUBMIT_PATIENCE_S", 100.0)
        late = asyncio.create_task(broker.submit(job))
        await asyncio.sleep(0)
    finally:
        own_server.thaw()
    ids = [first, await sent, await late]
    entries = own_server.cli("XRANGE", broker.keys.stream("ship", "n"), "-", "+")
    assert [f"ship:n{entry_id.decode()}" for entry_id, _ in entries] == ids
    await broker.aclose()
