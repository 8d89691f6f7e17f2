"""`upnext doctor` over a real server: what it names, what it removes, what it leaves alone."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import redis

from tests.integration.cli.conftest import Cli
from tests.integration.cli.test_bad_rows import CASES, name_of, spoil
from tests.integration.inspect.bench import Bench, task
from upnext.core.checkup import CHECKED
from upnext.core.keys import ROWS, SCHEMA, Keys
from upnext.core.spec import CronSpec


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def found(cli: Cli, *flags: str) -> list[dict[str, Any]]:
    code = cli("doctor", "--json", *flags)
    rows: list[dict[str, Any]] = json.loads(cli.out)
    assert code == (1 if [one for one in rows if not one["removed"]] else 0)
    return rows


def test_nothing_is_wrong_with_what_upnext_writes(bench: Bench, cli: Cli) -> None:
    bench.register(
        task("ship", max_concurrency=5), task("pack", event="placed"), task("tidy", cron=CronSpec("* * * * *"))
    )
    bench.submit("ship")
    bench.fail(bench.take())
    bench.submit("ship")
    bench.finish(bench.take())
    bench.submit("pack", delay_s=60.0, idempotency_key="k")
    bench.submit("ship", parent_id="p:n1-0")
    assert found(cli) == []
    assert cli("doctor") == 0
    assert cli.out == "everything can be read\n"


@pytest.mark.parametrize(("attribute", "how"), CASES)
def test_every_bad_key_is_named_and_can_be_removed(
    client: redis.Redis, namespace: str, cli: Cli, attribute: str, how: Any
) -> None:
    keys, row = Keys(namespace), ROWS[attribute]
    how(client, keys, attribute, row)
    key = name_of(keys, attribute, row)
    rows = found(cli)
    values_count = attribute in CHECKED - {"watched"} or row.type not in ("string", "list")
    if how is spoil and not values_count:  # any text will do, and of a list only its type counts
        assert rows == []
        return
    assert key in {one["key"] for one in rows}, rows
    assert all(one["why"] and one["remove"].startswith("redis-cli ") for one in rows)
    assert all(one["removed"] for one in found(cli, "--remove", "--yes"))
    assert found(cli) == []


def test_the_command_that_it_names_removes_the_row(client: redis.Redis, namespace: str, cli: Cli) -> None:
    crons = Keys(namespace).crons
    names = [b"plain", b"bad\xff\xfe", b"", b'it\'s $HOME `x` \\ "y"', b"two\nlines\x1b[31m", "wörter".encode()]
    client.hset(crons, mapping=dict.fromkeys(names, b"{broken"))
    rows = found(cli)
    assert len(rows) == len(names)
    for one in rows:
        words = one["remove"].removeprefix("redis-cli ")
        shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True).stdout
        assert client.execute_command(*shown.split(b"\0")[:-1]) == 1
    assert found(cli) == []


def test_people_get_the_key_the_field_why_and_the_command(client: redis.Redis, namespace: str, cli: Cli) -> None:
    crons = Keys(namespace).crons
    client.hset(crons, "tidy\x1b[31m", "{broken")
    assert cli("doctor") == 1
    assert cli.out.splitlines() == [
        f"{crons}  tidy\\x1b[31m",
        "  it is not JSON",
        f"  redis-cli HDEL '{crons}' $'tidy\\x1b[31m'",
    ]


def test_it_asks_before_it_removes(client: redis.Redis, namespace: str, cli: Cli) -> None:
    client.hset(Keys(namespace).crons, "tidy", "{broken")
    assert cli("doctor", "--remove") == 64
    assert "say so with --yes" in cli.err
    assert client.hlen(Keys(namespace).crons) == 1
    assert cli("doctor", "--remove", "--yes") == 0
    assert "removed 1 row or key" in cli.out
    assert client.hlen(Keys(namespace).crons) == 0


def test_a_row_that_was_mended_meanwhile_stays(bench: Bench, client: redis.Redis, namespace: str) -> None:
    from upnext.engine.views import doctor

    keys = Keys(namespace)
    client.hset(keys.limits, "ship", "{broken")
    client.set(keys.dead, "text")
    key, row = sorted(doctor.examine(bench.broker, keys), key=lambda one: one.key)
    client.hset(keys.limits, "ship", '{"concurrency":1}')
    client.delete(keys.dead)
    client.zadd(keys.dead, {"ship:n1-0": 1.0})
    assert not doctor.remove(bench.broker, keys, row)
    assert not doctor.remove(bench.broker, keys, key)
    assert client.hget(keys.limits, "ship") == b'{"concurrency":1}'
    assert client.zcard(keys.dead) == 1


def test_what_a_newer_version_wrote_is_left_alone(client: redis.Redis, namespace: str, cli: Cli) -> None:
    keys = Keys(namespace)
    client.hset(keys.crons, "tidy", '{"schema":99,"kind":"saga"}')
    client.xadd(keys.stream("ship", "n"), {f"p{SCHEMA + 1}": b"\x01", "m": b"\xff"})
    client.set(f"{keys.prefix}unknown:key", "x")
    assert found(cli) == []
    client.set(keys.schema, SCHEMA + 1)
    client.set(keys.dead, "text")
    assert [one["key"] for one in found(cli)] == [keys.dead]
    assert cli("doctor", "--remove", "--yes") == 64
    assert client.exists(keys.dead)


def test_what_was_set_aside_is_listed_until_it_is_removed(bench: Bench, client: redis.Redis, cli: Cli) -> None:
    bench.register(task("ship"))
    client.set(bench.keys.delayed, "text")
    bench.submit("ship", delay_s=60.0)
    [one] = found(cli)
    assert one["key"] == f"{bench.keys.aside_prefix}delayed"
    assert f"{bench.keys.delayed} held a string, not a zset" in one["why"]
    found(cli, "--remove", "--yes")
    assert found(cli) == []
    assert not client.exists(bench.keys.aside)
    assert client.zcard(bench.keys.delayed) == 1


def test_many_rows_and_large_ones_are_read_in_parts(client: redis.Redis, namespace: str, cli: Cli) -> None:
    keys = Keys(namespace)
    large = b"n2:{}" + b"x" * 1_000_000
    for at in range(20):
        client.hset(keys.dead_jobs, f"ship:n{at + 1}-0", large)
        client.zadd(keys.dead, {f"ship:n{at + 1}-0": 1})
    client.hset(keys.stats, mapping={f"task{at}:done": 1 for at in range(20_000)})
    assert found(cli) == []


def test_no_more_than_the_limit_are_listed(client: redis.Redis, namespace: str, cli: Cli) -> None:
    client.hset(Keys(namespace).limits, mapping={f"task{at}": "{broken" for at in range(30)})
    assert len(found(cli, "--limit", "10")) == 10
    assert cli("doctor", "--limit", "10") == 1
    assert cli.out.splitlines()[-1] == "there are more: --limit"
    assert cli("doctor", "--limit", "10", "--remove", "--yes") == 1
    assert len(found(cli)) == 20
