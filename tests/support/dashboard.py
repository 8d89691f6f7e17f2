"""`upnext dashboard` as a process beside a daemon, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.daemon import BIN, Daemon
from tests.support.processes import dies_with_us
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Dashboard:
    """`upnext dashboard` on a free port of this machine, for the queue and the control socket of `daemon`."""

    def __init__(self, daemon: Daemon, *args: str) -> None:
        self.port = free_port()
        self.listen = f"127.0.0.1:{self.port}"
        self.state = daemon.directory / "dashboard"
        self.log_path = daemon.directory / "dashboard.log"
        self._args = args
        self._daemon = daemon
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self._daemon.environment,
            "UPNEXT_REDIS_URL": self._daemon.broker_url,
            "UPNEXTD_SOCKET": str(self._daemon.socket_path),
        }

    def command(self, *args: str) -> list[str]:
        """`upnext dashboard ARGS` with this one's address and state."""
        return [
            str(BIN / "upnext"),
            *("dashboard", "--listen", self.listen, "--state-dir", str(self.state)),
            *self._args,
            *args,
        ]

    def __enter__(self) -> Self:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us(self.command()), env=self.environment, cwd=self._daemon.directory, stdout=log, stderr=log
            )
        wait_until(self._answers, 30, "the dashboard to answer")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(given(20))
        assert code == 0, self.log()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return self.request("GET", "/healthz", token=None).status == 200
        except OSError:
            return False

    @property
    def token(self) -> str:
        return Path(self.state, "dashboard.token").read_text().strip()

    def link(self) -> str:
        """What `upnext dashboard url` prints."""
        done = subprocess.run(
            self.command("url"), env=self.environment, capture_output=True, text=True, timeout=given(30), check=True
        )
        return done.stdout.strip()

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, Any] | None = None,
        accept: str = "application/json",
    ) -> Answer:
        """One request. token: "" is the dashboard's own, None is none. `headers` overrule what is sent otherwise; "" leaves one out."""
        sent = {"Host": self.listen, "Accept": accept}
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        body = None
        if form is not None:
            body = urllib.parse.urlencode(form, doseq=True)
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=given(20))
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**sent, "Content-Length": str(len(body or ""))}.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body.encode() if body else None)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, form: Mapping[str, Any] | None = None, **options: Any) -> Answer:
        return self.request("POST", path, form=form or {}, **options)

    def submit(self, task: str, **kwargs: Any) -> str:
        """Run a task with these arguments by its page -> the job's id."""
        answer = self.post(f"/tasks/{task}/run", {"kwargs": json.dumps(kwargs)})
        assert answer.status == 200, answer.text
        return answer.json["job_id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/jobs/{urllib.parse.quote(job_id)}").json

    def cookie(self, answer: Answer) -> str:
        """The session's cookie that an answer sets, as a browser sends it back."""
        return answer.headers["set-cookie"].partition(";")[0]


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
