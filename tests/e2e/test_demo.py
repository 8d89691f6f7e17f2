"""The demo does what it says, leaves nothing behind, and says why when it can't."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "demo.py"
OF_ANOTHER_DAEMON = {
    "UPNEXT_REDIS_URL": "redis://127.0.0.1:1/0",
    "UPNEXT_NAMESPACE": "elsewhere",
    "UPNEXTD_SOCKET": "/nowhere/ctl.sock",
    "UPNEXTD_WORKERS": "7",
}
"""What the caller may have set for a daemon of theirs."""


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short folder for the demo's own: a Unix socket's path may have some 100 bytes only."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")).parent / f"demo-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(temporary: Path, *args: str, program: Path = DEMO) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, program, *args],
        env={**os.environ, "TMPDIR": str(temporary), **OF_ANOTHER_DAEMON},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left(temporary: Path) -> list[str]:
    """Processes that work below the demo's folder."""
    inside = [p for p in psutil.process_iter(["cwd", "name"]) if (p.info["cwd"] or "").startswith(str(temporary))]
    return [str(process) for process in inside]


def test_the_demo_shows_everything_and_leaves_nothing(temporary: Path) -> None:
    demo = start(temporary)
    out, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0, out
    shown = out.split("Shown:\n")[1].splitlines()
    assert len(shown) == 8
    assert any(re.search(r"running again after \d+ ms$", line) for line in shown), out
    assert "nothing is left running" in shown[-1]
    assert left(temporary) == []
    assert list(temporary.iterdir()) == []


def test_with_keep_it_stays_until_ctrl_c(temporary: Path) -> None:
    demo = start(temporary, "--keep")
    assert demo.stdout is not None
    seen: list[str] = []
    for line in demo.stdout:
        seen.append(line)
        if line.startswith("Ctrl-C"):
            break
    text = "".join(seen)
    assert demo.poll() is None, text
    assert "upnext ctl status" in text
    # The line to paste works in another terminal.
    paste = next(line.strip() for line in seen if line.strip().startswith("export PATH="))
    done = subprocess.run(
        ["sh", "-c", f"{paste}\nupnext ctl status && upnext tasks"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "place_order" in done.stdout
    link = next(line.rpartition(" ")[2].strip() for line in seen if line.startswith("The dashboard"))
    with urllib.request.urlopen(link, timeout=30) as page:
        assert page.status == 200
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=200)
    assert demo.returncode == 0
    wait_until(lambda: not left(temporary), 5, "no process of the demo left")


def test_a_step_that_fails_ends_it_with_the_reason(temporary: Path) -> None:
    # The same demo on a service that can't be imported.
    shop = temporary / "checkout"
    (shop / "scripts").mkdir(parents=True)
    (shop / "examples").mkdir()
    shutil.copy(DEMO, shop / "scripts")
    (shop / "examples" / "orders.py").write_text("raise RuntimeError('sold out')\n")
    demo = start(temporary, program=shop / "scripts" / "demo.py")
    out, _ = demo.communicate(timeout=200)
    assert demo.returncode == 1
    assert "✗ upnextd ended with exit code 78" in out
    assert "sold out" in out
    wait_until(lambda: not left(temporary), 5, "no process of the demo left")
