"""The supervisor's side of `--metrics`: the process that serves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from upnextd.shared.companion import Companion
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log


class Exporter(Companion):
    """Keeps one process. `order` makes what it is to do, anew for each."""

    def __init__(self, order: Callable[[], dict[str, Any]], env: Mapping[str, str], log: Log, kernel: Kernel) -> None:
        super().__init__("metrics", "upnextd.metrics.exporter_process:main", order, env, log, kernel)
