"""What a namespace keeps once its jobs have ended: only what `upnext.core.keys` lists as permanent, or what has a TTL."""

from __future__ import annotations

from typing import Any

import redis

from upnext.core.keys import GROUP, Keys

PERMANENT = {
    "epoch", "schema", "seq", "tasks", "limits", "gcra", "paused", "consumers", "leases", "leader", "crons", "cursors", "fired",
    "stats", "ends", "dead", "dead:jobs", "dead:bytes", "large", "seen", "announcers", "announced", "lapsed", "limits:set",
    "groups", "groups:ids",
    "graves",  # a sweep goes on for seconds after the jobs are back; test_scheduler.py sees that it ends
}  # fmt: skip


def leaks(client: redis.Redis, keys: Keys) -> list[str]:
    """One line for each key that outlives its job, and for each stream with an entry left. Call it when no job is queued or runs."""
    found: list[str] = []
    raw_keys: list[bytes] = list(client.scan_iter(match=f"{keys.prefix}*", count=1000))
    for raw in sorted(raw_keys):
        name = raw.decode().removeprefix(keys.prefix)
        if name.startswith("s:"):
            found += _left_in(client, raw, name)
        elif (
            name not in PERMANENT and not name.startswith(("event:", "done:", "series:last:")) and client.ttl(raw) == -1
        ):
            found.append(f"{name} has no TTL: {_peek(client, raw)!r}")
    return found


def _left_in(client: redis.Redis, stream: bytes, name: str) -> list[str]:
    found: list[str] = []
    if left := client.xrange(stream, count=3):
        found.append(f"{name} still holds {left!r}")
    groups: list[dict[str, Any]] = client.xinfo_groups(stream)
    ours = (group for group in groups if group["name"] == GROUP.encode() and group["pending"])
    return found + [f"{name} has {group['pending']} pending" for group in ours]


def _peek(client: redis.Redis, key: bytes) -> Any:
    match client.type(key):
        case b"hash":
            return client.hgetall(key)
        case b"zset":
            return client.zrange(key, 0, 5, withscores=True)
        case b"string":
            return client.get(key)
        case kind:
            return kind
