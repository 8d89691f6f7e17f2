"""How long the broker is waited for at the start."""

from __future__ import annotations

import pytest

from upnextd.rules import boot, plan, slots


@pytest.mark.parametrize(
    ("limit_s", "waited_s", "booted", "first", "tries_s"),
    [
        (5.0, 0.0, False, True, 5.0),
        (5.0, 4.8, False, True, 5.0),  # a slow fork takes nothing from the first try
        (5.0, 4.8, False, False, 1.0),
        (100.0, 0.0, False, True, boot.TRY_S),
        (100.0, 91.0, False, False, 9.0),
        (0.0, 0.0, False, True, boot.FIRST_TRY_S),
        (0.0, 9000.0, False, False, boot.TRY_S),
        (5.0, 9000.0, True, False, boot.TRY_S),
        (0.0, 9000.0, True, True, boot.TRY_S),
    ],
)
def test_a_try(limit_s: float, waited_s: float, booted: bool, first: bool, tries_s: float) -> None:
    assert boot.try_s(limit_s, waited_s, booted=booted, first=first) == pytest.approx(tries_s)


@pytest.mark.parametrize(
    ("limit_s", "waited_s", "goes_on"), [(5.0, 5.1, False), (5.0, 4.9, True), (0.0, 5.1, True), (0.0, 1e6, True)]
)
def test_after_a_try_in_vain(limit_s: float, waited_s: float, goes_on: bool) -> None:
    assert boot.goes_on(limit_s, waited_s) is goes_on


def test_a_try_ends_before_the_limit_of_a_start_and_each_asks_for_enough_time() -> None:
    assert slots.Limits().start_s > boot.TRY_S
    assert boot.TRY_S + plan.BACKOFF_MOST_S * (1 + plan.BACKOFF_JITTER) < boot.EXTENSION_S
