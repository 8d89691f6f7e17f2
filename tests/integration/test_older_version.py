"""Data of an older version: its jobs run, its ends are shown, and what this version writes has all that the older one reads.

`older_version.json` is what a daemon of an earlier version (schema 1, before schedules and keys of ended jobs) left when it was killed:
ends, a dead letter, a job that was running, others that were queued or delayed. Its times are moved: it happened two minutes ago.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

import upnext
from tests.integration.cli.conftest import Cli
from tests.integration.lua_harness import Workbench
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.keys import SCHEMA
from upnext.errors import DuplicateJobError

OLDER = json.loads((Path(__file__).parent / "older_version.json").read_text())
AGO_MS = 125_000
"""The delayed job is due after 120 s."""
CHANGED = {"consumers": {"slot", "name", "generation", "version"}}
"""Fields that only the worker of a daemon has."""


def moved(now_ms: int) -> dict[str, dict[str, Any]]:
    """The recorded keys, with all times (in names, ids, rows and scores) so that they were recorded AGO_MS ago."""
    by_ms = now_ms - AGO_MS - OLDER["at_ms"]
    text = json.dumps(OLDER["keys"])
    text = re.sub(r"(?<!\d)17956\d{8}(?!\d)", lambda found: str(int(found[0]) + by_ms), text)
    return json.loads(re.sub(r"(?<!\d)17956\d{11}(?!\d)", lambda found: str(int(found[0]) + 1000 * by_ms), text))


@pytest.fixture
def older(work: Workbench) -> dict[str, dict[str, Any]]:
    """Writes the recorded keys. -> them."""
    recorded = moved(work.now_ms())
    for name, row in recorded.items():
        _restore(work, work.keys.prefix + name, row["type"], row["value"])
    return recorded


def _restore(work: Workbench, key: str, kind: str, value: Any) -> None:
    command = work.broker.command
    match kind:
        case "string":
            command("SET", key, value.encode("latin1"), "EX", 600)
        case "hash":
            command("HSET", key, *(word.encode("latin1") for pair in value.items() for word in pair))
        case "zset":
            command("ZADD", key, *(word for name, score in value.items() for word in (score, name)))
        case "stream":
            if value["group"]:
                command("XGROUP", "CREATE", key, "w", "0", "MKSTREAM")
            for entry_id, fields in value["entries"]:
                command("XADD", key, entry_id, *(word for pair in fields for word in pair))
            for consumer in value["held"].values():
                command("XREADGROUP", "GROUP", "w", consumer, "COUNT", 1, "STREAMS", key, ">")
        case _:
            raise AssertionError(f"{key}: a {kind}")


@pytest.fixture
def cli(redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(["--redis-url", redis_url, "--namespace", namespace], capsys)


class Shop:
    """The service that was recorded; `ran` is what it has done."""

    def __init__(self) -> None:
        self.worker = worker = upnext.Worker("shop", concurrency=4)
        self.ran: list[str] = []
        paid = worker.event("paid")

        @worker.task(max_concurrency=3)
        async def ship(order_id: str) -> str:
            self.ran.append(f"ship {order_id}")
            return f"shipped {order_id}"

        @worker.task(retries=1, retry_delay=0.1)
        async def charge(order_id: str) -> None:
            raise ValueError(f"no card for {order_id}")

        @worker.task
        async def hang(number: int) -> None:
            self.ran.append(f"hang {number}")

        @worker.cron("* * * * *")
        async def tidy() -> None: ...

        @paid.on
        async def mail(order_id: str) -> None:
            self.ran.append(f"mail {order_id}")

        self.ship, self.charge, self.hang, self.tidy, self.mail, self.paid = ship, charge, hang, tidy, mail, paid


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def test_its_jobs_run(work: Workbench, older: object, shop: Shop, redis_url: str, namespace: str) -> None:
    async with serving(shop.worker, redis_url, namespace):
        assert len(work.hash(work.keys.tasks)) == 5, "no row is there twice"
        await wait_until_async(
            lambda: {"ship Q1", "ship Q2", "ship D1", "mail E2", "hang 1"} <= set(shop.ran), 60
        )  # queued, with a key, delayed, of an event, running when its worker was killed
        assert len(shop.ran) == 5
        assert work.broker.command("GET", work.keys.idem("ship:order-8")) is None
    assert work.lengths("ship") == work.lengths("hang") == ""


async def test_its_keys_are_held(work: Workbench, older: object, shop: Shop, redis_url: str, namespace: str) -> None:
    work.broker.command("SADD", work.keys.paused, "ship")
    async with serving(shop.worker, redis_url, namespace):
        with pytest.raises(DuplicateJobError) as raised:
            await shop.ship.submit_idempotent("order-8", "another")
        assert raised.value.job_id.startswith("ship:n")


def test_what_it_left_is_shown(work: Workbench, older: dict[str, dict[str, Any]], cli: Cli) -> None:
    ended = {name.removeprefix("r:"): json.loads(row["value"]) for name, row in older.items() if name.startswith("r:")}
    shown = {row["job_id"]: row for row in cli.json("jobs", "--limit", "100")}
    assert {job_id: shown[job_id]["status"] for job_id in ended} == {key: row["s"] for key, row in ended.items()}
    assert {row["status"] for row in shown.values()} == {"done", "failed", "queued", "running", "delayed"}
    [letter] = cli.json("dead", "list")
    assert letter["task"] == "charge"
    assert cli.json("job", letter["job_id"])["error"]["message"] == "no card"
    assert {row["task"] for row in cli.json("tasks")} == {"ship", "charge", "hang", "tidy", "paid.mail"}
    assert [row["name"] for row in cli.json("cron", "list")] == ["tidy"]
    [host] = cli.json("hosts")
    assert (host["name"], host["state"]) == ("shop", "gone")
    assert cli("doctor") == 0, cli.out


def lacks(before: Any, now: Any, where: str = "") -> list[str]:
    """What of a row, or of its parts, is no longer there or has another type."""
    if isinstance(before, dict) and isinstance(now, dict):
        rows = cast("dict[str, Any]", before)
        return [
            problem
            for name, value in rows.items()
            for problem in (lacks(value, now[name], f"{where}.{name}") if name in now else [f"{where}.{name} is gone"])
        ]
    same = before is None or now is None or type(before) is type(now)
    return [] if same else [f"{where} was {before!r}, and is {now!r}"]


def decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def test_what_is_written_has_all_that_it_reads(
    work: Workbench, shop: Shop, redis_url: str, namespace: str
) -> None:
    """Both versions serve one namespace during a rolling deploy: a row may get more fields, none may go or change its type."""
    async with serving(shop.worker, redis_url, namespace):
        done, failed = await shop.ship.submit("A1"), await shop.charge.submit("B1")
        await done.result(timeout=60)
        await wait_until_async(lambda: work.dead_ids() == [failed.job_id], 60)
        work.broker.command("SADD", work.keys.paused, "ship")
        await shop.ship.submit_idempotent("order-8", "Q2")
        await shop.ship.options(delay=3600).submit("D1")
        recorded = moved(work.now_ms())
        for name in ("tasks", "crons", "limits", "consumers", "announcers"):
            before, now = recorded[name]["value"], work.hash(getattr(work.keys, name))
            if name in ("consumers", "announcers"):
                before, now = {"one": next(iter(before.values()))}, {"one": next(iter(now.values()))}
            rows = {field: decoded(row) for field, row in before.items()}
            for field in CHANGED.get(name, ()):
                rows["one"].pop(field)
            assert not lacks(rows, {field: decoded(row) for field, row in now.items()}, name)
        before = next(row["value"] for name, row in recorded.items() if name.startswith("r:ship"))
        now = work.broker.command("GET", work.keys.result(done.job_id)).decode()
        assert not lacks(decoded(before), decoded(now), "result")
        assert not lacks(_letter(recorded["dead:jobs"]["value"]), _letter(work.hash(work.keys.dead_jobs)), "dead")
        [(_, fields)] = work.lane("ship", "n")
        recorded_fields = dict(recorded["s:ship:n"]["value"]["entries"][-1][1])
        assert {name.decode() for name in fields} == set(recorded_fields)
        assert not lacks(decoded(recorded_fields["m"]), decoded(fields[b"m"].decode()), "entry")
        for name, row in recorded.items():
            key = work.keys.prefix + name
            found = work.broker.command("TYPE", key).decode()
            assert found in (row["type"], "none"), f"{key} is a {found} now"


def _letter(rows: dict[str, str]) -> Any:
    [packed] = rows.values()
    head, _, rest = packed.partition(":")
    assert head[0] in "nhbx"
    return {"meta": decoded(rest[: int(head[1:])]), "payload": decoded(rest[int(head[1:]) :])}


def test_data_of_a_newer_version_is_left_alone(work: Workbench, older: object, cli: Cli) -> None:
    """With a schema that this version does not know, nothing is written or set aside, whatever the keys hold."""
    work.broker.command("SET", work.keys.schema, SCHEMA + 2)
    work.broker.command("DEL", work.keys.limits)
    work.broker.command("SET", work.keys.limits, "of another type")
    before = work.everything()
    with pytest.raises(Exception, match="SCHEMA|WRONGTYPE"):
        work.register()
    assert work.everything() == before
