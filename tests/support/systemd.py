"""A real systemd in namespaces of its own, with UpNext installed under /opt/upnext inside. Nothing reaches the host."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support.waiting import given

REPOSITORY = Path(__file__).parents[2]
BOX = Path(__file__).with_name("systemd-box")
UNIT = REPOSITORY / "systemd" / "upnextd@.service"
SYSTEM_PYTHON = Path("/usr/bin/python3")

CHECKOUT = ("upnext", "upnextd", "systemd", "scripts", "pyproject.toml", "README.md", "LICENSE")
"""What scripts/install-systemd installs from."""


def why_not() -> str | None:
    """Why there can be no box here; None when there can."""
    if os.geteuid() != 0:
        return "a systemd of its own needs root"
    for program in ("unshare", "nsenter", "systemctl", "systemd-run", "pgrep"):
        if shutil.which(program) is None:
            return f"no {program} here (apt-get install systemd util-linux procps)"
    return python_lacks()


def python_lacks() -> str | None:
    """Why the system's Python can't make the service's environment; None when it can."""
    if not SYSTEM_PYTHON.exists():
        return f"no {SYSTEM_PYTHON} here, from which the service's environment is made"
    enough = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"],
        capture_output=True,
        check=False,
    )
    if enough.returncode:
        return f"{SYSTEM_PYTHON} is older than 3.11 or has no venv (apt-get install python3-venv)"
    return None


class Box:
    """`with Box() as box: box.run("systemctl", "start", "upnextd@demo")`."""

    def __init__(self) -> None:
        self._units = Path(tempfile.mkdtemp(prefix="upnext-units-"))
        # A copy: nothing inside can write to the repository, and what is installed stays the same while the box runs.
        self._checkout = Path(tempfile.mkdtemp(prefix="upnext-checkout-"))
        for name in CHECKOUT:
            source, target = REPOSITORY / name, self._checkout / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        self.installed = ""
        """The output of scripts/install-systemd."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [BOX, self._units, self._checkout], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("systemd-box ready"):
            self.__exit__()
            raise AssertionError("systemd did not boot")
        self._pid = line.split()[-1]
        try:
            self.shell("systemctl start systemd-journald")
            self.installed = self.install()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(given(20))
        self._process.stdout.close()
        shutil.rmtree(self._units, ignore_errors=True)
        shutil.rmtree(self._checkout, ignore_errors=True)

    def install(self, *arguments: str) -> str:
        """scripts/install-systemd; its output."""
        settings = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in os.environ.items() if name.startswith("PIP_")
        )
        script = self._checkout / "scripts" / "install-systemd"
        return self.shell(f"{settings} {shlex.join([str(script), *arguments])}", timeout_s=600)

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command inside, as root."""
        return subprocess.run(
            [BOX, "--enter", self._pid, *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=given(timeout_s),
            check=False,
        )

    def shell(self, script: str, timeout_s: float = 60.0) -> str:
        """A shell script inside; its output. Raises AssertionError with both streams when it fails."""
        done = self.run("bash", "-c", script, timeout_s=timeout_s)
        assert done.returncode == 0, f"{script}\n-> {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        subprocess.run(
            [BOX, "--enter", self._pid, "bash", "-c", f"cat > {path} && chmod {mode:o} {path}"],
            input=text,
            text=True,
            timeout=30,
            check=True,
        )

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """systemctl show -p …"""
        out = self.shell(f"systemctl show {unit} -p {','.join(properties)}")
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "-u", unit, "--no-pager", "-o", "cat").stdout
