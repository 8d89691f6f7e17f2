"""The connection of a command to its queue."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from upnext.cli.options import flags

if TYPE_CHECKING:
    from upnext.engine.client.sync_client import SyncQueueClient


@contextmanager
def queue() -> Generator[SyncQueueClient]:
    """By the flags and the environment. Raises NoBrokerError, UsageError; what is run on it raises QueueError."""
    # redis-py takes most of the start-up time of a command that needs it: the others shall not pay for it.
    from upnext import config, project
    from upnext.engine.client.sync_client import SyncQueueClient

    asked = flags()
    where = config.redis_url(asked.redis_url, project.environment(os.environ), name=asked.name)
    broker = SyncQueueClient(
        where.url, config.namespace(asked.namespace, project.environment(os.environ)), name="upnext-cli"
    )
    try:
        yield broker
    finally:
        broker.close()
