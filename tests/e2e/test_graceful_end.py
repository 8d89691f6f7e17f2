"""What a service registered with `atexit` in a worker runs at each graceful end; what its import registered runs in no worker."""

from __future__ import annotations

import pytest

from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

SERVICE = """
import atexit, os, tempfile
import upnext

worker = upnext.Worker("jobs")
shared = tempfile.TemporaryDirectory()
held = []

def flush() -> None:
    with open("flushed", "a") as file:
        file.write("".join(f"{i}\\n" for i in held))

@worker.task
async def job(i: int) -> bool:
    if not held:
        atexit.register(flush)
    held.append(i)
    return os.path.isdir(shared.name)
"""


@pytest.mark.parametrize(
    ("args", "end"),
    [
        ((), ("stop",)),
        ((), ("reload", "--wait")),
        ((), ("restart", "worker-1", "--wait")),
        (("--max-jobs", "20"), None),
        (("--no-preload",), ("stop",)),
    ],
)
def test_what_a_worker_holds_back_is_written_at_its_end(args: tuple[str, ...], end: tuple[str, ...] | None) -> None:
    with Daemon(SERVICE, workers=1, args=args, env={"UPNEXTD_CANARY_S": "0.3"}) as daemon:
        flushed = daemon.directory / "flushed"
        for i in range(20):
            done = daemon.cli("call", "job", "--kwargs", f'{{"i": {i}}}', "--wait")
            assert done.stdout.strip() == "true", done.stderr
        if end is not None:
            assert daemon.ctl(*end).returncode == 0
        wait_until(flushed.exists, 20, "the handler to run")
        wait_until(lambda: flushed.read_text().split() == [str(i) for i in range(20)], 5)
        if end != ("stop",):
            # The directory of the import is there for the next worker, too.
            done = daemon.cli("call", "job", "--kwargs", '{"i": 0}', "--wait")
            assert done.stdout.strip() == "true", (done.stderr, daemon.log())
