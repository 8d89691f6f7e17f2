"""`upnext new`: a small service to begin with, and a test of it."""

from __future__ import annotations

import re
from pathlib import Path

import click

from upnext.cli import output
from upnext.cli.options import flags, json_option
from upnext.errors import UsageError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")

_SERVICE = '''"""The background work of NAME.

    upnext run NAME.py             # while you work on it; with a Valkey of its own where no Redis is named
    upnextd start NAME.py          # on a server: worker processes and a supervisor, likewise
    upnext call greet --kwargs '{"name": "Ada"}' --wait
"""

import upnext

worker = upnext.Worker("NAME", concurrency=10)
signed_up = worker.event("user.signed_up")


@worker.task(retries=3, timeout=30)
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@signed_up.on
async def welcome(name: str) -> None:
    await greet.submit(name)


@worker.cron("0 9 * * *")
async def every_morning() -> None:
    print("good morning")


if __name__ == "__main__":
    upnext.run(worker)
'''

_TEST = '''"""Tests of NAME: a task is a function, and can be called as one."""

import asyncio

from NAME import greet


def test_greet() -> None:
    assert asyncio.run(greet("Ada")) == "Hello, Ada!"
'''


@click.command()
@click.argument("name")
@json_option
def new(name: str) -> None:
    """Write NAME.py, a small service, and test_NAME.py into this folder."""
    if _NAME.match(name) is None:
        raise UsageError(
            f"new: {name!r} can't name a service's file: small letters, digits and '_', a letter first, 40 at most"
        )
    files = {Path(f"{name}.py"): _SERVICE, Path(f"test_{name}.py"): _TEST}
    for path in files:
        if path.exists():
            raise UsageError(f"new: {path} is there already")
    for path, text in files.items():
        path.write_text(text.replace("NAME", name), encoding="utf-8")
    if flags().json:
        output.print_json({"files": [str(path) for path in files]})
    else:
        output.print_line(f"wrote {' and '.join(str(path) for path in files)}; run it: upnext run {name}.py")
