"""The commands that ask the queue, on a real broker: shapes of the contract, exit codes, and one line for each error."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Cli
from tests.integration.inspect.bench import Bench, task
from tests.support.servers import Server
from tests.support.waiting import wait_until
from upnext.cli import main
from upnext.core.spec import CronSpec, RateLimit
from upnext.engine.calls import ownership

JOB_FIELDS = {
    "job_id", "task", "status", "attempt", "max_attempts", "crashes", "submitted_at", "started_at", "finished_at", "worker",
    "parent_id", "root_id", "result", "error", "cause",
}  # fmt: skip
TASK_FIELDS = {
    "task", "kind", "service", "queued", "running", "delayed", "dead", "done", "failed", "rate_per_s", "paused", "limits",
    "skew",
    "unreadable",
}  # fmt: skip


def call_in_background(redis_url: str, namespace: str, codes: list[int], *arguments: str) -> threading.Thread:
    def run() -> None:
        codes.append(main.run(["--redis-url", redis_url, "--namespace", namespace, "call", *arguments]))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


class TestCall:
    def test_it_prints_the_id(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1", "count": 2}') == 0
        taken = bench.take()
        assert cli.out == f"{taken.job_id}\n"
        assert cli.json("call", "ship", "--kwargs", '{"order_id": "A1"}').keys() == {"job_id"}

    @pytest.mark.parametrize("kwargs", ["{}", '{"order_id": "A", "cuont": 1}'])
    def test_wrong_arguments_show_the_signature(self, bench: Bench, cli: Cli, kwargs: str) -> None:
        bench.register(task("ship"))
        assert cli("call", "ship", "--kwargs", kwargs) == 64
        assert "(order_id: str, count: int = 1)" in cli.err
        assert cli.err.count("\n") == 1
        assert bench.fetch() == []

    def test_an_unknown_task(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        assert cli("call", "shop") == 64
        assert "did you mean ship?" in cli.err

    def test_delay_and_the_tasks_own_priority(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship", priority="high"))
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1"}', "--delay", "60") == 0
        delayed = cli.json("job", cli.out.strip())
        assert (delayed["status"], delayed["started_at"]) == ("delayed", None)
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1"}') == 0
        assert cli.json("job", cli.out.strip())["where"]["lane"] == "h"

    @pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
    def test_a_delay_that_is_no_duration(self, bench: Bench, cli: Cli, value: str) -> None:
        bench.register(task("ship"))
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1"}', "--delay", value) == 64
        assert cli.err.startswith(("upnext: call: --delay must be ", "upnext: Invalid value for '--delay': "))
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1"}', "--wait", "--timeout", value) == 64

    def test_wait_prints_the_value(
        self, bench: Bench, redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bench.register(task("ship"))
        codes: list[int] = []
        thread = call_in_background(redis_url, namespace, codes, "ship", "--kwargs", '{"order_id": "A1"}', "--wait")
        [taken] = wait_until(bench.fetch, 10, "the job to arrive")
        bench.finish(taken, b'{"parcels":2}')
        thread.join(100)
        assert codes == [0]
        assert json.loads(capsys.readouterr().out) == {"parcels": 2}

    def test_wait_for_a_job_that_fails(
        self, bench: Bench, redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bench.register(task("ship"))
        codes: list[int] = []
        thread = call_in_background(redis_url, namespace, codes, "ship", "--kwargs", '{"order_id": "A1"}', "--wait")
        [taken] = wait_until(bench.fetch, 10, "the job to arrive")
        bench.fail(taken)
        thread.join(100)
        assert codes == [1]
        assert capsys.readouterr().err == f"upnext: job {taken.job_id} failed: ValueError: no such order\n"

    def test_a_wait_that_is_too_long(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        assert cli("call", "ship", "--kwargs", '{"order_id": "A1"}', "--wait", "--timeout", "0.05") == 75
        assert "did not end within 0.05 s" in cli.err


class TestJob:
    def test_the_shape_of_the_contract(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship", retries=2))
        job_id = bench.submit("ship")
        shown = cli.json("job", job_id)
        assert shown.keys() >= JOB_FIELDS
        assert (shown["status"], shown["attempt"], shown["max_attempts"], shown["error"]) == ("queued", 1, 3, None)
        bench.finish(bench.take(), b"[1]")
        shown = cli.json("job", job_id)
        assert (shown["status"], shown["result"], shown["finished_at"]) == ("done", [1], "1970-01-01T00:00:02.000Z")

    def test_for_people(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        job_id = bench.submit("ship")
        bench.take()
        assert cli("job", job_id) == 0
        assert f"job        {job_id}\n" in cli.out
        assert "worker     consumer-1 on here, pid 4711\n" in cli.out

    @pytest.mark.parametrize(("job_id", "code"), [("ship:n1-0", 1), ("nonsense", 64)])
    @pytest.mark.parametrize("command", ["job", "explain"])
    def test_an_unknown_one(self, cli: Cli, command: str, job_id: str, code: int) -> None:
        assert cli(command, job_id) == code
        assert cli.err.count("\n") == 1

    def test_tree(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        root = bench.submit("ship")
        child = bench.submit("ship", parent_id=root, root_id=root)
        leaf = bench.submit("ship", parent_id=child, root_id=root, delay_s=60.0)
        assert cli("job", child, "--tree") == 0
        assert cli.out == f"{root}  queued\n  {child}  queued <\n    {leaf}  delayed\n"
        assert {one["job_id"] for one in cli.json("job", leaf, "--tree")["tree"]} == {root, child, leaf}
        # the root is done and forgotten: what is left still shows
        bench.finish(bench.take(), ttl_ms=0)
        assert cli("job", leaf, "--tree") == 0
        assert f"{leaf}  delayed <" in cli.out

    def test_follow_ends_with_the_job(
        self, bench: Bench, redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bench.register(task("ship"))
        job_id = bench.submit("ship")
        codes: list[int] = []
        flags = ["--redis-url", redis_url, "--namespace", namespace]
        thread = threading.Thread(target=lambda: codes.append(main.run([*flags, "job", job_id, "--follow"])))
        thread.start()
        reported = ""

        def says(word: str) -> bool:
            nonlocal reported
            reported += capsys.readouterr().out
            return word in reported

        wait_until(lambda: says("queued"), 10, "queued to be printed")
        taken = bench.take()
        wait_until(lambda: says("running"), 10, "running to be printed")
        bench.fail(taken)
        thread.join(100)
        assert codes == [1]
        assert says("ValueError: no such order")

    def test_by_its_idempotency_key_also_after_its_end(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"), task("pack"))
        job_id = bench.submit("ship", idempotency_key="order-1")
        assert cli.json("job", "--key", "order-1")["status"] == "queued"
        bench.finish(bench.take())
        found = cli.json("job", "--key", "order-1", "--task", "ship")
        assert (found["job_id"], found["status"]) == (job_id, "done")
        assert cli("job", "--key", "order-1", "--task", "pack") == 1
        assert cli("job", "--key", "order-2") == 1
        assert "no job of the key 'order-2'" in cli.err
        other = bench.submit("pack", idempotency_key="order-1")
        assert cli("job", "--key", "order-1") == 64
        assert job_id in cli.err
        assert other in cli.err

    @pytest.mark.parametrize("arguments", [[], ["ship:n1-1", "--key", "k"], ["ship:n1-1", "--task", "ship"]])
    def test_an_id_or_a_key(self, bench: Bench, cli: Cli, arguments: list[str]) -> None:
        bench.register(task("ship"))
        assert cli("job", *arguments) == 64
        assert "give an ID, or --key KEY" in cli.err


class TestJobs:
    def test_by_state_and_task(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("pack"), task("ship"))
        done = bench.submit("ship")
        bench.finish(bench.take())
        running = bench.submit("ship")
        bench.take()
        queued, delayed = bench.submit("pack"), bench.submit("pack", delay_s=60.0)
        listed = cli.json("jobs")
        assert [one["job_id"] for one in listed] == [running, queued, delayed, done]
        assert {one["max_attempts"] for one in listed} == {1}, "as `upnext job` says"
        for state, job_id in (("running", running), ("queued", queued), ("delayed", delayed), ("done", done)):
            assert [(one["job_id"], one["status"]) for one in cli.json("jobs", "--state", state)] == [(job_id, state)]
        assert [one["job_id"] for one in cli.json("jobs", "--task", "pack")] == [queued, delayed]
        assert [one["job_id"] for one in cli.json("jobs", "--limit", "1")] == [running]
        assert cli("jobs", "--state", "dead") == 0
        assert cli.out == "no jobs\n"

    def test_by_error_and_time(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        [failed] = bench.dead("ship")
        bench.submit("ship")

        def ids(*arguments: str) -> list[str]:
            return [one["job_id"] for one in cli.json("jobs", *arguments)]

        assert ids("--error", "valueerror") == [failed]
        assert ids("--error", "NO SUCH ORDER", "--task", "ship") == [failed]
        assert ids("--error", "TimeoutError") == []
        assert ids("--state", "dead", "--error", "no such") == [failed]
        assert len(ids("--since", "1h")) == 1, "bench ends jobs in 1970"
        assert len(ids("--since", "1970-01-01T00:00:01", "--state", "dead")) == 1
        assert ids("--since", "1970-01-01T00:00:03Z", "--state", "dead") == []

    @pytest.mark.parametrize("since", ["soon", "1 h", "-1h", "1w", ""])
    def test_a_time_that_is_none(self, cli: Cli, since: str) -> None:
        assert cli("jobs", "--since", since) == 64
        assert "ISO time" in cli.err

    def test_labels_are_looked_for_before_the_limit_counts(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        wanted = [bench.submit("ship", own={"labels": {"of": name, "kind": "b"}}) for name in ("A", "B")]
        for _ in range(5):
            bench.submit("ship", own={"labels": {"of": "C"}})
        wanted.append(bench.submit("ship", own={"labels": {"of": "A"}}))
        for _ in range(5):
            bench.submit("ship")
        assert [one["job_id"] for one in cli.json("jobs", "--label", "of=B", "--limit", "1")] == [wanted[1]]
        assert {one["job_id"] for one in cli.json("jobs", "--label", "of=A", "--limit", "2")} == {wanted[0], wanted[2]}
        assert len(cli.json("jobs", "--label", "of=A", "--limit", "1")) == 1
        [both] = cli.json("jobs", "--label", "of=A", "--label", "kind=b", "--limit", "3")
        assert both["job_id"] == wanted[0]


class TestTasks:
    def test_the_shape_of_the_contract(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship", rate_limit=RateLimit(10, 60.0), max_concurrency=3), task("pack"))
        bench.submit("ship", limited=True)
        pack, ship = cli.json("tasks")
        assert pack.keys() == ship.keys() == TASK_FIELDS
        assert (ship["queued"], ship["limits"]) == (1, {"rate": {"count": 10, "period_s": 60.0}, "concurrency": 3})
        assert (pack["paused"], pack["limits"]) == (False, {"rate": None, "concurrency": None})
        assert cli("tasks") == 0
        assert "10/60s max 3" in cli.out

    def test_list(self, bench: Bench, cli: Cli) -> None:
        assert cli("list") == 0
        assert cli.out.startswith("no tasks are registered in namespace ")
        bench.register(task("ship"))
        [ship] = cli.json("list")
        assert (ship["task"], ship["kind"], ship["service"]) == ("ship", "task", "orders")
        assert "order_id: str" in ship["signature"]

    def test_list_of_a_file_needs_no_broker(self, tmp_path: Path, cli: Cli) -> None:
        service = tmp_path / "shop_of_list.py"
        service.write_text("import upnext\nworker = upnext.Worker('w')\n@worker.task\ndef pack(size: int): ...\n")
        [pack] = cli.json("list", str(service), "--redis-url", "unix:///nowhere.sock")
        assert (pack["task"], pack["service"], pack["signature"]) == ("pack", "shop_of_list", "pack(size: int)")

    def test_pause_and_resume(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        assert cli.json("pause-task", "ship") == {"task": "ship", "paused": True}
        assert cli.json("tasks")[0]["paused"] is True
        assert cli("pause-task", "ship") == 0
        assert cli.out == "ship was paused already\n"
        assert cli("resume-task", "ship") == 0
        assert cli.out == "ship resumed\n"
        assert cli("pause-task", "nothing") == 64

    def test_purge_asks_first(self, bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.register(task("ship"))
        bench.submit("ship")
        bench.submit("ship", delay_s=60.0)
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert cli("purge", "ship") == 64
        assert "remove the 1 queued job of ship" in cli.err
        assert cli.json("purge", "ship", "--yes") == {"task": "ship", "queued": 1, "delayed": 1}
        assert [job["status"] for job in cli.json("jobs")] == ["cancelled"] * 2
        assert len(cli.json("jobs", "--state", "cancelled")) == 2

    def test_limits_that_operators_set(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship", max_concurrency=3))
        assert cli.json("limits", "ship", "--rate", "10/minute") == {"task": "ship", "declared": False}
        assert cli.json("tasks")[0]["limits"] == {"rate": {"count": 10, "period_s": 60.0}, "concurrency": None}
        bench.register(task("ship", max_concurrency=3), consumer="of a worker that was started again")
        assert cli.json("tasks")[0]["limits"]["concurrency"] is None
        assert cli("limits", "ship", "--none") == 0
        assert cli.json("tasks")[0]["limits"] == {"rate": None, "concurrency": None}
        assert cli("limits", "ship", "--declared") == 0
        assert cli.json("tasks")[0]["limits"] == {"rate": None, "concurrency": 3}

    @pytest.mark.parametrize(
        "arguments",
        [[], ["--none", "--declared"], ["--rate", "x"], ["--concurrency", "0"], ["--none", "--concurrency", "1"]],
    )
    def test_limits_that_cannot_be_meant(self, bench: Bench, cli: Cli, arguments: list[str]) -> None:
        bench.register(task("ship"))
        before = cli.json("tasks")
        assert cli("limits", "ship", *arguments) == 64
        assert cli("limits", "unknown", "--none") == 64
        assert cli.json("tasks") == before

    def test_forget(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"), task("tidy", cron=CronSpec("* * * * *")), lease_ms=-1)
        assert cli.json("forget", "tidy") == {"name": "tidy", "forgotten": True}
        assert cli.json("cron", "list") == []
        assert cli("forget", "ship") == 0
        assert cli.out == "ship is forgotten\n"
        assert cli.json("tasks") == []
        assert cli("forget", "ship") == 64

    def test_what_cannot_be_forgotten_says_why(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        assert cli("forget", "ship") == 64
        assert "served by a running worker" in cli.err
        bench.register(task("ship"), lease_ms=-1)
        stated = ownership.Statement("d1", "orders", 1, "host-1", "/srv/orders.py", {"ship": "ship()"}, [])
        for call in ownership.announce(bench.keys, bench.epoch, stated, 60_000):
            bench.broker.run(call)
        assert cli("forget", "ship") == 64
        assert "orders on host-1" in cli.err
        bench.broker.run(ownership.withdraw(bench.keys, bench.epoch, ["d1"]))
        job_id = bench.submit("ship")
        assert cli("forget", "ship") == 64
        assert "has queued jobs" in cli.err
        bench.broker.cancel(job_id)
        job_id = bench.submit("ship", delay_s=60)
        assert cli("forget", "ship") == 64
        assert "1 delayed jobs" in cli.err
        bench.broker.cancel(job_id)
        assert cli("forget", "ship") == 0

    def test_different_code_for_long_is_a_skew(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        for daemon, file in (("d1", "/srv/1/orders.py"), ("d2", "/srv/2/orders.py")):
            stated = ownership.Statement(daemon, "orders", 1, f"host-{daemon}", file, {"ship": "ship()"}, ["ship"])
            for call in ownership.announce(bench.keys, bench.epoch, stated, 60_000):
                bench.broker.run(call)
        [ship] = cli.json("tasks")
        assert ship["skew"] == {
            "since": "1970-01-01T00:00:00.001Z",
            "files": ["/srv/1/orders.py", "/srv/2/orders.py"],
            "signatures": ["ship()"],
            "hosts": ["host-d1", "host-d2"],
        }


class TestDead:
    def test_list_show_retry_purge(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        first, second = bench.dead("ship", 2)
        assert {one["job_id"] for one in cli.json("dead", "list")} == {first, second}
        shown = cli.json("dead", "show", first)
        assert shown["arguments"] == {"order_id": "A1"}
        assert shown["error"] == {"type": "ValueError", "message": "no such order", "traceback": "Traceback\n  line 1"}
        assert cli("dead", "show", first) == 0
        assert "Traceback" in cli.out
        assert cli("dead", "retry", first) == 0
        assert cli.out == "retried 1 dead letter\n"
        assert cli.json("job", first)["status"] == "queued"
        assert cli("dead", "retry", first) == 1
        assert cli.err == f"upnext: {first} is not a dead letter\n"
        assert cli("dead", "show", first) == 1
        assert cli.err == f"upnext: no dead letter '{first}': the job is queued\n"
        assert cli.json("dead", "purge", "--all", "--yes") == {"purged": [second], "unknown": []}
        assert cli("dead", "list") == 0
        assert cli.out == "no jobs\n"
        assert cli("dead", "show", second) == 1

    @pytest.mark.parametrize(
        "arguments", [["retry"], ["purge"], ["retry", "ship:n1-0", "--all"], ["purge", "--all", "--task", "ship"]]
    )
    def test_which_must_be_said(self, cli: Cli, arguments: list[str]) -> None:
        assert cli("dead", *arguments) == 64
        assert "say which" in cli.err

    def test_retry_of_a_task(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("pack"), task("ship"))
        [shipped], [packed] = bench.dead("ship"), bench.dead("pack")
        assert cli.json("dead", "retry", "--task", "ship") == {"retried": [shipped], "unknown": []}
        assert [one["job_id"] for one in cli.json("dead", "list", "--task", "pack")] == [packed]


class TestCancel:
    def test_queued_and_again(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        job_id = bench.submit("ship")
        for _ in range(2):
            assert cli.json("cancel", job_id) == {"job_id": job_id, "cancelled": True}
        assert cli.json("job", job_id)["status"] == "cancelled"

    def test_running_is_asked_to_end(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        job_id = bench.submit("ship")
        bench.take()
        assert cli("cancel", job_id) == 0
        assert cli.json("job", job_id)["cancel_requested_at"] is not None

    def test_ended_and_unknown(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"))
        job_id = bench.submit("ship")
        bench.finish(bench.take())
        assert cli("cancel", job_id) == 1
        assert cli.out == f"{job_id} had ended\n"
        assert cli("cancel", "ship:n1-0") == 1
        assert "no job" in cli.err


class TestCron:
    def test_list_and_run(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("nightly", cron=CronSpec("0 3 * * *", "Europe/Berlin")))
        [nightly] = cli.json("cron", "list")
        shape = {"name", "schedule", "timezone", "last", "next", "service", "overlap", "skipped"}
        assert nightly.keys() == shape | {"task", "kind", "paused", "waits", "overdue_since", "words", "unreadable"}
        assert nightly["words"] == "every day at 03:00"
        assert (nightly["name"], nightly["timezone"], nightly["service"]) == ("nightly", "Europe/Berlin", "orders")
        assert cli("cron", "run", "nightly") == 0
        assert bench.take().job_id == cli.out.strip()
        assert cli("cron", "run", "daily") == 64

    def test_pause_and_resume(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("nightly", cron=CronSpec("0 3 * * *")))
        assert cli.json("cron", "pause", "nightly") == {"cron": "nightly", "task": "nightly", "paused": True}
        assert [one["paused"] for one in cli.json("tasks")] == [True]
        assert [(one["paused"], one["waits"]) for one in cli.json("cron", "list")] == [(True, "it is paused")]
        assert cli("cron", "pause", "nightly") == 0
        assert cli.out == "nightly was paused already\n"
        assert cli("cron", "resume", "nightly") == 0
        assert cli.out == "nightly resumed\n"
        assert [one["paused"] for one in cli.json("tasks")] == [False]
        assert cli("cron", "pause", "daily") == 64

    def test_run_with_the_arguments_that_it_declares(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("nightly", cron=CronSpec("0 3 * * *", payload=b'{"order_id":"A7"}')))
        assert cli("cron", "run", "nightly") == 0
        assert cli.json("job", cli.out.strip())["task"] == "nightly"
        [(_, fields)] = bench.broker.command("XRANGE", bench.keys.stream("nightly", "n"), "-", "+")
        assert fields[1] == b'{"order_id":"A7"}'

    def test_a_schedule_is_added_listed_run_paused_and_removed(self, bench: Bench, cli: Cli) -> None:
        bench.register(task("ship"), task("nightly", cron=CronSpec("0 3 * * *")))
        made = cli.json("cron", "add", "morning", "ship", "--cron", "0 9 * * *", "--kwargs", '{"order_id": "A1"}')
        assert (made["kind"], made["task"], made["schedule"], made["waits"]) == ("schedule", "ship", "0 9 * * *", None)
        assert (
            cli("cron", "add", "often", "ship", "--every", "90", "--kwargs", '{"order_id": "A2"}', "--no-overlap") == 0
        )
        assert cli.out.startswith("often: every 90 s, next 20")
        listed = [(one["name"], one["kind"], one["overlap"]) for one in cli.json("cron", "list")]
        assert listed == [("nightly", "cron", True), ("morning", "schedule", True), ("often", "schedule", False)]
        assert cli("cron", "run", "morning") == 0
        job_id = cli.out.strip()
        assert cli.json("job", job_id)["labels"] == {"schedule": "morning"}
        assert bench.take().job_id == job_id
        assert cli.json("cron", "pause", "morning") == {"cron": "morning", "task": "ship", "paused": True}
        assert cli("cron", "pause", "morning") == 0
        assert cli.out == "morning was paused already\n"
        assert [one["paused"] for one in cli.json("tasks") if one["task"] == "ship"] == [False]
        assert cli("cron", "list") == 0
        assert "it is paused" in cli.out
        assert cli("cron", "resume", "morning") == 0
        assert cli.json("cron", "remove", "morning") == {"cron": "morning", "removed": True}
        assert cli("cron", "remove", "morning") == 64
        assert "no schedule 'morning' is known here (known: often)" in cli.err
        assert cli("cron", "remove", "nightly") == 64
        assert "declared by a service" in cli.err

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("odd", "ship"), "one of them"),
            (("odd", "ship", "--every", "5", "--cron", "* * * * *"), "one of them"),
            (("odd", "ship", "--cron", "99 * * * *"), "minute"),
            (("odd", "shop", "--every", "5"), "shop"),
            (("odd", "ship", "--every", "5"), "missing argument 'order_id'"),
            (("odd", "ship", "--every", "5", "--kwargs", "[]"), "not a JSON object"),
            (("nightly", "ship", "--every", "5", "--kwargs", '{"order_id": "A1"}'), "a declared cron has this name"),
        ],
    )
    def test_a_wrong_schedule(self, bench: Bench, cli: Cli, words: tuple[str, ...], line: str) -> None:
        bench.register(task("ship"), task("nightly", cron=CronSpec("0 3 * * *")))
        assert cli("cron", "add", *words) == 64
        assert line in cli.err
        assert "Traceback" not in cli.err


def test_explain(bench: Bench, cli: Cli) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    assert cli.json("explain", job_id) == {
        "job_id": job_id,
        "gate": "turn",
        "position": 1,
        "detail": "it is number 1 in lane normal; 1 worker has the task",
    }
    assert cli("explain", job_id) == 0
    assert cli.out.startswith("turn: ")


def test_a_wrong_password(own_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    own_server.cli("CONFIG", "SET", "requirepass", "secret")
    for url in (own_server.url, own_server.url.replace("unix://", "unix://:wrong@")):
        assert main.run(["tasks", "--redis-url", url]) == 69
    output = capsys.readouterr().err
    assert output.count("\n") == 2
    assert "wrong@" not in output
