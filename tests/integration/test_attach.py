"""attach: records the connection that a consumer reads on."""

from __future__ import annotations

import json

import pytest

from tests.integration.lua_harness import CONSUMER, Workbench, task
from upnext.engine.calls import lease
from upnext.engine.redis.replies import ReapedError


def test_the_record_gets_the_new_connection(work: Workbench) -> None:
    work.register(task("ship"))
    before = json.loads(work.hash(work.keys.consumers)[CONSUMER])
    assert work.broker.run(lease.attach(work.keys, work.epoch, CONSUMER, 4711)) == 1
    assert work.broker.run(lease.attach(work.keys, work.epoch, CONSUMER, 4712)) == 1
    assert json.loads(work.hash(work.keys.consumers)[CONSUMER]) == {**before, "client_id": 4712}


@pytest.mark.parametrize("gone", ["record", "lease"])
def test_a_consumer_that_was_reaped_is_refused(work: Workbench, gone: str) -> None:
    work.register(task("ship"))
    if gone == "record":
        work.broker.command("HDEL", work.keys.consumers, CONSUMER)
    else:
        work.broker.command("ZREM", work.keys.leases, CONSUMER)
    before = work.everything()
    with pytest.raises(ReapedError):
        work.broker.run(lease.attach(work.keys, work.epoch, CONSUMER, 4711))
    assert work.everything() == before


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.refuses_another_epoch(lambda epoch: lease.attach(work.keys, epoch, CONSUMER, 1))
