"""Secrets under the daemon: each worker reads them, nobody else has them, and one that can't be had is no reason to give up."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.queue import Queue
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until

FILE_VALUE, PROGRAM_VALUE = "sk-file-7f3a91c2d8", "sk-program-0b6e44ac19"
SERVICE = """
import logging
import upnext

worker = upnext.Worker("pay", secrets={names})
pooled_worker = upnext.Worker("pooled", sync_executor="process", secrets=["file_key"])

@worker.task
async def lengths() -> list[int]:
    return [len(upnext.secret(name).value) for name in {names}]

@worker.task
async def leak() -> None:
    for name in {names}:
        logging.getLogger("pay").warning("trying %s", upnext.secret(name).value)
    raise ValueError(f"refused: {{upnext.secret('file_key').value}} {{upnext.secret('program_key').value}}")

@pooled_worker.task
def pooled() -> int:
    return len(upnext.secret("file_key").value)

@pooled_worker.task
def pooled_leak() -> None:
    raise ValueError(upnext.secret("file_key").value)
"""
LIFESPAN_FAILS = """
@worker.lifespan
async def resources():
    raise RuntimeError("no pool")
    yield
"""


def source(*names: str) -> str:
    return SERVICE.format(names=list(names))


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    """Options that name a folder with one secret and a program that gives another."""
    folder, program = tmp_path / "secrets", tmp_path / "give"
    folder.mkdir()
    (folder / "file_key").write_text(f"{FILE_VALUE}\n")
    program.write_text(f'#!/bin/sh\n[ -e "{tmp_path}/sealed" ] && echo sealed >&2 && exit 3\ncat "{tmp_path}/of_$1"\n')
    program.chmod(0o755)
    (tmp_path / "of_program_key").write_text(PROGRAM_VALUE)
    return "--secrets-dir", str(folder), "--secrets-exec", str(program)


def held_by(pid: int) -> bytes:
    """The writable memory of a process, and its environment."""
    found = [Path(f"/proc/{pid}/environ").read_bytes()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            first, last = (int(end, 16) for end in span.split("-"))
            try:
                memory.seek(first)
                found.append(memory.read(last - first))
            except (OSError, OverflowError):
                continue
    return b"".join(found)


def test_they_are_where_the_jobs_are_and_nowhere_else(places: tuple[str, ...]) -> None:
    daemon = Daemon(
        source("file_key", "program_key"), workers=2, args=(*places, "--metrics", f"127.0.0.1:{free_port()}")
    )
    with daemon, Queue(daemon) as queue:
        lengths = [len(FILE_VALUE), len(PROGRAM_VALUE)]
        assert queue.ended(queue.submit("lengths")).value == str(lengths).replace(" ", "").encode()
        assert queue.ended(queue.submit("pooled")).value == str(lengths[0]).encode()
        dead = [queue.ended(queue.submit(name)) for name in ("leak", "pooled_leak")]
        assert [one.error and "[secret file_key]" in one.error.message for one in dead] == [True, True]
        assert daemon.status()["secrets"] == [
            {"name": "file_key", "source": "directory"},
            {"name": "program_key", "source": "exec"},
        ]
        children = {child["slot"]: child["pid"] for child in daemon.status()["children"] if child["pid"]}
        shown = [daemon.ctl(*words).stdout for words in (("status", "--json"), ("stacks", "worker-1"))]
        listed = subprocess.run(
            [str(BIN / "upnext"), "--redis-url", daemon.broker_url, "dead", "list", "--json"],
            capture_output=True,
            text=True,
            timeout=given(30),
            check=True,
        )
        texts = {"log": daemon.log(), "shown": "".join(shown), "dead letters": listed.stdout}
        files = {str(path): path.read_bytes() for path in daemon.state.rglob("*") if path.is_file()}
        processes = {slot: held_by(pid) for slot, pid in children.items() if not slot.startswith("worker")}
        processes["supervisor"] = held_by(daemon.pid)
        worker = held_by(children["worker-1"])
    assert "trying [secret file_key]" in texts["log"]
    assert {"template", "scheduler", "broker", "supervisor"} <= processes.keys()
    for value in (FILE_VALUE, PROGRAM_VALUE):
        assert value.encode() in worker, "the search finds what is there"
        for name, text in texts.items():
            assert value not in text, name
        for name, raw in {**files, **processes}.items():
            assert value.encode() not in raw, name


def test_the_environment_is_a_source_that_other_processes_do_not_get(tmp_path: Path) -> None:
    names = {"UPNEXT_SECRET_FILE_KEY": FILE_VALUE, "UPNEXT_SECRET_PROGRAM_KEY": PROGRAM_VALUE}
    with Daemon(source("file_key", "program_key"), workers=1, env=names) as daemon, Queue(daemon) as queue:
        queue.ended(queue.submit("lengths"))
        assert [one["source"] for one in daemon.status()["secrets"]] == ["environment", "environment"]
        assert FILE_VALUE.encode() not in Path(f"/proc/{daemon.child('broker')['pid']}/environ").read_bytes()


def test_a_reload_that_lacks_one_fails_and_the_old_code_goes_on(places: tuple[str, ...]) -> None:
    with Daemon(source("file_key", "program_key"), workers=1, args=places) as daemon:
        before = daemon.worker_pids()
        daemon.rewrite(source("file_key", "program_key", "new_key"))
        reloaded = daemon.ctl("reload", "--wait")
        assert reloaded.returncode == 1
        assert "secret 'new_key'" in reloaded.stderr + daemon.log()
        assert "Traceback" not in reloaded.stderr + daemon.log(), "one line says all"
        daemon.rewrite(source("file_key", "program_key") + LIFESPAN_FAILS)
        reloaded = daemon.ctl("reload", "--wait")
        assert reloaded.returncode == 1
        assert "\nerror: upnextd: can't start\n" in reloaded.stderr, "what it logged is shown as people read it"
        assert '{"l":' not in reloaded.stderr
        assert daemon.worker_pids() == before
        with Queue(daemon) as queue:
            queue.ended(queue.submit("lengths"))


def test_a_source_that_is_away_is_waited_for(places: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "sealed").touch()
    daemon = Daemon(source("file_key", "program_key"), workers=1, args=places).launch()
    try:
        wait_until(lambda: "sealed" in (daemon.log()), 30, "the refusal in the log")
        wait_until(lambda: daemon.ctl("status").returncode == 4, 30, "a degraded daemon")
        assert daemon.exit_code is None
        (tmp_path / "sealed").unlink()
        daemon.wait_ready(60)
        assert daemon.ctl("status").returncode == 0
    finally:
        daemon.close()


def check(service: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "upnextd"), "check", str(service), "--secrets", *args],
        capture_output=True,
        text=True,
        timeout=given(60),
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )


def test_check_reads_them(places: tuple[str, ...], tmp_path: Path) -> None:
    service = tmp_path / "service.py"
    service.write_text(source("file_key", "program_key"))
    fine = check(service, *places)
    assert fine.returncode == 0, fine.stderr
    assert fine.stdout.splitlines()[-2:] == ["secret file_key: directory", "secret program_key: exec"]
    missing = check(service, *places[:2])
    assert missing.returncode == 78
    assert re.search(
        r"secret 'program_key' is missing: it is not in .*/program_key, \$UPNEXT_SECRET_PROGRAM_KEY", missing.stderr
    )
    assert "Traceback" not in missing.stderr
    assert FILE_VALUE not in fine.stdout + fine.stderr + missing.stdout + missing.stderr


def test_check_knows_apis_and_their_secrets(places: tuple[str, ...], tmp_path: Path) -> None:
    service = tmp_path / "service.py"
    service.write_text('import upnext\napi = upnext.Api("front", port=8123, processes=2, secrets=["file_key"])\n')
    fine = check(service, *places)
    assert fine.returncode == 0, fine.stderr
    assert fine.stdout.splitlines()[1:] == [
        "api front at http://127.0.0.1:8123 (processes 2)",
        "secret file_key: directory",
    ]
    assert check(service).returncode == 78


def test_one_that_is_asked_for_at_import_is_refused(places: tuple[str, ...], tmp_path: Path) -> None:
    service = tmp_path / "service.py"
    service.write_text(
        'import upnext\nworker = upnext.Worker("pay", secrets=["file_key"])\nKEY = upnext.secret("file_key")\n'
    )
    found = check(service, *places)
    assert found.returncode == 78
    assert "ask for them in a task or a lifespan, not at import" in found.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--secrets-dir", "/none/such"), "--secrets-dir /none/such: no such folder"),
        (("--secrets-exec", "/none/such"), "--secrets-exec /none/such: no such program"),
    ],
)
def test_places_that_are_not_there_are_refused_at_the_start(args: tuple[str, ...], words: str) -> None:
    daemon = Daemon(source("file_key"), workers=1, args=args).launch()
    try:
        assert daemon.wait() == 64
        assert words in daemon.log()
    finally:
        daemon.close()
