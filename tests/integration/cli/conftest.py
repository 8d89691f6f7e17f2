"""Fixtures of the command line tests: a worker by hand, and `upnext` in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.inspect.bench import Bench
from upnext.cli import main
from upnext.engine.client.sync_client import SyncQueueClient


@pytest.fixture
def bench(redis_url: str, namespace: str) -> Iterator[Bench]:
    broker = SyncQueueClient(redis_url, namespace)
    yield Bench(broker)
    broker.close()


class Cli:
    """Runs `upnext` in this process, on the namespace of the test. `out` and `err` are what the last run printed."""

    def __init__(self, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._flags = flags
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capsys.readouterr()
        code = main.run([*self._flags, *arguments])
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    def json(self, *arguments: str) -> Any:
        """What it printed as JSON; it must have ended well."""
        code = self(*arguments, "--json")
        assert code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def cli(redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(["--redis-url", redis_url, "--namespace", namespace], capsys)
