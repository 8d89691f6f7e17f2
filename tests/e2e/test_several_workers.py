"""A service of several workers under a real daemon: each with its own concurrency, chosen by --only, its tasks found in packages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.processes import dies_with_us
from tests.support.waiting import wait_until

SERVICE = """
    import upnext

    light = upnext.Worker("light", concurrency=6)
    heavy = upnext.Worker("heavy", concurrency=2)
    light.autodiscover("shop.light")
    heavy.autodiscover("shop.heavy")
"""

MEASURED = """
    import asyncio

    running = most = 0

    async def measured() -> int:
        global running, most
        running += 1
        most = max(most, running)
        try:
            async with asyncio.timeout(1):  # until as many run together as ever will
                while most == running:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        running -= 1
        return most
"""

PACKAGE = {
    "shop/__init__.py": "",
    "shop/light/__init__.py": "",
    "shop/light/mails.py": """
        import upnext
        from service import light
        from .measuring import measured

        @light.task
        async def mail(number: int) -> int:
            return await measured()

        @light.task
        def who(number: int) -> str:
            return upnext.get_current_context().function_name
    """,
    "shop/light/measuring.py": MEASURED,
    "shop/heavy/__init__.py": "",
    "shop/heavy/measuring.py": MEASURED,
    "shop/heavy/deeper/__init__.py": "",
    "shop/heavy/deeper/films.py": """
        from service import heavy
        from ..measuring import measured

        @heavy.task
        async def film(number: int) -> int:
            return await measured()
    """,
}


def write(folder: Path) -> Path:
    """-> the service file, beside the packages that it discovers."""
    for name, source in {**PACKAGE, "service.py": SERVICE}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return folder / "service.py"


def submit(daemon: Daemon, task: str, count: int) -> list[upnext.Future[Any]]:
    """By the command line, for this process has not imported the service."""
    futures: list[upnext.Future[Any]] = []
    for number in range(count):
        output = daemon.cli("call", task, "--kwargs", json.dumps({"number": number}))
        assert output.returncode == 0, output.stderr
        futures.append(upnext.Future(output.stdout.strip()))
    return futures


def test_two_workers_of_one_service_with_a_concurrency_each(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    one = daemon(write(tmp_path), redis_url=redis_url, namespace=namespace, workers=1, wait=False)
    one.wait_ready(60)
    assert one.cli("pause-task", "mail").returncode == one.cli("pause-task", "film").returncode == 0
    mails, films = submit(one, "mail", 8), submit(one, "film", 5)
    assert one.cli("resume-task", "mail").returncode == one.cli("resume-task", "film").returncode == 0
    assert max(future.value_sync(60) for future in mails) == 6
    assert max(future.value_sync(60) for future in films) == 2
    assert {row["task"] for row in json.loads(one.cli("tasks", "--json").stdout)} == {"mail", "who", "film"}


def test_only_runs_the_workers_that_it_names(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    service = write(tmp_path)
    options: dict[str, Any] = {"redis_url": redis_url, "namespace": namespace, "workers": 1, "wait": False}
    one = daemon(service, args=("--only", "light"), **options)
    one.wait_ready(60)
    handles = upnext.Worker("handles")

    @handles.task
    async def film(number: int) -> int: ...

    waiting, [who] = film.submit_sync(1), submit(one, "who", 1)
    assert who.value_sync(60) == "who"
    assert json.loads(one.cli("explain", waiting.job_id, "--json").stdout)["gate"] == "no_worker"
    two = daemon(service, args=("--only", "heavy"), **options)
    two.wait_ready(60)
    assert waiting.value_sync(60) == 1


def test_only_a_worker_that_there_is(tmp_path: Path, redis_url: str) -> None:
    one = Daemon(write(tmp_path), redis_url=redis_url, workers=1, args=("--only", "nobody")).launch()
    try:
        assert one.wait(60) == 78
        assert "no worker 'nobody'; there are: light, heavy" in one.log()
        one.assert_nothing_left()
    finally:
        one.close()


SCRIPT = """
    import upnext

    first = upnext.Worker("first", concurrency=1)
    second = upnext.Worker("second", concurrency=3)

    @first.task
    def double(number: int) -> int:
        return 2 * number

    @second.task
    async def triple(number: int) -> int:
        return 3 * number

    if __name__ == "__main__":
        upnext.run(first, second, worker_timeout=5)
"""


def test_several_workers_run_from_a_script(
    redis_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    worker = upnext.Worker("handles")

    @worker.task
    def double(number: int) -> int: ...

    @worker.task
    async def triple(number: int) -> int: ...

    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with subprocess.Popen(dies_with_us([sys.executable, str(script)]), cwd=tmp_path) as process:
        try:
            assert double.submit_sync(2).value_sync(60) == 4
            assert triple.submit_sync(2).value_sync(60) == 6
            process.send_signal(signal.SIGINT)
            assert wait_until(lambda: process.poll() is not None, 60)
            assert process.returncode == 0
        finally:
            process.kill()
