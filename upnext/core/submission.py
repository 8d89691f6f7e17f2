"""One call on its way to the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upnext.core.lanes import Lane
from upnext.errors import UsageError


@dataclass(slots=True)
class Submission:
    """What a producer hands to the engine. `payload` is the encoded arguments.

    `delay_s` counts from the server's now, `at_us` is Unix microseconds.
    `queue_ttl_s`: the job expires unless it starts for the first time within so long of becoming due.
    `idempotency_ttl_s` bounds how long a key can be held. `replace`: the job takes the place of the one that holds its key.
    `own`: what this job has in place of its task's options, and its labels (`upnext.core.own_options`).
    """

    task: str
    payload: bytes
    priority: str = "normal"
    delay_s: float | None = None
    at_us: int | None = None
    queue_ttl_s: float | None = None
    parent_id: str | None = None
    root_id: str | None = None
    idempotency_key: str | None = None
    idempotency_ttl_s: float = 86400.0
    limited: bool = False
    trace: str | None = None
    own: dict[str, Any] | None = None
    replace: bool = False

    @property
    def lane(self) -> str:
        return Lane.HIGH if self.priority == "high" else Lane.NORMAL


def checked_key(key: object) -> str:
    """Raises UsageError unless it can be an idempotency key: 1 to 512 characters."""
    if not isinstance(key, str) or not 0 < len(key) <= 512:
        raise UsageError(f"an idempotency key is text of 1 to 512 characters, not {key!r:.80}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UsageError(f"an idempotency key is Unicode text, not {key!r:.80}") from None
    return key
