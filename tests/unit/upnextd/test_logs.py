"""Lines: cut, marked, never blocking."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from tests.support.waiting import wait_until_async
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.logs import LineReader, Log, Sink


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def test_text_and_json() -> None:
    out, into = os.pipe()
    sink = Sink(into)
    Log(sink, as_json=False, timestamps=False).line("worker-1", 12, "hello\nthere")
    Log(sink, as_json=False, timestamps=False).caution("odd")
    Log(sink, as_json=True, timestamps=True).line("worker-1", 12, "hello")
    sink.finish()
    os.close(into)
    lines = read_all(out).decode().splitlines()
    os.close(out)
    assert lines[:3] == ["worker-1[12] hello", "    there", f"upnextd[{os.getpid()}] warning: odd"]
    record = json.loads(lines[3])
    assert (record["slot"], record["pid"], record["message"], record["level"]) == ("worker-1", 12, "hello", "info")


def _refused(*_: object) -> int:
    raise PermissionError("another user's pipe can't be opened anew")


@pytest.mark.parametrize("whose", ["ours", "another user's"])
async def test_a_reader_that_stopped_costs_lines_not_time(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()
    if whose != "ours":
        monkeypatch.setattr(os, "open", _refused)
    sink = Sink(into)
    sink.attach(asyncio.get_running_loop())
    line = b"x" * 999 + b"\n"
    for _ in range(3000):
        sink.write(line)
    assert sink.dropped > 1000
    assert os.get_blocking(into), "the other users of this pipe are not affected"
    kept = 3000 - sink.dropped
    got = bytearray()
    await wait_until_async(lambda: (got.extend(read_all(out)), len(got) == kept * len(line))[1])
    sink.write(b"after\n")
    sink.finish()
    reported = read_all(out)
    assert b"lines were dropped" in reported
    assert reported.endswith(b"after\n")
    os.close(out)
    os.close(into)


async def test_lines_are_cut_and_long_ones_pieced() -> None:
    out, into = LinuxKernel().pipe()
    lines: list[str] = []
    reader = LineReader(out, asyncio.get_running_loop(), lines.append, LinuxKernel())
    os.write(into, b"one\ntwo\r\nhal")
    await wait_until_async(lambda: len(lines) == 2)
    os.write(into, b"f\n" + b"y" * 40_000 + b"\nrest \xff")
    await wait_until_async(lambda: len(lines) >= 6)
    os.close(into)
    await wait_until_async(lambda: reader.closed)
    assert lines[:3] == ["one", "two", "half"]
    assert "".join(lines[3:-1]) == "y" * 40_000
    assert lines[-1] == "rest \ufffd"


_IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
from upnextd.shared.logs import Sink

os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, settings)
if os.fork() == 0:
    os.setpgid(0, 0)
    seen = []
    signal.signal(signal.SIGTTOU, lambda *_: seen.append(1))
    signal.alarm(20)
    sink = Sink(2)
    sink.write(b"a line from the background\\n")
    sink.finish()
    os._exit(1 if seen else 0)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]) % 256)
"""


_REFUSED = "os.open = lambda *_: os.close(-1)"
"""Another user's terminal can't be opened anew."""


@pytest.mark.parametrize("whose", ["ours", "another user's"])
def test_the_background_of_a_terminal_that_stops_writers(whose: str) -> None:
    """Where SIGTTOU has a handler, a write that it interrupts is begun anew, and is interrupted again."""
    ours, terminal = os.openpty()
    program = _IN_A_TERMINAL
    if whose != "ours":
        program = program.replace("sink = Sink(2)", f"{_REFUSED}; sink = Sink(2)")
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=terminal, stdout=terminal, stderr=terminal, timeout=60, check=False
    )
    written = read_all(ours)
    os.close(terminal)
    os.close(ours)
    assert (done.returncode, written) == (0, b"a line from the background\r\n")
