"""The leader is killed at the tick, or stops for longer than its lock: each tick of every second runs exactly once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.servers import Server
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.keys import Keys

SERVICE = """
    import os
    import upnext
    from upnext.engine.attempt import CURRENT

    worker = upnext.Worker("clock", concurrency=4)

    @worker.cron("* * * * * *")
    async def every_second() -> None:
        attempt = CURRENT.get()
        queued_ms = int(attempt.entry_id.partition(b"-")[0])
        with open(os.environ["TEST_LOG"], "a") as log:
            log.write(f"{attempt.meta.tick_ms} {queued_ms}\\n")
"""


class Clock:
    """Two daemons of one service; the ticks that ran, and how late they were queued."""

    def __init__(self, server: Server, daemon: Callable[..., Daemon], log: Path) -> None:
        self._log = log
        self.server = server
        self.daemons = [
            daemon(SERVICE, redis_url=server.tcp_url, workers=1, env={"TEST_LOG": str(log)}) for _ in range(2)
        ]

    def runs(self) -> list[tuple[int, int]]:
        """(tick ms, ms it was late)"""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(int(tick), int(queued) - int(tick)) for tick, queued in map(str.split, lines)]

    def leader(self) -> Daemon | None:
        return next((one for one in self.daemons if one.status()["scheduler"]["leader"]), None)

    def wait_for_ticks(self, more: int) -> None:
        wanted = len(self.runs()) + more
        wait_until(lambda: len(self.runs()) >= wanted, 25, f"{more} more ticks")

    def check(self) -> None:
        ticks = Counter(tick for tick, _ in self.runs())
        twice = [tick for tick, count in ticks.items() if count > 1]
        assert not twice
        whole = range(min(ticks), max(ticks) + 1000, 1000)
        assert [tick for tick in whole if tick not in ticks] == [], "ticks that never ran"

    def just_before_a_tick(self) -> None:
        """So that what follows falls on the tick, as near as can be."""
        _, us = self.server.cli("TIME")
        threading.Event().wait((995_000 - us) % 1_000_000 / 1e6)


def test_each_tick_runs_once_whatever_becomes_of_the_leader(
    own_server: Server, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    clock = Clock(own_server, daemon, tmp_path / "log")
    clock.wait_for_ticks(5)
    calm = sorted(late for _, late in clock.runs())
    print(f"calm: late by {calm[len(calm) // 2]} ms (median), {calm[-1]} ms at most")

    # its scheduler is killed at the tick, three times: a successor of the same daemon leads at once
    for _ in range(3):
        leader = wait_until(clock.leader, 10, "a leader")
        assert leader is not None
        scheduler = leader.child("scheduler")["pid"]
        clock.just_before_a_tick()
        os.kill(scheduler, signal.SIGKILL)
        before = len(clock.runs())
        clock.wait_for_ticks(3)
        print(f"scheduler killed: late by {max(late for _, late in clock.runs()[before:])} ms at most")
    clock.check()

    # the whole host of the leader stops for longer than the lock, and comes back
    leader = wait_until(clock.leader, 10, "a leader")
    assert leader is not None
    frozen = list(leader.left())
    before = len(clock.runs())
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    wait_until(
        lambda: time.monotonic() - begun > 8 and len(clock.runs()) > before + 4, 20, "the other to have taken over"
    )
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    clock.wait_for_ticks(4)
    print(f"host stopped for 8 s: late by {max(late for _, late in clock.runs()[before:])} ms at most")
    clock.check()

    # the whole daemon of the leader is killed at the tick
    leader = wait_until(clock.leader, 10, "a leader")
    assert leader is not None
    before = len(clock.runs())
    clock.just_before_a_tick()
    leader.kill()
    clock.wait_for_ticks(12)
    worst = max(late for _, late in clock.runs()[before:])
    print(f"daemon killed: late by {worst} ms at most")
    # a job that the dead host had just been given comes back when its lease ends
    wait_until(lambda: own_server.cli("ZCARD", Keys().leases) == 1, 20, "the dead consumer's lease to end")
    clock.wait_for_ticks(2)
    clock.check()
    assert worst < 12_000 * PATIENCE, "the lock's 6 s, and two beats"
