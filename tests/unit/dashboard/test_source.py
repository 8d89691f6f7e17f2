"""source: answers that viewers share do not stay when their time is over."""

from __future__ import annotations

import time

import pytest

from upnext.dashboard.source import Source
from upnext.engine.client.sync_client import SyncQueueClient


def test_an_answer_that_is_over_goes_with_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(SyncQueueClient("redis://127.0.0.1:1/0"))
    now = time.monotonic()
    for minute in range(60):
        monkeypatch.setattr(time, "monotonic", lambda at=now + minute * 60: at)
        assert source._shared(30.0, ("over time", minute), lambda at=minute: at) == minute
    assert list(source._kept) == [("over time", 59)]
