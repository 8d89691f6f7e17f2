"""What a worker's runtime reports to the process around it."""

from __future__ import annotations

from typing import Protocol


class Host(Protocol):
    """Calls come from the loop's thread and must not block."""

    def consumer(self, consumer: str) -> None:
        """The name under which the runtime is about to register; a new one after it was reaped."""
        ...

    def ready(self) -> None:
        """Registered, and the first fetch is out."""
        ...

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None:
        """An attempt starts in `cell` (below concurrency + SPARE_CELLS).

        `task` counts in WorkerSpec.tasks' order; `lane`, `born` are ord(letter).
        """
        ...

    def failed(self, job_id: str, task: str, error: str) -> None:
        """An attempt failed, before its `ended`. `error` is one line, of `upnext.engine.worker.failures.headline`. Not for a cancel."""
        ...

    def retried(self) -> None:
        """The attempt that ends next, not ok, is not its job's last one: it counts as no failure of the job."""
        ...

    def ended(self, cell: int, ok: bool) -> None:
        """The attempt in `cell` is over; its end is not recorded yet."""
        ...

    def parked(self, cell: int) -> None:
        """The attempt in `cell` waits for another job and gave its place up; it `started`s again later, maybe elsewhere."""
        ...

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        """An attempt that has no cell, since it was parked, is over."""
        ...

    def stuck(self, job_id: str, reason: str) -> None:
        """A job can't be stopped in this process (a thread past its timeout's grace): the process should be replaced."""
        ...


class NoHost:
    """A process that keeps no scoreboard."""

    def consumer(self, consumer: str) -> None: ...

    def ready(self) -> None: ...

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None: ...

    def failed(self, job_id: str, task: str, error: str) -> None: ...

    def retried(self) -> None: ...

    def ended(self, cell: int, ok: bool) -> None: ...

    def parked(self, cell: int) -> None: ...

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None: ...

    def stuck(self, job_id: str, reason: str) -> None: ...
