"""A daemon that is started with closed standard streams gives their numbers to nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from upnextd.shared.process import is_other_than_a_socket

PROGRAM = """
import os
from upnextd.shared import process
process.fill_standard_descriptors()
lock = os.open(os.environ["LOCK"], os.O_RDWR | os.O_CREAT)
os.write(2, b"a line of the log\\n")
with open(os.environ["REPORT"], "w") as report:
    report.write(" ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)))
"""


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_ones_are_filled(closed: str, tmp_path: Path) -> None:
    lock, reported = tmp_path / "lock", tmp_path / "report"
    subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, PROGRAM],
        env={"LOCK": str(lock), "REPORT": str(reported), "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert reported.read_text().split() == ["/dev/null"] * 3
    assert lock.read_bytes() == b""


def test_only_a_socket_makes_room_for_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "precious.db"
    assert not is_other_than_a_socket(str(file))
    file.write_text("data")
    assert is_other_than_a_socket(str(file))
    assert not is_other_than_a_socket("127.0.0.1:9100")
