"""A message that is too long for one packet, in pieces: `split` on one side, `Joiner` on the other.

A message that fits goes as it is; it is JSON, and begins with a brace. Pieces begin with a mark, the last of them with another.
"""

from __future__ import annotations

from collections.abc import Iterable

PIECE_BYTES = 32 << 10
"""Well below what a socket takes for one packet."""
MESSAGE_CAP_BYTES = 64 << 20
_MORE, _LAST = b"+", b"."


def split(raw: bytes) -> Iterable[bytes]:
    """The packets of a message."""
    if len(raw) <= PIECE_BYTES:
        yield raw
        return
    for start in range(0, len(raw), PIECE_BYTES):
        mark = _MORE if start + PIECE_BYTES < len(raw) else _LAST
        yield mark + raw[start : start + PIECE_BYTES]


class Joiner:
    """Takes packets."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def take(self, packet: bytes) -> bytes | None:
        """The message that this packet ends; None: more is to come. Raises ValueError beyond the cap."""
        mark = packet[:1]
        if mark not in (_MORE, _LAST):
            return packet
        self._begun += packet[1:]
        if len(self._begun) > MESSAGE_CAP_BYTES:
            raise ValueError(f"a message of more than {MESSAGE_CAP_BYTES} bytes")
        if mark == _MORE:
            return None
        whole = bytes(self._begun)
        self._begun.clear()
        return whole
