"""Is this broker one that we can trust jobs to?"""

from __future__ import annotations

from upnext.core.keys import Keys
from upnext.engine.redis.reconnecting import Link
from upnext.errors import BrokerRefusedError


async def check_broker(link: Link, keys: Keys) -> str:
    """-> the server's life: another one after each of its starts. Raises BrokerRefusedError for one that is too old or may evict keys."""
    await link.command("EXISTS", keys.epoch)  # in a cluster: go to the node that has our slot
    info = _parsed(await link.command("INFO"))
    valkey = info.get("valkey_version")
    version = valkey or info.get("redis_version", "0")
    major, minor = (int(part) for part in [*version.split("."), "0"][:2])
    if (major, minor) < ((7, 2) if valkey else (7, 0)):
        raise BrokerRefusedError(
            f"the broker is {'Valkey' if valkey else 'Redis'} {version}: Redis 7.0 or Valkey 7.2 is needed"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise BrokerRefusedError(
            f"the broker may evict jobs (maxmemory-policy {policy}): set it to noeviction (CONFIG SET maxmemory-policy noeviction)"
        )
    return info.get("run_id", "")


async def server_life(link: Link) -> str:
    """As `check_broker` says."""
    return _parsed(await link.command("INFO", "server")).get("run_id", "")


def _parsed(info: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
