"""What supersedes what: every cell of the table, by the rules of the contract."""

from __future__ import annotations

import pytest

from upnextd.rules.modes import OVERTAKEN, TABLE, Request, decide
from upnextd.rules.plan import WORKERS_CAP, Mode, signalled_workers

RANK = {mode: rank for rank, mode in enumerate((Mode.RUN, Mode.PAUSE, Mode.DRAIN, Mode.DRAIN_EXIT))} | {
    Mode.STOP: 4,
    Mode.STOP_NOW: 5,
}
ASKED_FOR = {
    Request.PAUSE: Mode.PAUSE,
    Request.TSTP: Mode.PAUSE,
    Request.DRAIN: Mode.DRAIN,
    Request.DRAIN_EXIT: Mode.DRAIN_EXIT,
    Request.STOP: Mode.STOP,
    Request.TERM: Mode.STOP,
    Request.STOP_NOW: Mode.STOP_NOW,
    Request.QUIT: Mode.STOP_NOW,
    Request.FAILED: Mode.STOP_NOW,
}
STOPS = (Mode.STOP, Mode.STOP_NOW)


def test_every_cell_is_there() -> None:
    assert set(TABLE) == set(Mode) == set(RANK) == set(OVERTAKEN)
    for mode, row in TABLE.items():
        assert set(row) == set(Request), mode


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("request_", Request)
def test_every_cell(mode: Mode, request_: Request) -> None:
    cell = decide(mode, request_)
    assert cell.to is _expected(mode, request_)
    assert (cell.refusal is not None) == _is_refused(mode, request_)


def _expected(mode: Mode, request: Request) -> Mode:
    if request in ASKED_FOR:
        return max(mode, ASKED_FOR[request], key=lambda one: RANK[one])
    match request:
        case Request.RESUME:
            return mode if mode in STOPS else Mode.RUN
        case Request.CONT:
            return Mode.RUN if mode is Mode.PAUSE else mode
        case Request.INT:
            return Mode.STOP_NOW if mode in STOPS else Mode.STOP
        case Request.DRAINED:
            return Mode.STOP if mode is Mode.DRAIN_EXIT else mode
        case _:
            return mode


def _is_refused(mode: Mode, request: Request) -> bool:
    if mode is Mode.DRAIN_EXIT:
        return request in (Request.RELOAD, Request.HUP)
    heard = (
        Request.STOP, Request.STOP_NOW, Request.TERM, Request.INT, Request.QUIT, Request.USR1, Request.DRAINED,
        Request.FAILED,
    )  # fmt: skip
    return mode in STOPS and request not in heard


@pytest.mark.parametrize(("workers", "by", "then"), [(3, -1, 2), (1, -1, 1), (0, -1, 0), (0, 1, 1), (1, 1, 2)])
def test_a_signal_leaves_the_last_worker(workers: int, by: int, then: int) -> None:
    assert signalled_workers(workers, by) == then


def test_a_signal_does_not_go_over_the_cap() -> None:
    assert signalled_workers(WORKERS_CAP, 1) == WORKERS_CAP
