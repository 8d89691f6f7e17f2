"""What a shell asks for at TAB: answered within a fixed time, or with nothing, and never with an error."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import click
from click.shell_completion import CompletionItem, shell_complete

WITHIN_S = 0.22
"""With the start of Python, an answer takes 0.3 s at most. `UPNEXT_COMPLETION_S` changes it; for tests."""


def answer_if_asked(cli: click.Command, program: str) -> None:
    """End the process with the answer where a shell's script (see `upnext completion`) asks for one; else do nothing."""
    variable = f"_{program.upper()}_COMPLETE"
    question = os.environ.get(variable, "")
    if not question.endswith("_complete"):
        return
    deadline = time.monotonic() + float(os.environ.get("UPNEXT_COMPLETION_S", WITHIN_S))
    # A process of its own: whatever it waits for, a name server for instance, it can be ended.
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(cli, program, variable, question, to_parent)
    os.close(to_parent)
    answer = _read(from_child, deadline)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if answer is not None:
        os.write(1, answer)
    os._exit(0)


def _answer(cli: click.Command, program: str, variable: str, question: str, out: int) -> None:
    os.dup2(out, 1)
    os.close(out)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        shell_complete(cli, {}, program, variable, question)
        sys.stdout.flush()
    finally:
        os._exit(0)


def _read(fd: int, deadline: float) -> bytes | None:
    """Everything until the end; None where that does not come in time."""
    read = bytearray()
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return bytes(read)
        read += chunk
    return None


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path."""
    return [CompletionItem(incomplete, type="file")]
