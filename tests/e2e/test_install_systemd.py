"""scripts/install-systemd without installing: what it says it would do, and what it refuses. test_systemd_unit.py lets it do it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.systemd import REPOSITORY, python_lacks

SCRIPT = REPOSITORY / "scripts" / "install-systemd"
TOUCHED = tuple(map(Path, ("/opt/upnext", "/etc/upnext", "/etc/systemd/system/upnextd@.service")))


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)


def state() -> list[tuple[Path, bool, int]]:
    return [(path, path.exists(), path.stat().st_mtime_ns if path.exists() else 0) for path in TOUCHED]


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemctl here (apt-get install systemd)")
@pytest.mark.skipif(bool(python_lacks()), reason=str(python_lacks()))
def test_a_dry_run_says_every_step_and_does_none() -> None:
    before = state()
    done = install("--dry-run", "never-installed", "some.module")
    assert (done.returncode, done.stderr) == (0, "")
    steps = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(steps) == ["venv", "packages", "user", "unit", "example", "settings", "next"]
    assert steps["settings"] == "/etc/upnext/never-installed.env: would be written"
    assert steps["next"] == "systemctl enable --now upnextd@never-installed"
    assert state() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dry"], "unknown option --dry; use scripts/install-systemd [--dry-run]"),
        (["--dry-run", "orders"], "which service is 'orders'?"),
        (["--dry-run", "or/ders", "x"], "the name 'or/ders': use letters"),
        (["--dry-run", "orders.v2", "some.module"], "systemd takes no dot there; write orders-v2"),
        (["--dry-run", "a" * 25, "some.module"], "has 25 letters"),
        (["--dry-run", "orders", "/home/you/orders.py"], "the unit sees neither /home nor /root"),
        (["--dry-run", "orders", "/srv/there-is-none.py"], "there is no file /srv/there-is-none.py"),
        (["--dry-run", "orders", "/srv/a\nUPNEXTD_SECRETS_EXEC=x.py"], "the service's path has a control character"),
        (["--dry-run", "orders", "orders.py"], "give an absolute path, or a module as pkg.mod"),
        (["--dry-run", "--python", "/home/you/bin/python3"], "use the system's Python"),
        (["--dry-run", "a", "b", "c"], "one service at a time"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], says: str) -> None:
    done = install(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("install-systemd: ")
    assert says in line


def test_a_service_that_the_units_user_can_not_read_is_refused(tmp_path: Path) -> None:
    service = tmp_path / "orders.py"
    service.touch(0o600)
    done = install("--dry-run", "orders", str(service))
    assert done.returncode == 64
    assert done.stderr == f"install-systemd: {service}: the unit's user can't read it; run chmod o+r {service}\n"
