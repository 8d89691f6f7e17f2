"""Texts of users, as terminals and logs of text show them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from upnext.cli import call, output
from upnext.core.outcome import ErrorInfo, JobStatus, Outcome
from upnext.core.visible import visible, visible_lines
from upnextd.shared.log_records import Record, encode
from upnextd.shared.logs import Log, Sink
from upnextd.supervisor.systemd import Notifier

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\u2066\u200b\r\x08\x00\x7f\u2028\u0085\n2026-01-01 upnextd[1] error: forged"
HARMFUL = "\x1b\x07\x9b\u202e\u2066\u200b\r\x08\x00\x7f\u2028\u0085"
CODE = Path(output.__file__).parent


def test_what_can_be_read_stays() -> None:
    for text in ("", "plain", "é → 日本\u3000語", "un\u00a0: deux", "👍", "\\x1b"):
        assert visible(text) == text


def test_one_line_stays_one() -> None:
    assert visible(HOSTILE) == (
        r"\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\u2066\u200b\r\x08\x00\x7f\u2028\x85\n2026-01-01 upnextd[1] error: forged"
    )
    assert visible("a\tb\udcff") == r"a\tb\udcff"


def test_several_lines_stay_lines() -> None:
    assert visible_lines("a\n\x1b\tb\n", keep="\t", indent="  ") == "a\n  \\x1b\tb\n  "


def is_safe(text: str) -> bool:
    """Nothing in it works on a terminal, and no line passes for the daemon's own."""
    return not any(one in text for one in HARMFUL) and "\n2026" not in text


@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.child_line("worker-1", 7, HOSTILE.replace("\n", " ")),
        lambda log: log.child_line("worker-1", 7, encode(Record("error", HOSTILE, HOSTILE, HOSTILE)).decode().rstrip()),
        lambda log: log.line(HOSTILE, 7, "text"),
        lambda log: log.fault(f"import failed: {HOSTILE}"),
    ],
    ids=["printed", "logged", "slot", "own"],
)
def test_the_daemons_log_shows_what_is_hidden_in_it(write: Callable[[Log], None]) -> None:
    read, written = os.pipe()
    sink = Sink(written)
    write(Log(sink, as_json=False, timestamps=False))
    sink.finish()
    os.close(written)
    with open(read, newline="") as file:
        text = file.read()
    assert text.endswith("\n")
    assert is_safe(text)
    assert r"\x1b[2J" in text


def test_the_status_for_systemd_is_one_line() -> None:
    """A further line would be an assignment of its own, as MAINPID=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")
        notifier = Notifier({"NOTIFY_SOCKET": "@" + manager.getsockname()[1:].decode()})
        notifier.status("import failed: x\nMAINPID=1")
        assert manager.recv(1000) == rb"STATUS=import failed: x\nMAINPID=1"
        notifier.close()


def test_what_commands_print_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(HOSTILE)
    output.print_table(["a"], [[HOSTILE]], none="")
    output.print_fields([("a", HOSTILE.replace("\n2026", " 2026"))])
    output.print_lines(HOSTILE.replace("\n2026", " 2026"))
    output.tell(HOSTILE.replace("\n2026", " 2026"))
    printed = capsys.readouterr()
    assert is_safe(printed.out + printed.err)
    assert (printed.out + printed.err).count("evil") == 5


def test_the_error_of_a_job_that_was_waited_for_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Outcome(JobStatus.FAILED, error=ErrorInfo("ValueError", HOSTILE))
    with click.Context(click.Command("call")):
        call._tell("t:1", failed)
    err = capsys.readouterr().err
    assert is_safe(err)
    assert err.count("\n") == 1


def test_no_command_prints_past_it() -> None:
    """`click.echo` stands in few places outside of `upnext.cli.output`: of help, versions, and what a person pipes on."""
    places = {
        path.name: path.read_text().count("click.echo(") for path in CODE.rglob("*.py") if path.name != "output.py"
    }
    assert {name: count for name, count in places.items() if count} == {"main.py": 3, "completion.py": 1}


def test_log_lines_of_upnext_run() -> None:
    line = output.VisibleFormatter("%(levelname)s %(message)s").format(
        logging.LogRecord("x", logging.ERROR, "x", 1, "user %s", (HOSTILE,), None)
    )
    assert is_safe(line)
    assert line.splitlines()[1].startswith("    2026-01-01")


def test_an_error_of_a_daemon_and_its_arguments() -> None:
    for program in ("upnext", "upnextd"):
        command = [str(Path(sys.executable).parent / program), "\x1b[2J\u202e", "--no\x9bsuch"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 64
        assert is_safe(done.stdout + done.stderr)
