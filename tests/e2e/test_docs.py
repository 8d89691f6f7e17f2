"""What the pages say is tried: their services load, the guide's producer runs, and the names in their tables exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import upnext
from tests.support.daemon import BIN, Daemon
from upnext.declare import CommonSettings, TaskSettings

ROOT = Path(__file__).parents[2]
GUIDE = "docs/tasks.md"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def guide() -> str:
    return "\n".join(blocks(GUIDE))


def test_the_service_of_the_readme_loads(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(blocks("README.md")[0])
    checked = subprocess.run(
        [BIN / "upnextd", "check", tmp_path / "shop.py"], capture_output=True, text=True, check=True
    )
    for name in ("shop", "process_order", "send_confirmation", "daily_report"):
        assert name in checked.stdout


@pytest.mark.parametrize(("page", "found"), [("docs/api.md", "process_order"), ("docs/secrets.md", "charge")])
def test_the_services_of_other_pages_load(page: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(blocks(page)[0])
    checked = subprocess.run(
        [BIN / "upnextd", "check", tmp_path / "shop.py"], capture_output=True, text=True, check=True
    )
    assert f"task  {found}(" in checked.stdout


def test_every_block_of_python_compiles() -> None:
    pages = ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
    found = [(page, block) for page in pages for block in blocks(page)]
    assert len(found) > 30
    for page, block in found:
        compile(block, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_guide_runs_as_it_stands() -> None:
    with Daemon(guide()) as daemon:
        run = "import asyncio, service; asyncio.run(service.checkout('A1'))"
        environment = {**daemon.environment, "UPNEXT_REDIS_URL": daemon.broker_url}
        done = subprocess.run(
            [sys.executable, "-c", run],
            check=False,
            cwd=daemon.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("charged 500 for A1") == 2
        assert "charged 999 for A999" in done.stdout
        rows = daemon.cli("call", "import_rows", "--kwargs", '{"path": "a.csv", "rows": 3}', "--wait")
        assert (rows.returncode, rows.stdout.strip()) == (0, "3")


def test_the_options_of_the_guide_are_those_that_there_are() -> None:
    table = (ROOT / GUIDE).read_text().partition("| Option |")[2].partition("\n\n")[0]
    options = {*CommonSettings.__annotations__, *TaskSettings.__annotations__}
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == options


@pytest.mark.parametrize(
    "page",
    [
        GUIDE,
        "README.md",
        "docs/upnextd.md",
        "docs/troubleshooting.md",
        "docs/guides/fastapi.md",
        "docs/guides/django.md",
        "docs/guides/flask.md",
        "docs/guides/sentry-and-opentelemetry.md",
    ],
)
def test_names_on_the_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for error in re.findall(r"`(\w+(?:Error|Uncertain))`", text):
        assert hasattr(upnext, error) or error == "TimeoutError", error
    metrics = (ROOT / "upnextd" / "metrics" / "exporter_process.py").read_text()
    for metric in re.findall(r"`(upnext_\w+)", text):
        assert f'"{metric.removesuffix("_total")}"' in metrics, metric
    for command in re.findall(r"`upnext ((?:ctl )?[a-z][a-z-]*)", text):
        subprocess.run([BIN / "upnext", *command.split(), "--help"], capture_output=True, check=True)
