"""When a lease has ended: by its value and the observer's monotonic clock, whatever other clocks do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core.leases import Sightings, renewed_within

TTL_S, BEAT_S, GAP_S = 10.0, 2.5, 5.0
NEW = Sightings(TTL_S, GAP_S)


def looks(*rows: tuple[float, dict[str, str]], seen: Sightings = NEW) -> Sightings:
    for at_s, values in rows:
        seen = seen.after(values, at_s, at_s)
    return seen


def every_beat(until_s: float, values: dict[str, str], seen: Sightings = NEW, since_s: float = 0.0) -> Sightings:
    at_s = since_s
    while at_s <= until_s:
        seen = looks((at_s, values), seen=seen)
        at_s += BEAT_S
    return seen


def test_one_that_stays_unchanged_for_its_time_has_ended() -> None:
    assert every_beat(9.9, {"a": "5"}).ended() == {}
    assert every_beat(10.0, {"a": "5"}).ended() == {"a": "5"}


def test_one_that_is_renewed_has_not_whatever_its_value_is() -> None:
    seen = NEW
    for beat, value in enumerate(["100", "50", "9999999", "-3", "0", "7", "8"]):
        seen = looks((beat * BEAT_S, {"a": value}), seen=seen)
        assert seen.ended() == {}


def test_one_that_has_gone_is_forgotten() -> None:
    seen = looks((12.5, {}), seen=every_beat(10, {"a": "5"}))
    assert seen.ended() == {}
    assert looks((15, {"a": "5"}), seen=seen).ended() == {}


def test_a_pause_gives_everybody_a_whole_time_again() -> None:
    seen = looks((13.1, {"a": "5"}), seen=every_beat(7.5, {"a": "5"}))
    assert seen.ended() == {}
    assert every_beat(23.0, {"a": "5"}, seen, 15.6).ended() == {}
    assert every_beat(23.2, {"a": "5"}, seen, 13.2).ended() == {"a": "5"}


def test_an_answer_that_came_late_is_a_pause() -> None:
    seen = every_beat(7.5, {"a": "5"}).after({"a": "5"}, 10.0, 30.0)
    assert seen.ended() == {}


def test_the_time_begins_when_the_answer_is_here_and_is_over_when_the_question_is_asked() -> None:
    seen = NEW.after({"a": "5"}, 0.0, 1.0)
    seen = every_beat(8.5, {"a": "5"}, seen, 1.0)
    assert seen.after({"a": "5"}, 10.9, 11.5).ended() == {}
    assert seen.after({"a": "5"}, 11.0, 11.5).ended() == {"a": "5"}


def test_a_new_connection_has_seen_nothing() -> None:
    seen = every_beat(10.0, {"a": "5"}).forgotten()
    assert seen.ended() == {}
    assert seen.next_end_s() is None


def test_those_that_ended_first_come_first() -> None:
    seen = every_beat(5.0, {"b": "1"})
    seen = every_beat(20.0, {"a": "1", "b": "1"}, seen, 5.1)
    assert list(seen.ended()) == ["b", "a"]


def test_the_next_end_is_the_first_that_has_not_come() -> None:
    seen = looks((0.0, {"a": "1"}), (2.5, {"a": "1", "b": "1"}), (5.0, {"a": "1", "b": "1"}))
    assert seen.next_end_s() == 10.0
    assert every_beat(10.0, {"a": "1", "b": "1"}, seen, 7.5).next_end_s() == 12.5
    assert NEW.next_end_s() is None


STEPS_MS = st.sampled_from([-3_600_000, -15_000, 0, 15_000, 3_600_000])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.dictionaries(st.integers(0, 40), STEPS_MS, max_size=6),
    pauses=st.dictionaries(st.integers(0, 40), st.floats(5.1, 120.0), max_size=4),
    dies_at=st.integers(3, 30),
)
def test_the_living_are_never_taken_for_dead_and_the_dead_are_within_a_bound(
    seed: int, steps: dict[int, int], pauses: dict[int, float], dies_at: int
) -> None:
    """Two daemons beat. The server's clock is stepped, both are paused now and then (with the machine), or the observer alone."""
    rng = random.Random(seed)
    now_s, clock_ms = 1000.0, 1_763_762_400_000
    seen, living, dead = NEW, "", ""
    since_s: float | None = None
    for beat in range(60):
        clock_ms += steps.get(beat, 0)
        pause_s = pauses.get(beat, 0.0)
        now_s += BEAT_S + pause_s
        clock_ms += int((BEAT_S + pause_s) * 1000)
        # After a pause, either may be the first to beat again; a living one follows within a beat.
        if not pause_s or rng.random() < 0.5:
            living = str(clock_ms + 10_000)
        if beat < dies_at:
            dead = str(clock_ms + 10_000)
            since_s = None
        elif since_s is None or pause_s:
            since_s = now_s
        seen = seen.after({"living": living, "dead": dead}, now_s, now_s + rng.random() * 0.2)
        ended = seen.ended()
        assert "living" not in ended
        if since_s is None:
            assert "dead" not in ended
        elif now_s - since_s > TTL_S + 2 * BEAT_S:
            assert ended == {"dead": dead}


@pytest.mark.parametrize("step_s", [-3600, -15, 15, 3600])
def test_a_step_of_the_clock_neither_ends_nor_prolongs(step_s: int) -> None:
    seen = every_beat(5.0, {"living": "1000", "dead": "1000"})
    at_s, found_s = 7.5, None
    while found_s is None:
        seen = looks((at_s, {"living": str(1000 + step_s * 1000 + int(at_s)), "dead": "1000"}), seen=seen)
        found_s = at_s if "dead" in seen.ended() else None
        assert "living" not in seen.ended()
        at_s += BEAT_S
    assert found_s == 10.0


def test_when_a_lease_was_renewed_follows_from_its_end() -> None:
    assert renewed_within(1_010_000, 1_000_500, 10_000, 0.6)
    assert not renewed_within(1_010_000, 1_000_500, 10_000, 0.5)
    assert renewed_within(1_010_000, 900_000, 10_000, 0.5), (
        "a clock that was set back is given the benefit of the doubt"
    )
