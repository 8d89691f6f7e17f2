"""Every test here gets a workbench: one consumer on a fresh namespace of a real broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.workbench import Workbench
from upnext.engine.sync import SyncBroker


@pytest.fixture
def work(redis_url: str, namespace: str) -> Iterator[Workbench]:
    broker = SyncBroker(redis_url, namespace)
    yield Workbench(broker)
    broker.close()
