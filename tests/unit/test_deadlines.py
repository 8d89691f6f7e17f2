"""The wheel gives each key once, when it is due, whatever was added and discarded before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upnext.core.deadlines import Deadlines

OPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "discard", "expired"]), st.integers(0, 5), st.integers(0, 20)), max_size=60
)


@given(OPS)
def test_it_behaves_like_a_dict_that_is_searched(ops: list[tuple[str, int, int]]) -> None:
    wheel, model = Deadlines[int](), dict[int, float]()
    for op, key, at in ops:
        if op == "add":
            wheel.add(key, at)
            model[key] = at
        elif op == "discard":
            wheel.discard(key)
            model.pop(key, None)
        else:
            due = [key for key, due_at in model.items() if due_at <= at]
            got = wheel.expired(at)
            assert sorted(got) == sorted(due)
            assert [model[key] for key in got] == sorted(model[key] for key in got)
            for gone in due:
                del model[gone]
        assert wheel.next_at() == min(model.values(), default=None)
        assert len(wheel) == len(model)
        assert all(key in wheel for key in model)


def test_keys_need_no_order_and_discarded_ones_take_no_room() -> None:
    wheel = Deadlines[object]()
    for _ in range(10_000):
        key = object()
        wheel.add(key, 5.0)
        wheel.discard(key)
    assert len(wheel._heap) < 100
    assert wheel.next_at() is None
    assert wheel.expired(9.0) == []
