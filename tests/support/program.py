"""`upnext ARGS` in the background, as a developer has it in a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import dies_with_us
from tests.support.waiting import wait_until

UPNEXT = str(Path(sys.executable).parent / "upnext")


class Program:
    """`upnext ARGS` in the background, with its log."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                dies_with_us([UPNEXT, *arguments]),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return self._log.read_text()

    def ready(self, times: int = 1) -> None:
        def count() -> bool:
            assert self.process.poll() is None, self.log()
            return self.log().count("ready (Ctrl-C ends it)") >= times

        wait_until(count, 30, "upnext run to be ready")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(100)
