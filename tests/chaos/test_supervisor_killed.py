"""The supervisor is killed at random points of forks: nothing may be left, and a new start is not hindered."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from tests.e2e.reloading import make
from tests.support.waiting import PATIENCE, wait_until

TIMES = int(os.environ.get("UPNEXT_TEST_KILLS", "12"))
BAR_S = 0.5


at_random_instant = threading.Event().wait
"""Nothing is waited for: the moment is what the seed chooses."""


@pytest.mark.timeout(120 + 20 * TIMES)
@pytest.mark.parametrize("seed", [int(os.environ.get("UPNEXT_TEST_SEED", "1"))])
def test_a_supervisor_killed_at_any_point_of_a_fork_leaves_nobody(seed: int) -> None:
    """UPNEXT_TEST_KILLS=200 for the whole measure. Every kind of moment: at boot, amid forks after kills, amid a scale, amid a reload."""
    rng = random.Random(seed)
    daemon = make(3)
    slowest_s = 0.0
    try:
        for number in range(TIMES):
            kind = ("boot", "kill", "scale", "reload")[number % 4]
            if kind == "boot":
                daemon.launch()
                # The import takes some 0.3 s, the forks follow.
                at_random_instant(rng.uniform(0.0, 1.5))
            else:
                daemon.start()
                if kind == "kill":
                    for pid in daemon.worker_pids().values():
                        os.kill(pid, signal.SIGKILL)
                else:
                    daemon.rpc(kind, **({"workers": 8} if kind == "scale" else {}))
                    if kind == "reload":
                        at_random_instant(rng.uniform(0.0, 1.0))
                # A double fork takes 1 to 5 ms.
                at_random_instant(rng.uniform(0.0, 0.03))
            daemon.kill()
            begun = time.monotonic()
            # The supervisor ends the broker by TERM, so that it writes out what it has: it is no child that runs jobs.
            wait_until(
                lambda: not jobs_could_run(daemon.left()),
                5,
                f"seed {seed}, kill {number} ({kind}): orphans {daemon.left()}",
            )
            slowest_s = max(slowest_s, time.monotonic() - begun)
            daemon.assert_nothing_left()
        print(f"{TIMES} kills, 0 orphans, slowest end {slowest_s * 1000:.0f} ms")
        assert slowest_s < 2 * BAR_S * PATIENCE
        daemon.start()
        assert daemon.stop() == 0
    finally:
        daemon.close()


def jobs_could_run(left: dict[int, str]) -> list[str]:
    return [
        command
        for command in left.values()
        if "upnextd" in command and "valkey" not in command and "redis-server" not in command
    ]
