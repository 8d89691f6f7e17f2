"""What click says of a wrong command line, in one line and in the words of the other messages."""

from __future__ import annotations

import re

import click

_IN_OUR_WORDS = (
    (re.compile(r" is not a valid float( range)?\.$"), " is not a number"),
    (re.compile(r" is not a valid integer( range)?\.$"), " is not a whole number"),
    (re.compile(r"(\S+) is not in the range (\S+?)<=x<=(\S+?)\.$"), r"\1; write \2 to \3"),
    (re.compile(r"(\S+) is not in the range x>=(\S+?)\.$"), r"\1; write \2 or more"),
    (re.compile(r"(\S+) is not in the range x>(\S+?)\.$"), r"\1; write more than \2"),
)


def wrong_usage(error: click.UsageError) -> str:
    """What is wrong, with the value, and the command whose help has the flags."""
    text = " ".join(error.format_message().split())
    for theirs, ours in _IN_OUR_WORDS:
        text = theirs.sub(ours, text)
    return f"{text} (see `{error.ctx.command_path} --help`)" if error.ctx is not None else text
