"""`ctl top` on a terminal: q and Ctrl-C leave it, and the terminal is as it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.support.waiting import given
from tests.unit.cli.test_ctl import STATUS, answers
from tests.unit.control.fake_daemon import FakeDaemon


@pytest.mark.parametrize("leave", ["q", "interrupt"])
def test_q_and_ctrl_c_leave_top(leave: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path: Path = tmp_path_factory.mktemp("s") / "orders.sock"
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with FakeDaemon(path, answers(status=STATUS)):
        command = [sys.executable, "-m", "upnext", "ctl", "--socket", str(path), "top", "--interval", "60"]
        top = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
        shown = b""
        while b"worker-1" not in shown:
            shown += os.read(ours, 4096)
        if leave == "q":
            os.write(ours, b"q")
        else:
            top.send_signal(signal.SIGINT)
        assert top.wait(given(10)) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
