"""Keys that hold another type than theirs are set aside: renamed, so that each costs itself alone, and named once in the log.

Such keys come from other programs, from hands, from half-restored dumps. Scripts check the types of what they need before they write
anything, so the call that met one can be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from upnext.core.keys import SCHEMA, keys_beside, row_of
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import Arg, Call, script, text

log = logging.getLogger("upnext.engine")

KEYS_A_CALL = 900


@dataclass(frozen=True, slots=True)
class Aside:
    """`key` is `now_at` from now on."""

    key: str
    why: str
    now_at: str


def met(error: ReplyError) -> bool:
    """Whether a reply says that a key holds another type. Some servers write more around the error of a script."""
    return "WRONGTYPE" in str(error)


def can_mend(error: ReplyError, call: Call[Any]) -> bool:
    """Whether the call can be repeated once the keys are set aside. One that only looks changes nothing, also not in this way."""
    return met(error) and not call.script.only_looks


def for_call(call: Call[Any]) -> Iterator[Call[list[Aside]]]:
    """The calls that set aside what is wrong among the keys of a call."""
    keys = keys_beside(call.keys[0])
    return calls(call.keys, str(call.args[0]) if call.keys[0] == keys.epoch else "")


def calls(names: Sequence[str], epoch: str = "") -> Iterator[Call[list[Aside]]]:
    """The calls that set aside those of the keys (of one namespace) that are wrong. epoch: of the data, where the caller knows it."""
    keys = keys_beside(names[0])
    known = [(name, row) for name in names if (row := row_of(name.removeprefix(keys.prefix))) is not None]
    for start in range(0, len(known), KEYS_A_CALL):
        part = known[start : start + KEYS_A_CALL]
        kinds: list[Arg] = [word for _, row in part for word in (row.type, row.form)]
        yield Call(
            script("set_aside"),
            [keys.schema, keys.aside, keys.epoch, *(name for name, _ in part)],
            [SCHEMA, epoch, keys.aside_prefix, keys.prefix, *kinds],
            _parse,
        )


def _parse(reply: list[bytes]) -> list[Aside]:
    words = [text(word) for word in reply]
    return [Aside(*words[at : at + 3]) for at in range(0, len(words), 3)]


def report(found: Sequence[Aside]) -> None:
    """One line for each key; the call that renamed it is the only one that gets to know."""
    for one in found:
        log.error("%s %s: it is %s now, and begins anew; `upnext doctor` lists it", one.key, one.why, one.now_at)
