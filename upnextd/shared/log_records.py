"""A child's `logging` on its way to the supervisor's log: one JSON object a line, marked, among whatever else the child prints.

The mark is ASCII's record separator, as in JSON text sequences (RFC 7464). What a user's own logging configuration writes is no record:
it arrives as printed lines do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

MARK = "\x1e"
LINE_CAP_BYTES = 15 << 10
"""Below what a reader takes for one line."""
_TEXT_CAP = 6000


@dataclass(frozen=True, slots=True)
class Record:
    """What was logged. `job_id` is the job that was running where it was logged."""

    level: str
    logger: str
    message: str
    job_id: str | None = None


def parse(line: str) -> Record | None:
    """None for a line that is no record."""
    if not line.startswith(MARK):
        return None
    try:
        fields = orjson.loads(line[1:])
        return Record(str(fields["l"]), str(fields["n"]), str(fields["m"]), fields.get("j"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def encode(record: Record) -> bytes:
    """-> a line with its newline, at most LINE_CAP_BYTES: the middle of a longer message is left out."""
    keep = _TEXT_CAP
    while True:
        fields: dict[str, Any] = {"l": record.level, "n": record.logger, "m": _bounded(record.message, keep)}
        if record.job_id is not None:
            fields["j"] = record.job_id
        line = MARK.encode() + orjson.dumps(fields) + b"\n"
        if len(line) <= LINE_CAP_BYTES or keep < 16:
            return line
        keep //= 2


class RecordHandler(logging.Handler):
    """Writes records to a descriptor. `job_id` tells which job runs in the calling context."""

    def __init__(self, fd: int, job_id: Callable[[], str | None]) -> None:
        super().__init__()
        self._fd = fd
        self._job_id = job_id
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = Record(record.levelname.lower(), record.name, self.format(record), self._job_id())
            os.write(self._fd, encode(fields))
        except Exception:  # noqa: BLE001 - logging's own boundary: a bad format string must not fail the job
            self.handleError(record)


def install(job_id: Callable[[], str | None]) -> None:
    """What this process logs is on its way from now on, unless the service has a configuration of its own."""
    if not logging.root.handlers:
        logging.root.addHandler(RecordHandler(2, job_id))
        logging.root.setLevel(logging.INFO)


def _bounded(text: str, keep: int) -> str:
    # Lone surrogates don't exist in JSON.
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= 2 * keep:
        return text
    return f"{text[:keep]}\n… {len(text) - 2 * keep} characters left out …\n{text[-keep:]}"
