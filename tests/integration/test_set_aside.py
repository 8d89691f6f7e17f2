"""Keys of a wrong type are set aside: renamed and named, and what met one goes on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.integration.lua_harness import Workbench, task
from upnext.core.keys import SCHEMA
from upnext.core.submission import Submission
from upnext.engine.calls import inspect
from upnext.engine.redis import aside
from upnext.engine.redis.replies import ReplyError


def set_aside(work: Workbench, *names: str, epoch: str = "") -> list[aside.Aside]:
    return [one for call in aside.calls(names, epoch) for one in work.broker.run_once(call)]


def test_it_is_renamed_and_kept_with_what_was_wrong(work: Workbench) -> None:
    work.register(task("ship"))
    work.broker.command("SET", work.keys.dead, "text")
    [one] = set_aside(work, work.keys.dead, work.keys.limits, work.keys.tasks)
    assert (one.key, one.why) == (work.keys.dead, "held a string, not a zset")
    assert work.broker.command("GET", one.now_at) == b"text"
    assert not work.broker.command("EXISTS", work.keys.dead)
    row = json.loads(work.hash(work.keys.aside)[one.now_at])
    assert (row["key"], row["why"]) == (one.key, one.why)
    assert abs(row["at_ms"] - work.now_ms()) < 60_000


def test_a_second_one_of_the_same_key_has_another_name(work: Workbench) -> None:
    names: set[str] = set()
    for text in ("one", "two"):
        work.broker.command("SET", work.keys.dead, text)
        names.update(one.now_at for one in set_aside(work, work.keys.dead))
    assert sorted(work.broker.command("GET", name) for name in names) == [b"one", b"two"]


@pytest.mark.parametrize("text", ["\x00", "two words", ""])
def test_a_name_of_the_data_set_that_is_garbled_is_set_aside_and_written_anew(work: Workbench, text: str) -> None:
    work.register(task("ship"))
    work.broker.command("SET", work.keys.epoch, text)
    assert [one.key for one in set_aside(work, work.keys.epoch, epoch=work.epoch)] == [work.keys.epoch]
    assert work.broker.command("GET", work.keys.epoch).decode() == work.epoch


def test_a_holder_goes_on_after_the_name_of_the_data_set_was_garbled(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.broker.command("SET", work.keys.epoch, "\x00")
    assert [taken.task for taken in work.fetch(1)] == ["ship"]


def test_a_schema_that_is_no_number_is_written_anew(work: Workbench) -> None:
    work.broker.command("SET", work.keys.schema, "x")
    work.register(task("ship"))
    assert int(work.broker.command("GET", work.keys.schema)) == SCHEMA
    assert list(work.hash(work.keys.aside)) == [f"{work.keys.aside_prefix}schema"]


def test_data_of_a_newer_version_is_left_alone(work: Workbench) -> None:
    work.broker.command("SET", work.keys.schema, SCHEMA + 1)
    work.broker.command("SET", work.keys.dead, "text")
    before = work.everything()
    assert set_aside(work, *work.keys.lasting) == []
    assert work.everything() == before


def test_its_own_list_of_them_may_be_wrong_too(work: Workbench) -> None:
    work.broker.command("RPUSH", work.keys.aside, "x")
    work.broker.command("RPUSH", work.keys.dead, "x")
    assert {one.key for one in set_aside(work, *work.keys.lasting)} == {work.keys.aside, work.keys.dead}
    assert len(work.hash(work.keys.aside)) == 2


def test_no_more_than_a_thousand_are_kept(work: Workbench) -> None:
    work.broker.command("HSET", work.keys.aside, *(word for at in range(1000) for word in (at, "{}")))
    work.broker.command("SET", work.keys.dead, "text")
    assert set_aside(work, work.keys.dead) == []
    assert work.broker.command("GET", work.keys.dead) == b"text"


def test_a_call_that_met_one_is_repeated_and_the_key_is_named(
    work: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    work.register(task("ship"))
    work.broker.command("SET", work.keys.delayed, "text")
    with caplog.at_level(logging.ERROR):
        work.submit("ship", delay_s=5.0)
    assert work.broker.command("ZCARD", work.keys.delayed) == 1
    assert f"{work.keys.delayed} held a string, not a zset: it is {work.keys.aside_prefix}delayed now" in caplog.text


def test_a_lane_that_takes_nothing_is_the_submitters_error_until_a_worker_reads_it(work: Workbench) -> None:
    work.register(task("ship"))
    stream = work.keys.stream("ship", "n")
    work.broker.command("DEL", stream)
    work.broker.command("SET", stream, "text")
    with pytest.raises(ReplyError, match="WRONGTYPE"):
        work.broker.submit(Submission("ship", b"{}"))
    work.register(task("ship"))
    work.submit("ship")
    assert len(work.lane("ship", "n")) == 1


@pytest.mark.parametrize("dead", [True, False])
def test_what_only_looks_goes_on_beside_it_and_changes_nothing(work: Workbench, dead: bool) -> None:
    key = work.keys.dead if dead else work.keys.delayed
    work.broker.command("SET", key, "text")
    before = work.everything()
    call: Any = inspect.page_jobs(work.keys, dead=dead, task=None, rank=0, look=10, limit=10)
    assert work.broker.run(call).jobs == []
    assert work.everything() == before
