"""A deploy that moves the link `current` to the next release: a reload follows it, however the service was named."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until

SERVICE = """
import os
import upnext

worker = upnext.Worker("jobs")

@worker.task
async def release() -> list[str]:
    return ["{release}", os.path.basename(os.getcwd())]
"""


def in_releases(service: str, *args: str) -> Daemon:
    """Started in `current`, which leads to the first of two releases, as a shell does after `cd current`."""
    daemon = Daemon(Path(service), workers=1, args=args, env={"UPNEXTD_CANARY_S": "0.1"})
    for release in ("one", "two"):
        (daemon.directory / release).mkdir()
        (daemon.directory / release / "svc.py").write_text(SERVICE.format(release=release))
    daemon.cwd = daemon.directory / "current"
    daemon._env["PWD"] = str(daemon.cwd)
    deploy(daemon, "one")
    return daemon


def deploy(daemon: Daemon, release: str) -> None:
    beside = daemon.directory / "beside"
    beside.symlink_to(release)
    os.replace(beside, daemon.cwd)


def answers(queue: Queue) -> bytes | None:
    return queue.ended(queue.submit("release")).value


@pytest.mark.parametrize(("service", "args"), [("svc.py", ()), ("svc", ()), ("svc.py", ("--no-preload",))])
def test_a_reload_follows_the_link(service: str, args: tuple[str, ...]) -> None:
    with in_releases(service, *args) as daemon, Queue(daemon) as queue:
        assert answers(queue) == b'["one","one"]'
        deploy(daemon, "two")
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert answers(queue) == b'["two","two"]'


def test_after_an_upgrade_it_still_does() -> None:
    with in_releases("svc.py") as daemon, Queue(daemon) as queue:
        deploy(daemon, "two")
        before = daemon.worker_pids()
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded" in daemon.log(), 30, "the upgrade")
        daemon.wait_ready()
        assert daemon.worker_pids() == before
        deploy(daemon, "one")
        deploy(daemon, "two")
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert answers(queue) == b'["two","two"]'


def test_where_pwd_leads_elsewhere_the_place_itself_counts() -> None:
    daemon = in_releases("svc.py")
    daemon._env["PWD"] = "/"
    with daemon, Queue(daemon) as queue:
        assert answers(queue) == b'["one","one"]'
