"""Every test here gets a workbench: one consumer on a fresh namespace of a real broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.lua_harness import Workbench
from upnext.engine.client.sync_client import SyncQueueClient


@pytest.fixture
def work(redis_url: str, namespace: str) -> Iterator[Workbench]:
    broker = SyncQueueClient(redis_url, namespace)
    yield Workbench(broker)
    broker.close()
