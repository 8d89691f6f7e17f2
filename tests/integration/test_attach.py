"""attach: tells on which connection a consumer fetches by now."""

from __future__ import annotations

import json

from tests.integration.workbench import CONSUMER, Workbench, task
from upnext.engine.calls import keeping


def test_the_record_gets_the_new_connection(work: Workbench) -> None:
    work.register(task("ship"))
    before = json.loads(work.hash(work.keys.consumers)[CONSUMER])
    assert work.broker.run(keeping.attach(work.keys, work.epoch, CONSUMER, 4711)) is True
    assert work.broker.run(keeping.attach(work.keys, work.epoch, CONSUMER, 4712)) is True
    assert json.loads(work.hash(work.keys.consumers)[CONSUMER]) == {**before, "client_id": 4712}


def test_a_consumer_that_nobody_knows_gets_no_record(work: Workbench) -> None:
    work.register(task("ship"))
    before = work.everything()
    assert work.broker.run(keeping.attach(work.keys, work.epoch, "nobody", 4711)) is False
    assert work.everything() == before


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.refuses_another_epoch(lambda epoch: keeping.attach(work.keys, epoch, CONSUMER, 1))
