"""What an import left open, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def left_by(source: str, folder: Path) -> tuple[list[str], list[str]]:
    """(sockets, databases) that `source` opens."""
    code = (
        "import json; from upnextd.forked import opened; before = opened.descriptors()\n"
        f"{source}\n"
        "print(json.dumps([opened.sockets(before), opened.databases(before)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    found, databases = json.loads(done.stdout)
    return found, databases


SERVER = "import socket; s = socket.socket(socket.AF_UNIX, {kind}); s.bind({name!r}); s.listen()\n"
CLIENT = "c = socket.socket(socket.AF_UNIX, {kind}); c.connect({name!r})\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (SERVER.format(kind="socket.SOCK_STREAM", name="a.sock"), ["Unix socket (on a.sock)"]),
        (
            SERVER.format(kind="socket.SOCK_STREAM", name="a.sock")
            + CLIENT.format(kind="socket.SOCK_STREAM", name="a.sock")
            + "s.close()",
            ["Unix socket (to a.sock)"],
        ),
        (
            SERVER.format(kind="socket.SOCK_SEQPACKET", name="\0upnext-test-opened")
            + CLIENT.format(kind="socket.SOCK_SEQPACKET", name="\0upnext-test-opened")
            + "s.close()",
            ["Unix socket (to @upnext-test-opened)"],
        ),
        ("import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.close()", []),
    ],
)
def test_sockets_that_several_processes_can_not_share(source: str, found: list[str], tmp_path: Path) -> None:
    assert left_by(source, tmp_path) == (found, [])


@pytest.mark.parametrize(
    "source",
    [
        "import socket; a, b = socket.socketpair()",
        "import asyncio; loop = asyncio.new_event_loop()",
        (
            "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('log')\n"
            "import logging.handlers; h = logging.handlers.SysLogHandler('log'); s.close()"
        ),
        "f = open('x.log', 'a')",
        "import sqlite3; d = sqlite3.connect(':memory:'); d.execute('create table a (b)')",
        "import sqlite3; d = sqlite3.connect('x.db'); d.execute('create table a (b)'); d.close()",
    ],
)
def test_what_may_be_shared(source: str, tmp_path: Path) -> None:
    assert left_by(source, tmp_path) == ([], [])


@pytest.mark.parametrize(
    "source",
    [
        "d = sqlite3.connect('shop'); d.execute('create table a (b)'); d.commit()",
        "d = sqlite3.connect('shop.db')",
        "d = sqlite3.connect('shop'); d.execute('pragma journal_mode=wal'); d.execute('create table a (b)'); d.commit()",
        "d = open('shop.duckdb', 'wb')",
    ],
)
def test_databases(source: str, tmp_path: Path) -> None:
    [path] = left_by(f"import sqlite3; {source}", tmp_path)[1]
    assert path.startswith(str(tmp_path / "shop"))


def test_what_was_open_before_is_not_the_imports(tmp_path: Path) -> None:
    assert left_by("before = opened.descriptors() | frozenset()", tmp_path) == ([], [])
    source = SERVER.format(kind="socket.SOCK_STREAM", name="a.sock") + "before = opened.descriptors()"
    assert left_by(source, tmp_path) == ([], [])
