"""A seed is the whole of a life, and a life that fails can be shown."""

from __future__ import annotations

import pytest

from tests.support.sim_fleet import Run, play, report, script, shrink


def test_a_seed_is_replayed_to_the_letter() -> None:
    for seed in range(20):
        assert play(seed).lines == play(seed).lines
    assert play(3).lines != play(4).lines


def test_a_failure_is_shown_with_the_steps_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is the check itself, so no step matters, and all are dropped."""
    monkeypatch.setattr(Run, "_unsettled", lambda self: "it never does")
    seed = next(seed for seed in range(100) if script(seed).steps and play(seed).failure is not None)
    shown = report(seed)
    assert shown is not None
    assert shown.startswith(f"seed {seed}: it never does after ")
    assert "trace:" in shown
    assert shrink(seed) == frozenset(range(len(script(seed).steps)))
