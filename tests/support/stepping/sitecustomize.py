"""Put on a daemon's PYTHONPATH: notes every line of chosen functions that any of its processes reaches, and kills at one of them.

The environment says what: STEPS_OF, files and functions as `template.py:fork_child,_middle births.py:fork`; STEP_WHOM, `supervisor` or
`self`, which is any process but the supervisor; STEPS_DIR, a folder. While `armed` is in it, `reached` gets a line for each line that a
process reaches for the first time. The step that `armed` names, in the form in which `reached` has it, kills once, which `killed` tells.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

_FOLDER = os.environ["STEPS_DIR"]
_OF = {
    (file, function)
    for file, _, functions in (part.partition(":") for part in os.environ["STEPS_OF"].split())
    for function in functions.split(",")
}
_WHOM = os.environ.get("STEP_WHOM", "supervisor")
# The first process is the supervisor; it keeps its pid when it upgrades itself.
_SUPERVISOR = int(os.environ.setdefault("STEP_SUPERVISOR", str(os.getpid())))
_noted: set[str] = set()


def _enter(frame: FrameType, event: str, arg: Any) -> Any:
    code = frame.f_code
    head, _, file = code.co_filename.rpartition("/")
    return _line if (file, code.co_name) in _OF and "/upnextd" in head else None


def _line(frame: FrameType, event: str, arg: Any) -> Any:
    if event == "line":
        _reached(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}:{frame.f_lineno}")
    return _line


def _reached(step: str) -> None:
    if _WHOM == "self" and os.getpid() == _SUPERVISOR:
        return
    try:
        with open(f"{_FOLDER}/armed") as file:
            fatal = file.read()
    except OSError:
        return
    if step not in _noted:
        _noted.add(step)
        _write("reached", step)
    if step == fatal and _first():
        whom = _SUPERVISOR if _WHOM == "supervisor" else os.getpid()
        os.kill(whom, signal.SIGKILL)
        while _lives(whom):
            time.sleep(0.0005)


def _first() -> bool:
    try:
        os.close(os.open(f"{_FOLDER}/killed", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _write(name: str, line: str) -> None:
    fd = os.open(f"{_FOLDER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


sys.settrace(_enter)
