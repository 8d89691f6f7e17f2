"""How a worker and its pool processes talk: frames over a socket pair. A frame is 4 bytes length (big-endian), 1 byte kind, the rest.

| kind | from | body | meaning |
|---|---|---|---|
| S | worker | JSON {loader, path, redis_url, namespace} | what to import, whose jobs these are |
| R | member | nothing | it has imported the service and takes jobs |
| F | member | text | it can't start (its import or lifespan failed), and ends |
| J | worker | header, line feed, payload | run this job; the header is JSON (see `header`) |
| V | member | JSON | the job's value, encoded |
| N | member | number of the job, space, JSON object | the job notes these fields: its progress, its checkpoint |
| E | member | JSON {type, message, traceback, delay_s} | it failed; `delay_s` null: for good |
| P | member | number of the job | the job waits for another job: its slot is free meanwhile |
| U | member | number of the job, of the wait, 1 or 0 | that wait is over; with 1 it goes on already, with 0 as soon as there is a slot |
| G | worker | number of the wait | there is one: go on |

A job's number is in its header: a thread may outlive its job, and its waits are not those of the next one.

One job at a time; a member that got none may be ended at any moment.
"""

from __future__ import annotations

import struct
from enum import Enum

HEAD = struct.Struct(">IB")


class Kind(Enum):
    """First byte of a frame's body."""

    SETUP = ord("S")
    READY = ord("R")
    FAILED = ord("F")
    JOB = ord("J")
    VALUE = ord("V")
    ERROR = ord("E")
    NOTE = ord("N")
    PARK = ord("P")
    UNPARK = ord("U")
    GO = ord("G")


def pack(kind: Kind, body: bytes = b"") -> bytes:
    return HEAD.pack(len(body), kind.value) + body


def read_head(head: bytes) -> tuple[Kind, int]:
    """-> (kind, length of the body). Raises ValueError for a kind that doesn't exist."""
    length, kind = HEAD.unpack(head)
    return Kind(kind), length
