"""What a service that runs in one process logs, on a terminal: `12:01:03 info shop: text`, and the lines of jobs."""

from __future__ import annotations

import logging
import sys

from upnext.core.visible import visible_lines
from upnext.engine.attempt import current_job_id
from upnext.engine.job_lines import LOGGER


class _Lines(logging.Formatter):
    """Further lines of a record, as of a traceback, are indented; control characters of texts are made visible."""

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        first, line_end, more = super().format(record).partition("\n")
        at = self.formatTime(record, self.datefmt)
        if record.name != LOGGER:
            job_id = getattr(record, "job_id", None) or current_job_id()
            job = f" {job_id}" if job_id and job_id not in first else ""
            first = f"{record.levelname.lower()}{job} {record.name}: {first}"
        return visible_lines(f"{at} {first}{line_end}{more}", keep="\t", indent="    ")


def install(level: str) -> None:
    """Show what this process logs on stderr from now on, unless the program has a logging configuration of its own."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.root.addHandler(handler)
    logging.root.setLevel(level.upper())
