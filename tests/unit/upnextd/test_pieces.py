"""Messages in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnextd.shared import pieces
from upnextd.shared.pieces import PIECE_BYTES, Joiner, split


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=4), st.sampled_from([b"+", b".", b"x"]))
def test_what_was_split_is_joined(lengths: list[int], filling: bytes) -> None:
    joiner = Joiner()
    for length in lengths:
        message = b"{" + filling * length + b"}"
        packets = list(split(message))
        assert all(len(packet) <= PIECE_BYTES + 1 for packet in packets)
        assert [joiner.take(packet) for packet in packets] == [None] * (len(packets) - 1) + [message]


def test_a_message_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MESSAGE_CAP_BYTES", 3 * PIECE_BYTES)
    joiner = Joiner()
    for _ in range(3):
        assert joiner.take(b"+" + b"x" * PIECE_BYTES) is None
    with pytest.raises(ValueError, match="more than"):
        joiner.take(b"+x")
