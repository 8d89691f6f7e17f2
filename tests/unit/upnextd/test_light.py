"""The supervisor stays light: what it imports is paid by every daemon for its whole life."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import upnext.engine

LUA = Path(upnext.engine.__file__).parent / "lua"

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
    heavy = [name for name in done.stdout.split() if name.startswith(FORBIDDEN) or name == "upnextd.forked.child"]
    assert heavy == []


def test_a_template_holds_every_script_before_it_forks(tmp_path: Path) -> None:
    """An update of the package under a running daemon must not give new scripts to old code."""
    service = tmp_path / "held.py"
    service.write_text("import upnext\nworker = upnext.Worker()\n@worker.task\ndef work(): ...\n")
    code = (
        "import sys; from upnextd.forked import template; template.load(sys.argv[1], ()); from upnext.engine.redis import scripts\n"
        "held = scripts.script.cache_info(); scripts.script('fetch')\n"
        "print(held.currsize, scripts.script.cache_info().misses - held.misses)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(service)], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == [str(len([*LUA.glob("*.lua")])), "0"]
