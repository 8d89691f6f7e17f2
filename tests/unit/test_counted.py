"""Numbers with their nouns."""

from __future__ import annotations

from upnext.core.counted import counted


def test_one_is_singular() -> None:
    assert [counted(n, "job") for n in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
