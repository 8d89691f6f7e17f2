"""What upnextd needs of the kernel is denied: one line says what, at the start."""

from __future__ import annotations

import platform
import sys

import pytest

from tests.support.daemon import Daemon

SERVICE = "import upnext\nworker = upnext.Worker('jobs')\n@worker.task\nasync def work(): ...\n"
_NUMBERS = {
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "waitid": (247, 95),
    "memfd_create": (319, 279),
}
"""Of system calls, on x86_64 and on aarch64."""

_DENY = """
import ctypes, os, struct, sys
number, error = int(sys.argv[1]), int(sys.argv[2])
code = lambda op, to, other, value: struct.pack("HBBI", op, to, other, value)
# Load the number; equal: fail with the error; else allow.
program = code(0x20, 0, 0, 0) + code(0x15, 0, 1, number) + code(0x06, 0, 0, 0x00050000 | error) + code(0x06, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.cast(buffer, ctypes.c_void_p))), 0, 0) == 0
os.execv(sys.argv[3], sys.argv[3:])
"""


class Confined(Daemon):
    """Under a filter that denies one system call with an error."""

    denied: tuple[int, int] = (0, 0)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", _DENY, *map(str, self.denied), *super().command]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of system calls differ")
@pytest.mark.parametrize(
    ("call", "errno", "reason"),
    [
        ("pidfd_open", 1, "Operation not permitted"),
        ("pidfd_open", 38, "Function not implemented"),
        ("pidfd_send_signal", 1, "Operation not permitted"),
        ("waitid", 22, "Invalid argument"),
        # As with the sysctl vm.memfd_noexec=2.
        ("memfd_create", 13, "Permission denied"),
    ],
)
def test_a_call_that_is_denied_is_named_at_the_start(call: str, errno: int, reason: str) -> None:
    daemon = Confined(SERVICE)
    daemon.denied = (_NUMBERS[call][platform.machine() == "aarch64"], errno)
    try:
        daemon.launch()
        assert daemon.wait(20) == 78
        lines = daemon.log().splitlines()
        assert len(lines) == 1, daemon.log()
        assert lines[0].startswith(f"upnextd: {call}")
        assert f"denied here ({reason})" in lines[0]
        daemon.assert_nothing_left()
    finally:
        daemon.close()
