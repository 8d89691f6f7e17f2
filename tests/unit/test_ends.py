"""What is reported of a failed attempt."""

from __future__ import annotations

import pytest

from upnext.core.outcome import ErrorInfo
from upnext.engine.worker.failures import HEADLINE_CAP_BYTES, error_info, headline
from upnext.errors import InvalidArgumentsError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ErrorInfo("ValueError", "no\nsecond line", "Traceback"), "ValueError: no"),
        (ErrorInfo("ValueError", "\n  \n"), "ValueError"),
        (ErrorInfo("KeyError", "  'a'  "), "KeyError: 'a'"),
        (ErrorInfo("E", "\x1b[2Jgone\udcff"), "E: \ufffd[2Jgone\ufffd"),
        (
            error_info(InvalidArgumentsError("argument 'pin' doesn't fit, got '1234'")),
            "upnext.errors.InvalidArgumentsError",
        ),
    ],
)
def test_a_headline_is_the_type_and_one_line(error: ErrorInfo, line: str) -> None:
    assert headline(error) == line


@pytest.mark.parametrize("message", ["x" * 1000, "€" * 1000, "x" + "€" * 1000, "xx" + "€" * 1000])
def test_a_headline_is_bounded_in_bytes(message: str) -> None:
    line = headline(ErrorInfo("ValueError", message))
    assert HEADLINE_CAP_BYTES - 4 < len(line.encode()) <= HEADLINE_CAP_BYTES
    assert line.endswith("…")
