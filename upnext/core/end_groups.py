"""Groups of ends that are no success: of one task, with one type of error, from one place in the code, with one cause.

Scripts count them in `P:groups` and keep the newest ids of each in `P:groups:ids` (`lua/include/ends.lua`, which also makes the name of the
group of a cancel and of a crash, as `name_of` does).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

NAME_LETTERS = 12
OTHERS = "~"
"""The group of what a task has no room for."""
MESSAGE_CAP = 200

_FRAME = re.compile(r'^ *File "(.+)", line (\d+)(?:, in (.+))?$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class About:
    """What the ends of a group have in common. `message` is that of the first one: of a payload's kind, not for everyone's eyes."""

    type: str = ""
    where: str = ""
    cause: str = ""
    message: str = ""


def name_of(type_: str, where: str, cause: str) -> str:
    """The same for ends that are alike, 12 hexadecimal digits."""
    text = "\n".join((type_, where, cause))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:NAME_LETTERS]


def place_in(traceback: str) -> str:
    """`tasks/mail.py:12 in send` of the last frame: two parts of the path, so that releases and hosts give the same; "" without one."""
    frames = _FRAME.findall(traceback)
    if not frames:
        return ""
    path, line, function = frames[-1]
    short = "/".join(path.split("/")[-2:])
    return f"{short}:{line} in {function}" if function else f"{short}:{line}"


def of_outcome(record: Mapping[str, Any]) -> tuple[str, About]:
    """(name of the group, what is common to it) of an end's record, as `upnext.core.outcome` writes it."""
    found = record.get("e")
    error = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    type_, cause = str(error.get("type") or record.get("y") or record.get("s") or ""), str(record.get("x") or "")
    where = place_in(str(error.get("traceback") or "")) if type_ != "WorkerCrash" else ""
    about = About(type_, where, cause, str(error.get("message") or "")[:MESSAGE_CAP])
    return name_of(type_, where, cause), about


def encode_about(about: About) -> dict[str, str]:
    """One-letter keys, as scripts keep it: t type, w where, x cause, m message. What is empty is left out."""
    rows = (("t", about.type), ("w", about.where), ("x", about.cause), ("m", about.message))
    return {letter: value for letter, value in rows if value}


@dataclass(frozen=True, slots=True)
class Group:
    """One row of P:groups. `count`: ends ever; `letter` as in EndLetter, of the first end. Times are Unix ms."""

    task: str
    name: str
    count: int
    first_ms: int
    last_ms: int
    letter: str
    about: About


_ROW = re.compile(rb"^(\d{1,15}) (\d{1,15}) (\d{1,15}) ([a-z]) (.*)$", re.DOTALL)


def decode(field: bytes, row: bytes) -> Group | None:
    """A row of P:groups; None for a field that is none (a task's list of its groups), and for what can't be read."""
    task, newline, name = field.decode("utf-8", "backslashreplace").rpartition("\n")
    parts = _ROW.match(row)
    if not newline or parts is None:
        return None
    try:
        about = orjson.loads(parts[5])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(about, dict):
        return None
    texts = {letter: str(value) for letter, value in cast("dict[str, Any]", about).items()}
    return Group(
        task,
        name,
        int(parts[1]),
        int(parts[2]),
        int(parts[3]),
        parts[4].decode(),
        About(texts.get("t", ""), texts.get("w", ""), texts.get("x", ""), texts.get("m", "")),
    )
