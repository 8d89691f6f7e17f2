"""`upnext run --burst` and `upnext new`, as a person, a cron host or a test run uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import BIN
from tests.support.waiting import given
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient

SERVICE = """
import os
import upnext

worker = upnext.Worker("jobs", concurrency=4)

@worker.task(retries=2, retry_delay=0.3)
async def flaky(fails: int) -> None:
    attempt = upnext.get_current_context().attempt
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"flaky {attempt}\\n")
    if attempt <= fails:
        raise ValueError("not yet")

@worker.task
async def parent() -> None:
    await flaky.submit(0)

@worker.task(executor="process")
def apart() -> None:
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"apart {os.getppid()}\\n")

@worker.task
def beside() -> None:
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"beside {os.getpid()}\\n")

@worker.cron("* * * * * *")
async def every_second() -> None:
    with open(os.environ["SEEN"], "a") as file:
        file.write("cron\\n")
"""


def run(folder: Path, url: str, namespace: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "upnext"), "run", "service.py", "--burst", "--redis-url", url, "--namespace", namespace, *args],
        cwd=folder,
        env={**os.environ, "SEEN": str(folder / "seen"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=given(60),
        check=False,
    )


def submit(url: str, namespace: str, *jobs: Submission) -> None:
    SyncQueueClient(url, namespace).submit_many(jobs)


def test_a_burst_runs_what_is_queued_and_its_retries(redis_url: str, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "seen").touch()
    later = Submission("flaky", b'{"fails": 0}', delay_s=3600)
    submit(
        redis_url,
        namespace,
        Submission("flaky", b'{"fails": 2}'),
        Submission("parent", b"{}"),
        Submission("apart", b"{}"),
        Submission("beside", b"{}"),
        later,
    )
    done = run(tmp_path, redis_url, namespace)
    assert done.returncode == 0, done.stderr
    seen = (tmp_path / "seen").read_text().splitlines()
    assert sorted(line for line in seen if line.startswith("flaky")) == ["flaky 1", "flaky 1", "flaky 2", "flaky 3"]
    [worker] = [line.split()[1] for line in seen if line.startswith("beside")]
    assert [line.split()[1] for line in seen if line.startswith("apart")] == [worker], (
        "in a process of the worker's own"
    )
    assert "cron" not in seen


def test_a_burst_ends_with_1_when_a_job_failed(redis_url: str, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    submit(redis_url, namespace, Submission("flaky", b'{"fails": 9}'))
    assert run(tmp_path, redis_url, namespace).returncode == 1
    assert run(tmp_path, redis_url, namespace).returncode == 0, "there was nothing left to do"
    both = run(tmp_path, redis_url, namespace, "--reload")
    assert (both.returncode, both.stderr) == (64, "upnext: run: --reload and --burst don't go together\n")


def test_a_new_service_runs_and_its_test_passes(redis_url: str, namespace: str, tmp_path: Path) -> None:
    def upnext(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "upnext"), *args], cwd=tmp_path, capture_output=True, text=True, timeout=given(60), check=False
        )

    made = upnext("new", "shop")
    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.py", "test_shop.py"]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=given(60),
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    submit(redis_url, namespace, Submission("greet", b'{"name": "Ada"}'))
    (tmp_path / "shop.py").rename(tmp_path / "service.py")
    assert run(tmp_path, redis_url, namespace).returncode == 0
    for name, words in (("shop", "test_shop.py is there already"), ("../x", "can't name a service's file")):
        refused = upnext("new", name)
        assert refused.returncode == 64
        assert words in refused.stderr
