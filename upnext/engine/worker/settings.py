"""What a runtime is configured with: plain values, read once at the edge."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upnext.core.suspects import OneAtATime, Suspects
from upnext.engine.secrets import Sources


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """`generation_ms` orders definitions: the newest code's win. `boot_timeout_s` None waits for a broker that is away."""

    redis_url: str
    namespace: str = "default"
    daemon_id: str = "local"
    host_name: str = field(default_factory=socket.gethostname)
    generation_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    boot_timeout_s: float | None = 5.0
    provisional: bool = False
    """The code is on trial: see `lease.Registration`. Its scheduler defines it once it is committed."""
    returns: bool = True
    """The daemon has the same id after a restart."""
    passing: bool = False
    """The service is being developed: what it registers goes when it stops."""
    suspects: Suspects = Suspects.SHARE
    one_at_a_time: OneAtATime | None = None
    """With Suspects.ONLY, of all runtimes of the process: at most one of them runs a suspect."""
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where this process stands, for people: the daemon's name, slot, generation, version. Part of the consumer's record."""
    secrets: Sources = field(default_factory=lambda: Sources.of(os.environ))
    log_setup: str | None = None
    """`module:function` that each pool process calls first, with a function that tells the id of the job that runs (None: none does)."""
