"""Lua scripts as values, and calls of them as values: a `Call` says what to run and how to read the reply; a transport runs it.

So each script has one Python caller, and the async and the blocking transport share it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Generic, TypeVar

from upnext.core.keys import absent_beside

T = TypeVar("T")
Arg = str | bytes | int | float

_LAST_KEY_OFF = "local ABSENT = table.remove(KEYS) -- the key that is never set: see `Call`"
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script; `sha` is what EVALSHA takes."""

    name: str
    text: str
    sha: str

    @property
    def only_looks(self) -> bool:
        return "no-writes" in self.text.partition("\n")[0]


_FOLDER = resources.files("upnext.engine") / "lua"


def load_all() -> None:
    """Read every script now. A process that goes on over an update of the package would else call new scripts by old code."""
    for file in _FOLDER.iterdir():
        if file.name.endswith(".lua"):
            script(file.name.removesuffix(".lua"))


@functools.cache
def script(name: str) -> Script:
    """Loads `lua/NAME.lua`; a line `-- include: X` is replaced by `lua/include/X.lua`."""
    head, _, rest = (_FOLDER / f"{name}.lua").read_text("utf-8").partition("\n")
    text = f"{head}\n{_LAST_KEY_OFF}\n{rest}"
    text = _INCLUDE.sub(lambda match: (_FOLDER / "include" / f"{match[1]}.lua").read_text("utf-8").rstrip(), text)
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script. `parse` turns the raw reply (bytes, int, list, None) into what the operation returns.

    `keys` are those that the script sees. The command names one more, which is never set: so a cluster that moves the slot key by key
    always answers TRYAGAIN or ASK, and no script fails in the middle at a key that is gone already.
    """

    script: Script
    keys: Sequence[str]
    args: Sequence[Arg]
    parse: Callable[[Any], T]

    def evalsha(self) -> tuple[Arg, ...]:
        return ("EVALSHA", self.script.sha, len(self.keys) + 1, *self.keys, absent_beside(self.keys[0]), *self.args)

    def eval(self) -> tuple[Arg, ...]:
        return ("EVAL", self.script.text, len(self.keys) + 1, *self.keys, absent_beside(self.keys[0]), *self.args)


Calls = Generator[Call[Any], Any, T]
"""An operation of several calls: it yields each, gets its result sent, and returns what the whole gives."""


async def run_calls(calls: Calls[T], run: Callable[[Call[Any]], Awaitable[Any]]) -> T:
    try:
        call = next(calls)
        while True:
            call = calls.send(await run(call))
    except StopIteration as stop:
        return stop.value
    finally:
        calls.close()


def run_calls_blocking(calls: Calls[T], run: Callable[[Call[Any]], Any]) -> T:
    try:
        call = next(calls)
        while True:
            call = calls.send(run(call))
    except StopIteration as stop:
        return stop.value
    finally:
        calls.close()


def text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


def ident(reply: Any) -> Any:
    return reply
