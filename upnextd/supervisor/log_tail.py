"""What the processes of a slot printed last: those of former lives, too. It is lost at an upgrade in place."""

from __future__ import annotations

from collections import deque
from typing import Any

from upnextd.shared import log_records

LINES = 40
LINE_CHARS = 1_000
"""A longer line is cut: a slot keeps so 40 KB at most."""


class LogTail:
    """The newest LINES lines. A line is read as a record of the logging only when it is long, or asked for."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, int | None, str]] = deque(maxlen=LINES)

    def add(self, at: str, pid: int | None, line: str) -> None:
        self._lines.append((at, pid, line if len(line) <= LINE_CHARS else _shown(line)[:LINE_CHARS]))

    def as_json(self) -> list[dict[str, Any]]:
        """Oldest first: `at` (ISO, UTC), `pid`, `text`."""
        return [{"at": at, "pid": pid, "text": _shown(line)} for at, pid, line in self._lines]


def _shown(line: str) -> str:
    record = log_records.parse(line)
    if record is None:
        return line
    return "".join(f"{part}: " for part in (record.level, record.logger) if part) + record.message
