"""Operators, signals, reloads and kills in an order that a seed decides, beside a load; `scripts/chaos/daemon` plays more of them."""

from __future__ import annotations

import os

import pytest

from tests.support.daemon_fuzz import Life

SECONDS = float(os.environ.get("UPNEXT_TEST_STORM_S", "6"))


@pytest.mark.timeout(420 + 2 * SECONDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_disturbed_daemon_loses_nothing_and_comes_to_rest(seed: int) -> None:
    """UPNEXT_TEST_STORM_S=60 for the whole measure."""
    report = Life(seed, SECONDS).run()
    print(report)
    assert report.jobs > 0
