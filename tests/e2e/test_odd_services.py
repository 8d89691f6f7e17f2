"""Services that do at import, or in a job, what disturbs the process around them."""

from __future__ import annotations

import pytest

from tests.support.daemon import Daemon

_TASKS = """
import multiprocessing, os, signal, sys
import upnext

worker = upnext.Worker("odd")

@worker.task
def add(a: int, b: int) -> int:
    print("added")
    return a + b
"""


def _call(daemon: Daemon, task: str, arguments: str = "{}") -> str:
    done = daemon.cli("call", task, "--kwargs", arguments, "--wait", "--timeout", "30")
    assert done.returncode == 0, done.stderr + daemon.log()
    return done.stdout.strip()


def test_a_job_ends_processes_that_it_forked() -> None:
    source = (
        _TASKS
        + """
@worker.task
def pooled() -> list[int]:
    found = []
    for _ in range(20):
        with multiprocessing.get_context("fork").Pool(2) as pool:  # its end is a SIGTERM to each
            found = pool.map(abs, [-1, -2])
    return found

@worker.task
async def asked_to_quit() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    os.kill(pid, signal.SIGQUIT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    )
    with Daemon(source, workers=1) as daemon:
        before = daemon.worker_pids()
        assert _call(daemon, "pooled") == "[1,2]"
        assert _call(daemon, "asked_to_quit") == "-3"
        assert _call(daemon, "add", '{"a": 1, "b": 2}') == "3"
        assert daemon.worker_pids() == before


@pytest.mark.parametrize(
    "at_import",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "sys.stdout.close(); sys.stderr.close()",
        "sys.stdout = sys.stderr = None",
        "os.closerange(0, 3)",
    ],
)
def test_what_an_import_did_to_its_process_does_not_reach_the_children(at_import: str) -> None:
    with Daemon(_TASKS + at_import, workers=1) as daemon:
        assert _call(daemon, "add", '{"a": 1, "b": 2}') == "3"
        assert "added" in daemon.log()
        assert "the template ended" not in daemon.log()
        assert daemon.stop() == 0


def test_an_import_error_that_is_no_unicode() -> None:
    daemon = Daemon(r'raise ValueError("odd \udcff text")')
    try:
        daemon.launch()
        assert daemon.wait() == 78
        assert "ValueError: odd ? text" in daemon.log().splitlines()[-2]
    finally:
        daemon.close()


def test_thousands_of_tasks() -> None:
    source = (
        _TASKS
        + """
def one_more(number):
    async def task(n: int) -> int:
        return n
    task.__name__ = task.__qualname__ = f"a_task_with_a_name_of_some_length_{number}"
    worker.task()(task)

for number in range(8000):
    one_more(number)
"""
    )
    with Daemon(source, workers=1) as daemon:
        assert _call(daemon, "a_task_with_a_name_of_some_length_7999", '{"n": 7}') == "7"
        assert daemon.ctl("reload", "--wait", timeout_s=90).returncode == 0
        assert daemon.stop() == 0


_OTHER_LAYOUT = "import upnextd.shared.scoreboard\nupnextd.shared.scoreboard.LAYOUT = 1\n"
"""Its children would write their pages in another layout than this daemon reads."""
_OTHER_PROTOCOL = """
import upnextd.shared.messages as m
m.encode = lambda message, encode=m.encode: encode(message).replace(b'"protocol":', b'"protocol":1')
"""


@pytest.mark.parametrize("changed", [_OTHER_LAYOUT, _OTHER_PROTOCOL], ids=["layout", "protocol"])
def test_a_template_of_another_version_is_refused(changed: str) -> None:
    daemon = Daemon(_TASKS + changed, workers=1)
    try:
        daemon.launch()
        assert daemon.wait() == 78
        assert "is another version than this daemon" in daemon.log()
    finally:
        daemon.close()
