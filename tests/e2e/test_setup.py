"""The first thing that a newcomer runs says in one line what it lacks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = '#!/bin/sh\ncase "$*" in -V) echo Python 3.9.1 ;; *) exit 1 ;; esac\n'
WITHOUT_VENV = '#!/bin/sh\ncase "$*" in *version_info*) exit 0 ;; *) exit 1 ;; esac\n'


def run_setup(tmp_path: Path, python: str | None) -> subprocess.CompletedProcess[str]:
    """scripts/setup in a checkout of its own, on a machine that has this `python3` and no other."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "dirname", "cat", "cut", "grep", "rm", "tail"):
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    if python is not None:
        (programs / "python3").write_text(python)
        (programs / "python3").chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    script = (ROOT / "scripts" / "setup").read_text().replace("/usr/bin/python3", str(programs / "nothing"))
    (checkout / "scripts" / "setup").write_text(script)
    return subprocess.run(
        ["/bin/sh", checkout / "scripts" / "setup"],
        env={"PATH": str(programs), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("python", "says"),
    [
        (None, "needs Python 3.11 or newer, and there is none on PATH"),
        (OLD, "there is none on PATH (only 3.9.1)"),
        (WITHOUT_VENV, "apt-get install python3-venv"),
    ],
    ids=["no Python", "an old Python", "a Python without venv"],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, python: str | None, says: str) -> None:
    done = run_setup(tmp_path, python)
    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
