"""How long attempts took: of a busy task one in a while is looked at, for all that ended; a rare task's is never passed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from upnext.core.outcome import JobStatus
from upnext.core.series import bucket
from upnext.engine.calls.worker import Finish
from upnext.engine.worker.times import TimesKept


class Kept(TimesKept):
    """Without a broker and a timer."""

    def __init__(self) -> None:
        unused: Any = SimpleNamespace(server_offset_s=0.0)
        super().__init__(unused, unused, unused)
        self._timer = unused

    def counts(self, task: str) -> int:
        return sum(self._noted[task].runs.values())


def end(task: str, ended_ms: int, run_ms: int = 5) -> Finish:
    begun_ms = ended_ms - run_ms
    one = Finish(task, "n", b"%d-0" % (begun_ms - 1), JobStatus.DONE, b"{}")
    one.ran = (begun_ms, ended_ms)
    return one


def test_all_ends_have_their_weight() -> None:
    kept = Kept()
    for now in range(1_000, 2_000, 2):
        kept.note([end("busy", now)], 10)
    assert 4_900 <= kept.counts("busy") <= 5_000


def test_a_rare_task_among_a_busy_one_is_looked_at() -> None:
    kept = Kept()
    for now in range(1_000, 3_000):
        ends = [end("busy", now)]
        kept.note([*ends, end("rare", now, 900)] if now % 500 == 0 else ends, 10)
    assert kept.counts("rare") >= 4
    assert max(kept._noted["rare"].runs) > max(kept._noted["busy"].runs)


def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    kept = Kept()
    kept.note([end("busy", 10_000_000)], 1)
    kept.note([end("busy", 5_000_000)], 1)
    assert kept.counts("busy") == 2


def test_what_did_not_run_is_passed_over() -> None:
    kept = Kept()
    kept.note([Finish("busy", "n", b"1-0", JobStatus.CANCELLED, b"{}")], 1)
    assert kept._noted == {}


def test_the_outcome_of_a_plain_job_says_it() -> None:
    kept = Kept()
    tail = b'"b":1000,"f":4000,"w":"consumer-1"}'
    for outcome in (b'{"s":"done",' + tail, b'{"s":"done","v":{"b":1,"f":2,"w":"x"},' + tail):
        one = Finish(f"t{len(outcome)}", "n", b"999-0", JobStatus.DONE, outcome)
        kept.note([one], 1)
        assert kept._noted[one.task].runs == {bucket(3.0): 1}
