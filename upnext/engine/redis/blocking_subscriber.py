"""A blocking waiter's subscription to its own channel, made anew wherever the broker is by then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import redis
import redis.exceptions as theirs

from upnext.engine.redis.places import Node
from upnext.engine.redis.reconnecting import REDIRECTS
from upnext.engine.redis.replies import MovedError
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, QueueError

CONFIRM_S = 5.0
"""A subscription that is not confirmed within this is given up."""


class Ear:
    """Belongs to one thread. `pool` gives the node that is known and connections to it; `failed` reads an error of redis-py, acts on what
    it says about where to go, and returns it as one of ours."""

    def __init__(
        self,
        channel: str,
        pool: Callable[[], tuple[Node | None, redis.ConnectionPool]],
        failed: Callable[[Exception, Node | None], QueueError],
    ) -> None:
        self._channel, self._pool, self._failed = channel, pool, failed
        self._subscription: Any = None
        self._node: Node | None = None

    def open(self) -> None:
        """Return when the subscription stands. Raises BrokerUnavailableError or BrokerRefusedError."""
        for _ in range(REDIRECTS):
            self.close()
            self._node, pool = self._pool()
            self._subscription = cast("Any", redis.Redis(connection_pool=pool)).pubsub()
            try:
                self._subscription.ssubscribe(self._channel)
                if self._subscription.get_message(timeout=CONFIRM_S) is not None:
                    return
                error: QueueError = BrokerUnavailableError(f"the subscription was not confirmed within {CONFIRM_S:g} s")
            except (theirs.RedisError, OSError) as caught:
                error = self._failed(caught, self._node)
            if not isinstance(error, MovedError):
                self.close()
                raise error
        self.close()
        raise BrokerUnavailableError("the cluster keeps redirecting")

    def next_message(self, left_s: float) -> bytes | None:
        """What is published within `left_s`. None: nothing, or something may have been missed; reread the truth."""
        until = time.monotonic() + left_s
        try:
            if self._subscription is not None:
                message: dict[str, Any] | None = self._subscription.get_message(timeout=left_s)
                if message is None:
                    return None
                if message["type"] == "smessage":
                    return message["data"]
        except (theirs.RedisError, OSError) as caught:
            if isinstance(error := self._failed(caught, self._node), BrokerRefusedError):
                raise error from None
        time.sleep(max(0.0, min(until - time.monotonic(), 0.1)))
        try:  # it is cut, or its slot has moved to another node
            self.open()
        except BrokerRefusedError:
            raise
        except BrokerUnavailableError:
            self.close()
        return None

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
