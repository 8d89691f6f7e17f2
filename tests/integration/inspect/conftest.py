"""Fixtures of the tests of what looks into the queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.inspect.bench import Bench
from upnext.engine.client.sync_client import SyncQueueClient


@pytest.fixture
def bench(redis_url: str, namespace: str) -> Iterator[Bench]:
    broker = SyncQueueClient(redis_url, namespace)
    yield Bench(broker)
    broker.close()
