"""Settings in `.env` and pyproject.toml, as both programs and a script read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.program import Program
from tests.support.waiting import given

SERVICE = """
import os
import upnext

worker = upnext.Worker("shop", redis_url="redis://127.0.0.1:1")

@worker.task
def seen() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("UPNEXT_NA")}
"""


@pytest.fixture
def project(tmp_path: Path, redis_url: str, namespace: str) -> Path:
    (tmp_path / "shop.py").write_text(SERVICE)
    (tmp_path / "pyproject.toml").write_text(f'[tool.upnext]\nredis-url = "{redis_url}"\nnamespace = "other"\n')
    (tmp_path / ".env").write_text(f"UPNEXT_NAMESPACE={namespace}\n")
    return tmp_path


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("UPNEXT")} | {"PYTHONPATH": ""}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=given(30), check=False
    )


def test_run_call_and_a_script(project: Path) -> None:
    program = Program(project, ("run", "shop.py"), environment())
    try:
        program.ready()
        done = run(project, str(BIN / "upnext"), "call", "seen", "--wait", "--timeout", "20")
        assert (done.returncode, done.stdout) == (0, "{}\n"), "it is exported to no service"
        script = "import shop; print(shop.seen.submit_sync().value_sync(timeout=20))"
        done = run(project, sys.executable, "-c", script)
        assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
    finally:
        program.end()


def test_the_daemon_and_its_flags(project: Path) -> None:
    (project / ".env").write_text((project / ".env").read_text() + "UPNEXTD_WORKERS=1\nUPNEXTD_ONLY=shop\n")
    daemon = Daemon(project / "shop.py", workers=None, env=dict.fromkeys(("UPNEXT_REDIS_URL", "UPNEXT_NAMESPACE"), ""))
    for name in ("pyproject.toml", ".env"):
        (daemon.directory / name).write_text((project / name).read_text())
    with daemon:
        status = daemon.status()
        assert (status["desired_workers"], status["broker"]["embedded"]) == (1, False)
        done = run(project, str(BIN / "upnext"), "call", "seen", "--wait", "--timeout", "20")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ('workers = "many"', 2, "'many' is not a whole number"),
        ("workers = -1", 2, "--workers -1: from 0"),
        ('namespace = "a b"', 2, "namespace 'a b'"),
        ('redis-url = "http://x"', 2, "http"),
        ("wokers = 1", 2, "did you mean workers?"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place(project: Path, table: str, line: int, words: str) -> None:
    (project / ".env").write_text("" if "redis" in table else "UPNEXT_REDIS_URL=redis://127.0.0.1:1\n")
    (project / "pyproject.toml").write_text(f"[tool.upnext]\n{table}\n")
    commands = [[str(BIN / "upnextd"), "start", "shop.py"]]
    if "workers =" not in table:
        commands.append([str(BIN / "upnext"), "jobs"])
    for command in commands:
        ended = run(project, *command)
        assert (ended.returncode, ended.stderr.count("\n")) == (64, 1), ended.stderr
        assert words in ended.stderr
        assert f"{project / 'pyproject.toml'}:{line}" in ended.stderr
