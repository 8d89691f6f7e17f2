"""What makes two ends alike."""

from __future__ import annotations

import pytest

from upnext.core import end_groups
from upnext.core.end_groups import About

TRACE = 'Traceback (most recent call last):\n  File "{}", line {}, in {}\n    f()\nValueError: no'


def record(
    type_: str = "ValueError", path: str = "/srv/releases/7/shop/mail.py", line: int = 3, **more: str
) -> dict[str, object]:
    error = {"type": type_, "message": "m", "traceback": TRACE.format(path, line, "send")}
    return {"s": "failed", "e": error, **more}


def name(**changes: object) -> str:
    return end_groups.of_outcome(record(**changes))[0]  # pyright: ignore[reportArgumentType]


def test_the_same_code_of_two_releases_is_alike() -> None:
    assert name() == name(path="/srv/releases/8/shop/mail.py")
    assert len(name()) == end_groups.NAME_LETTERS


@pytest.mark.parametrize(
    "changes", [{"type_": "KeyError"}, {"line": 4}, {"path": "/srv/shop/other.py"}, {"x": "expired"}]
)
def test_another_error_place_or_cause_is_another_group(changes: dict[str, object]) -> None:
    assert name() != name(**changes)


def test_what_is_common() -> None:
    assert end_groups.of_outcome(record())[1] == About("ValueError", "shop/mail.py:3 in send", "", "m")
    assert end_groups.of_outcome({"s": "failed"})[1] == About("failed")


def test_the_last_frame_counts() -> None:
    assert end_groups.place_in(TRACE.format("a.py", 1, "f") + "\n" + TRACE.format("b.py", 2, "g")) == "b.py:2 in g"
    assert end_groups.place_in("no traceback") == ""
