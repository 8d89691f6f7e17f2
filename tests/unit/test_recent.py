"""Recent: bounded by age, by count and by bytes; the oldest goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upnext.core.recent import Recent


def test_what_is_older_goes() -> None:
    recent: Recent[str] = Recent(60, 100, 1000)
    recent.add("a", 1, 1, 0.0)
    recent.add("b", 1, 1, 30.0)
    assert recent.batches(59.0) == ["a", "b"]
    assert recent.batches(61.0) == ["b"]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 400)), max_size=40))
def test_it_keeps_the_newest_that_fit(sizes: list[tuple[int, int]]) -> None:
    recent: Recent[int] = Recent(60, 100, 1000)
    for number, (count, size) in enumerate(sizes):
        recent.add(number, count, size, float(number))
    kept = recent.batches(float(len(sizes)))
    assert kept == list(range(len(sizes)))[len(sizes) - len(kept) :]
    assert sum(sizes[number][0] for number in kept) <= 100
    assert sum(sizes[number][1] for number in kept) <= 1000
    if len(kept) < len(sizes):
        one_more = [*kept, len(sizes) - len(kept) - 1]
        fits = (
            sum(sizes[number][0] for number in one_more) <= 100 and sum(sizes[number][1] for number in one_more) <= 1000
        )
        assert not fits
