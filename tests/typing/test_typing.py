"""The public names as a type checker sees them: calls.py is accepted as it stands, and would not be with any of its refusals lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyright", reason="pyright is not installed")

pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def complaints(*files: Path, platform: str = "Linux") -> list[dict[str, Any]]:
    """What pyright says about these files."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--pythonplatform", platform]
    command += ["--outputjson", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=800)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] >= len(files)
    return report["generalDiagnostics"]


def lines(found: list[dict[str, Any]]) -> str:
    return "\n".join(f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}" for one in found)


def test_right_calls_are_accepted_and_wrong_ones_refused() -> None:
    found = complaints(HERE / "calls.py")
    assert not found, lines(found)


def test_a_refusal_that_was_lost_would_be_seen(tmp_path: Path) -> None:
    code = (HERE / "calls.py").read_text()
    wrong, right = "await bare.submit()  #", 'await bare.submit("o-1")  #'
    assert wrong in code
    changed = tmp_path / "changed.py"
    changed.write_text(code.replace(wrong, right))
    (only,) = complaints(changed)
    assert "Unnecessary" in only["message"]


RUN = (
    "config.py",
    "console_log.py",
    "running.py",
    "service.py",
    "worker.py",
    "cli/run.py",
    "embedded",
    "engine",
    "core",
)
"""What `upnext run` is made of."""


def test_nothing_that_upnext_run_calls_is_of_linux_alone() -> None:
    found = complaints(*(ROOT / "upnext" / name for name in RUN), platform="Darwin")
    assert not found, lines(found)


def test_a_call_of_linux_alone_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "linux.py").write_text("import os\n\nos.pidfd_open(1)\n")
    found = complaints(tmp_path / "linux.py", platform="Darwin")
    assert "pidfd_open" in lines(found)
