"""Dead letters as a person handles them: retry and purge, some or all. Reading them is `upnext.engine.views.jobs`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upnext.core.keys import Keys
from upnext.engine.calls import admin, inspect
from upnext.engine.redis.scripts import Call
from upnext.engine.views.jobs import Transport

_LOOK = 2000


@dataclass(frozen=True, slots=True)
class Handled:
    """`done` were retried or purged; `unknown` were no dead letters."""

    done: list[str]
    unknown: list[str]


def ids_of(
    transport: Transport, keys: Keys, task: str | None = None, group: str | None = None, most: int | None = None
) -> list[str]:
    """All dead letters, or those of one task, or group of ends of it, newest first; the newest `most` of them."""
    found: list[str] = []
    rank: int | None = 0
    while rank is not None and (most is None or len(found) < most):
        limit = _LOOK if most is None else min(_LOOK, most - len(found))
        page = transport.run(
            inspect.page_jobs(keys, dead=True, task=task, rank=rank, look=_LOOK, limit=limit, group=group)
        )
        found += [job_id for job_id, _ in page.jobs]
        rank = page.next_rank
    return found


def retry(transport: Transport, keys: Keys, job_ids: Sequence[str]) -> Handled:
    """Queue them again under their own ids, attempts and crashes counted from the start.

    An idempotency key was given up when they died, and isn't taken back: another job may have it by now.
    """
    return _in_batches(transport, job_ids, lambda part: admin.retry_dead(keys, part))


def purge(transport: Transport, keys: Keys, job_ids: Sequence[str]) -> Handled:
    """Forget them for good."""
    return _in_batches(transport, job_ids, lambda part: admin.purge_dead(keys, part))


def _in_batches(
    transport: Transport, job_ids: Sequence[str], call: Callable[[Sequence[str]], Call[tuple[int, list[str]]]]
) -> Handled:
    unknown: list[str] = []
    start = 0
    while start < len(job_ids):
        looked_at, lost = transport.run(call(job_ids[start : start + admin.BATCH]))
        unknown += lost
        start += max(1, looked_at)
    left = set(unknown)
    return Handled([job_id for job_id in job_ids if job_id not in left], unknown)
