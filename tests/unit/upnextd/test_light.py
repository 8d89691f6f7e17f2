"""The supervisor stays light: what it imports is paid by every daemon for its whole life."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = (
    "redis",
    "rich",
    "pydantic",
    "uvloop",
    "psutil",
    "croniter",
    "upnext.engine",
    "upnext.worker",
)


def test_the_supervisor_imports_neither_the_engine_nor_its_libraries() -> None:
    code = "import sys, upnextd.main; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    heavy = [name for name in done.stdout.split() if name.startswith(FORBIDDEN) or name == "upnextd.child"]
    assert heavy == []
