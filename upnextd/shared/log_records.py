"""A child's `logging` on its way to the supervisor's log: one JSON object a line, marked, among whatever else the child prints.

The mark is ASCII's record separator, as in JSON text sequences (RFC 7464). A line that a job prints is a record, too, of no logger and no
level. What is printed outside of jobs, by other programs or to the descriptors themselves, arrives as it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

MARK = "\x1e"
LEVEL_VARIABLE = "UPNEXTD_LOG_LEVEL"
"""The daemon gives it to what it starts: a checked word in lower case."""
LINE_CAP_BYTES = 15 << 10
"""Below what a reader takes for one line."""
TEXT_CAP = 6000
_FIELD_CAP = 1000
_OF_LOGGING = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True, slots=True)
class Record:
    """What was logged. `job_id` is the job that was running where it was logged; `fields` is what `extra=` gave."""

    level: str
    logger: str
    message: str
    job_id: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


def parse(line: str) -> Record | None:
    """None for a line that is no record."""
    if not line.startswith(MARK):
        return None
    try:
        fields = orjson.loads(line[1:])
        return Record(str(fields["l"]), str(fields["n"]), str(fields["m"]), fields.get("j"), dict(fields.get("x", {})))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def encode(record: Record) -> bytes:
    """-> a line with its newline, at most LINE_CAP_BYTES: the middle of a longer message is left out."""
    keep = TEXT_CAP
    while True:
        fields: dict[str, Any] = {"l": record.level, "n": record.logger, "m": _bounded(record.message, keep)}
        if record.job_id is not None:
            fields["j"] = record.job_id
        if record.fields and keep > TEXT_CAP >> 4:
            fields["x"] = record.fields
        line = MARK.encode() + orjson.dumps(fields) + b"\n"
        if len(line) <= LINE_CAP_BYTES or keep < 16:
            return line
        keep //= 2


class RecordHandler(logging.Handler):
    """Writes records to a descriptor. `job_id` gives the job that runs in the calling context."""

    def __init__(self, fd: int, job_id: Callable[[], str | None]) -> None:
        super().__init__()
        self._fd = fd
        self._job_id = job_id
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = _extra(record)
            job_id = fields.pop("job_id", None) or self._job_id()
            entry = Record(record.levelname.lower(), record.name, self.format(record), job_id, fields)
            os.write(self._fd, encode(entry))
        except Exception:  # noqa: BLE001 - logging's own boundary: a bad format string must not fail the job
            self.handleError(record)


def install(job_id: Callable[[], str | None]) -> None:
    """What this process logs is on its way from now on, unless the service has a configuration of its own.

    LEVEL_VARIABLE is the least level; a logger with a level of its own keeps that.
    """
    if not logging.root.handlers:
        logging.root.addHandler(RecordHandler(2, job_id))
        logging.root.setLevel(os.environ.get(LEVEL_VARIABLE, "info").upper())


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What `extra=` gave: plain values as they are, others as text."""
    return {
        _bounded(name, _FIELD_CAP): value if _is_plain(value) else _bounded(str(value), _FIELD_CAP)
        for name, value in vars(record).items()
        if name not in _OF_LOGGING
    }


def _is_plain(value: Any) -> bool:
    """JSON here has integers of 64 bits."""
    return (
        value is None or isinstance(value, bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 64)
    )


def _bounded(text: str, keep: int) -> str:
    # Lone surrogates don't exist in JSON.
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= 2 * keep:
        return text
    return f"{text[:keep]}\n… {len(text) - 2 * keep} characters left out …\n{text[-keep:]}"
