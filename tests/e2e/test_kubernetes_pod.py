"""What a pod of deploy/kubernetes does, with the manifest's own commands and environment, in folders as its mounts are."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.daemon import BIN, Daemon
from tests.support.manifests import container
from tests.support.processes import dies_with_us
from tests.support.queue import Queue
from tests.support.servers import Server, free_port
from tests.support.waiting import given, wait_until
from upnext.core.outcome import JobStatus

SERVICE = """
    import asyncio
    import pathlib
    import upnext

    worker = upnext.Worker("orders", secrets=["stripe_key"])

    @worker.task
    async def charge(name: str) -> int:
        pathlib.Path(name).touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.02)
        return len(upnext.secret("stripe_key").value)
"""
LIVE, GONE = 0, 1


def mounted(words: list[str], folder: Path) -> list[str]:
    """The words of a manifest, with its mounts in `folder`, each open to others as those of Kubernetes are."""
    for mount in ("/var/lib/upnext", "/run/upnext", "/run/secrets/orders"):
        place = folder / mount.rpartition("/")[2]
        place.mkdir(exist_ok=True)
        place.chmod(0o2777)
        words = [word.replace(mount, str(place)) for word in words]
    return words


def environment(one: dict[str, Any], folder: Path, **changed: str) -> dict[str, str]:
    values = mounted([variable["value"] for variable in one["env"]], folder)
    ours = dict(zip([variable["name"] for variable in one["env"]], values, strict=True))
    known = {name: value for name, value in os.environ.items() if not name.startswith("UPNEXT")}
    return {**known, "PATH": f"{BIN}:{os.environ['PATH']}", **ours, **changed}


class Pod(Daemon):
    """`upnextd start` as the manifest has it: every place comes from its environment."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(SERVICE)
        self.manifest = container("orders-worker")
        (self.directory / "orders").mkdir()
        (self.directory / "orders" / "redis-url").write_text(f"{redis_url}\n")
        (self.directory / "orders" / "stripe_key").write_text("0123456789")
        self._pod = environment(self.manifest, self.directory, UPNEXTD_METRICS=f"127.0.0.1:{free_port()}")
        self.socket_path = self.directory / "upnext" / "sockets" / "service.sock"
        self.redis_url = redis_url

    @property
    def command(self) -> list[str]:
        words = [word.replace("/srv/service.py", str(self.service)) for word in self.manifest["args"]]
        return [str(BIN / "upnextd"), *words, "--workers", "1"]

    @property
    def environment(self) -> dict[str, str]:
        return {**self._pod, "UPNEXT_TEST_DIRECTORY": self.directory.name}

    def run(self, what: dict[str, Any]) -> subprocess.Popen[str]:
        """A probe or a hook of the manifest, which goes on meanwhile."""
        return subprocess.Popen(what["exec"]["command"], env=self.environment, cwd=self.directory, text=True)

    def probe(self, name: str) -> int:
        """Its exit code; a kubelet that lost patience counts as a failure."""
        probing = self.run(self.manifest[name])
        try:
            return probing.wait(given(self.manifest[name]["timeoutSeconds"]))
        except subprocess.TimeoutExpired:
            probing.kill()
            probing.wait()
            return GONE


def test_a_pod_starts_is_probed_drains_and_stops() -> None:
    with Server() as broker, Pod(broker.url) as pod, Queue(pod) as queue:
        assert [pod.probe(name) for name in ("startupProbe", "livenessProbe", "readinessProbe")] == [LIVE] * 3
        running = queue.submit("charge", name="begun")
        wait_until((pod.directory / "begun").exists, 10, "the job to run")
        draining = pod.run(pod.manifest["lifecycle"]["preStop"])
        wait_until(lambda: pod.status()["mode"] == "draining", 10)
        left = queue.submit("charge", name="later")
        assert pod.probe("livenessProbe") == LIVE, "a pod that drains is not to be killed"
        assert draining.poll() is None
        (pod.directory / "go").touch()
        assert draining.wait(given(10)) == 0
        assert queue.ended(running).value == b"10"
        assert queue.statuses([left]) == [JobStatus.QUEUED], "for another pod"
        assert pod.stop() == 0
        assert pod.probe("livenessProbe") == GONE


def test_an_outage_of_redis_ends_no_pod_and_a_daemon_that_stands_still_does() -> None:
    with Server() as broker, Pod(broker.url) as pod:
        broker.kill()
        wait_until(lambda: not pod.status()["broker"]["connected"], 20, "the daemon to see that its broker is away")
        assert (pod.probe("readinessProbe"), pod.probe("livenessProbe")) == (4, LIVE)
        broker.restart()
        wait_until(lambda: pod.probe("readinessProbe") == LIVE, 20, "the pod to be ready again")
        pod.signal(signal.SIGSTOP)
        try:
            assert pod.probe("livenessProbe") != LIVE
        finally:
            pod.signal(signal.SIGCONT)


def test_the_dashboard_s_pod_answers_its_probe_and_shows_nothing(tmp_path: Path) -> None:
    one, port = container("orders-dashboard"), free_port()
    with Server() as broker:
        words = mounted([*one["command"], *one["args"]], tmp_path)
        (tmp_path / "orders" / "redis-url").write_text(f"{broker.url}\n")
        (tmp_path / "orders" / "dashboard-users").write_text("")
        added = subprocess.run(
            [BIN / "upnext", "dashboard", "adduser", "anna", "--role", "admin"],
            input="correct horse\ncorrect horse\n", capture_output=True, text=True, check=True,
        )  # fmt: skip
        users = tmp_path / "orders" / "dashboard-users"
        users.write_text(next(line for line in added.stdout.splitlines() if line.startswith("anna:")) + "\n")
        users.chmod(0o440)
        command = [word.replace("8300", str(port)) for word in words]
        process = subprocess.Popen(
            dies_with_us(command), env=environment(one, tmp_path, STATE_DIRECTORY=str(tmp_path / "state")), cwd=tmp_path
        )
        try:
            wait_until(lambda: process.poll() is None and answer(port, "/healthz") == 200, 20, "the probe")
            assert answer(port, "/jobs") == 401
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                assert broker.url.encode() not in file.read(), "the URL may hold a password"
        finally:
            process.kill()
            process.wait()


def answer(port: int, path: str) -> int | None:
    """The status; None when nothing listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=given(5)) as found:
            return found.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None
