"""The SDK without a broker: what it would submit is kept by a stand-in."""

from __future__ import annotations

import pytest

from tests.unit.sdk.fake_broker import StandIn
from upnext import access
from upnext.access import AsyncBroker, SyncQueueClient


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """In place of every broker that the SDK asks for."""
    standin = StandIn()

    def async_broker(redis_url: str | None) -> AsyncBroker:
        standin.urls.append(redis_url)
        return standin.asynchronous

    def sync_broker(redis_url: str | None) -> SyncQueueClient:
        standin.urls.append(redis_url)
        return standin

    monkeypatch.setattr(access, "async_broker", async_broker)
    monkeypatch.setattr(access, "sync_broker", sync_broker)
    return standin
