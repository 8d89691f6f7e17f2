"""What a daemon keeps in its state folder is this user's alone, also in a folder that is open to others and with a wide umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.queue import Queue

SERVICE = """
    import os
    import upnext

    worker = upnext.Worker("jobs")

    @worker.task
    def umask() -> int:
        now = os.umask(0)
        os.umask(now)
        return now
"""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def open_to_others(folder: Path) -> dict[str, str]:
    """Path -> mode of each file or folder in `folder`, at any depth, that others may do something with."""
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    return {str(path.relative_to(folder)): oct(mode) for path, mode in modes.items() if mode & 0o077}


def test_in_a_folder_that_is_open_to_others_no_file_is() -> None:
    with umask(0):
        daemon = Daemon(SERVICE, workers=1)
    state = daemon.state
    state.mkdir()
    state.chmod(0o755)
    with umask(0), daemon, Queue(daemon) as queue:
        kept = queue.ended(queue.submit("umask"))
        assert kept.value == b"0", "the service has the umask that the daemon was started with"
        assert (state / "appendonlydir").is_dir()
        assert open_to_others(state) == {}
        assert stat.S_IMODE(state.stat().st_mode) == 0o755, "the folder may be there for others, too"


def test_what_an_earlier_start_left_open_is_mended() -> None:
    daemon = Daemon(SERVICE, workers=1)
    with umask(0), daemon, Queue(daemon) as queue:
        queue.ended(queue.submit("umask"))
        assert daemon.stop() == 0
        for path in daemon.state.rglob("*"):
            if path.exists():
                path.chmod(0o755 if path.is_dir() else 0o644)
        assert "daemon.id" in open_to_others(daemon.state)
        assert any(path.startswith("appendonlydir/") for path in open_to_others(daemon.state))
        daemon.start()
        assert open_to_others(daemon.state) == {}


def test_also_where_the_broker_is_another_one_by_now(redis_url: str, namespace: str) -> None:
    daemon = Daemon(SERVICE, workers=1, redis_url=redis_url, namespace=namespace)
    data = daemon.state / "appendonlydir" / "appendonly.aof.1.incr.aof"
    data.parent.mkdir(parents=True)
    data.touch()
    for path in (data, data.parent, daemon.state):
        path.chmod(0o755)
    with daemon:
        assert open_to_others(daemon.state) == {}
