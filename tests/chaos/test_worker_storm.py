"""Workers, the scheduler and the template are killed at random under load. A ledger outside of Redis says what was lost or ran twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

import pytest

from tests.e2e.reloading import Load, all_done, ledger, make
from tests.support.waiting import wait_until

SECONDS = float(os.environ.get("UPNEXT_TEST_STORM_S", "6"))


EARLY_MOST = 4
"""Fewer than what is a crash loop at three workers: more than nine in a minute. Who looked old may have been young, too."""
at_random_instant = threading.Event().wait
"""Nothing is waited for: the moment is what the seed chooses."""


@pytest.mark.timeout(240 + 2 * SECONDS)
@pytest.mark.parametrize("seed", [int(os.environ.get("UPNEXT_TEST_SEED", "1"))])
def test_a_storm_of_kills_loses_nothing_and_repeats_only_what_was_interrupted(seed: int) -> None:
    """UPNEXT_TEST_STORM_S=60 for the whole measure."""
    rng = random.Random(seed)
    kills = early = 0
    with make(3) as daemon:
        with Load(daemon, per_s=100, seconds=0.02) as load:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                at_random_instant(rng.uniform(0.05, 0.4))
                children = [c for c in daemon.status()["children"] if c["pid"] is not None and c["role"] != "broker"]
                if not children:
                    # The template went too: nobody is there until the next one has imported the service.
                    continue
                workers = [c for c in children if c["role"] == "worker"]
                victim = rng.choice(children if rng.random() < 0.2 else workers or children)
                # Children that die before they did anything are a crash loop, which ends the daemon: only some of them may.
                young = victim["role"] != "template" and not victim["jobs_done"]
                if young and early == EARLY_MOST:
                    continue
                early += young
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim["pid"], signal.SIGKILL)
                    kills += 1
        wait_until(lambda: all_done(daemon, load), 40, f"seed {seed}: every one of {load.submitted} jobs to end")
        starts, ends = ledger(daemon)
        interrupted = sum(starts.values()) - sum(ends.values())
        ended_twice = sum(count > 1 for count in ends.values())
        print(
            f"seed {seed}: {kills} kills, {load.submitted} jobs, 0 lost, {interrupted} interrupted and run again,"
            f" {ended_twice} repeated after their end"
        )
        assert load.errors == []
        # Four run at once in each: no kill interrupts more. An end may not have been recorded yet when the kill came.
        assert interrupted <= 4 * kills
        assert ended_twice <= 4 * kills
        wait_until(lambda: len(daemon.worker_pids()) == 3, 20)
