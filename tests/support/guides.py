"""The guides' own code: each block of a page that begins with a file's name, written to that file, and programs that run it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.daemon import BIN
from tests.support.processes import dies_with_us
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```\w+\n# ([\w./-]+\.\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """path -> text of the files that `docs/guides/PAGE` shows."""
    text = (ROOT / "docs" / "guides" / page).read_text()
    found = {path: f"# {path}\n{source}" for path, source in _BLOCK.findall(text)}
    assert found, f"{page} shows no file"
    return found


def write(page: str, folder: Path) -> None:
    """Writes the files of a guide below `folder`."""
    for path, text in files(page).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def python(*args: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python ARGS` in the folder of a guide, to its end; a warning is an error, as in the project's own tests."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=given(60),
        check=False,
    )


class WebApp:
    """A web server of a guide, in a process of its own, on a free port of this machine."""

    def __init__(self, *command: str, folder: Path, environment: Mapping[str, str], path: str = "/") -> None:
        """`command` has `PORT` where the port goes; `path` is asked until the server answers."""
        self.port = free_port()
        self._command = [str(BIN / command[0]), *(word.replace("PORT", str(self.port)) for word in command[1:])]
        self._folder, self._environment, self._path = folder, _environment(environment), path
        self._log = folder / "web.log"

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us(self._command), cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )
        try:
            wait_until(self._answers, 20, "the web server to answer")
        except AssertionError as error:
            error.add_note(self.log())
            self._process.kill()
            self._process.wait(given(10))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(given(15))
        finally:
            self._process.kill()
            self._process.wait(given(10))

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the web server ended"
        try:
            self.request("GET", self._path)
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        """The JSON of an answer with 200."""
        status, answer = self.request("GET", path)
        assert status == 200, (status, answer, self.log())
        return answer

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """-> (status, the JSON of the answer, or its text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=given(15))
        try:
            raw = None if body is None else json.dumps(body)
            connection.request(method, path, raw, {"Content-Type": "application/json"} if raw else {})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONWARNINGS": "error", **more}
