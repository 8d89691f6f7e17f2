"""Shared pages in which a child writes what it does and the supervisor reads it, whatever the child's loop is doing.

One page per incarnation: a memfd, little-endian, laid out as

    header      magic u32 · workers u16 · pad u16 · cells u32 · pad u32 · heartbeat u64 · done u64 · failed u64 · retried u64 · pad to 64
    consumers   256 bytes per worker of the service: length u8, then the consumer's name
    cells       48 bytes per job that may run at once, and a few more: started (monotonic s) f64 · entry ms u64 · entry seq u64 ·
                born ms u64 · born seq u64 · task u16 · lane u8 · born u8 · pad u16 · pad u8 · valid u8

    meters      see `upnextd.shared.meters`

The valid byte is written after the rest and cleared first, so a child killed at any instruction leaves no half record: 1 while the job
runs, 2 from its end until the cell is used again, 0 else. A cell's task is the index in the task list of its worker; workers' cells
follow each other.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upnext.core.suspects import SPARE_CELLS
from upnextd.shared import meters
from upnextd.shared.kernel import Kernel, Memory
from upnextd.shared.meters import Meter, Meters

_HEADER = struct.Struct("<IHHII QQQQ")
_MAGIC = struct.Struct("<I")
_HEADER_BYTES = 64
_HEARTBEAT_AT = 16
_COUNTS_AT = 24
_RETRIED_AT = 40
_COUNTER = struct.Struct("<Q")
_COUNTS = struct.Struct("<QQ")
CONSUMER_CAP_BYTES = 256
_CELL = struct.Struct("<dQQQQHBB")
_CELL_BYTES = 48
_VALID = 47
_RUNS, _HAS_ENDED = 1, 2
LAYOUT = zlib.crc32(
    repr(
        (
            _HEADER.format,
            _HEADER_BYTES,
            CONSUMER_CAP_BYTES,
            _CELL.format,
            _CELL_BYTES,
            _VALID,
            SPARE_CELLS,
            meters.LAYOUT,
        )
    ).encode()
)
"""The magic number of this layout: another one makes another number."""
ENDED_CAP = 256
"""Of the jobs that ended last, those that started last are reported."""
_pack_cell = _CELL.pack_into
_pack_counter = _COUNTER.pack_into
_pack_counts = _COUNTS.pack_into
_monotonic = time.monotonic


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """What of a Worker decides its part of the page."""

    name: str
    concurrency: int
    tasks: tuple[str, ...]

    @property
    def cells(self) -> int:
        return self.concurrency + SPARE_CELLS


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a page says has started."""

    job_id: str
    task: str
    lane: str
    entry_id: str
    age_s: float


def _age(job: RunningJob) -> float:
    return job.age_s


def page_bytes(shapes: Sequence[WorkerShape]) -> int:
    return _meters_at(shapes) + meters.bytes_for(sum(len(shape.tasks) for shape in shapes))


def _meters_at(shapes: Sequence[WorkerShape]) -> int:
    return _HEADER_BYTES + len(shapes) * CONSUMER_CAP_BYTES + sum(shape.cells for shape in shapes) * _CELL_BYTES


def create(kernel: Kernel, shapes: Sequence[WorkerShape], name: str) -> int:
    """A new page; returns its descriptor. Raises OSError."""
    cells = sum(shape.cells for shape in shapes)
    header = _HEADER.pack(LAYOUT, len(shapes), 0, cells, 0, 0, 0, 0, 0)
    return kernel.memory(name, page_bytes(shapes), header)


def map_writable(fd: int, shapes: Sequence[WorkerShape]) -> mmap.mmap:
    """For the child that writes it."""
    return mmap.mmap(fd, page_bytes(shapes))


def _check(page: Any) -> None:
    """Raises RuntimeError for a page that another version of this program has made."""
    (magic,) = _MAGIC.unpack_from(page)
    if magic != LAYOUT:
        raise RuntimeError(f"the page has layout {magic:#x}, this version of upnextd writes {LAYOUT:#x}")


class Writer:
    """The child's side of a page."""

    def __init__(self, page: mmap.mmap | bytearray, shapes: Sequence[WorkerShape]) -> None:
        self._page: Any = page
        _check(self._page)
        self._heartbeat = 0
        self._done = 0
        self._failed = 0
        self._retried = 0
        self._is_retried = False
        self._shapes = tuple(shapes)
        self._first_cell = [0] * len(shapes)
        offset = _HEADER_BYTES + len(shapes) * CONSUMER_CAP_BYTES
        for index, shape in enumerate(shapes):
            self._first_cell[index] = offset
            offset += shape.cells * _CELL_BYTES

    def beat(self) -> None:
        self._heartbeat += 1
        _pack_counter(self._page, _HEARTBEAT_AT, self._heartbeat)

    def consumer(self, worker: int, consumer: str) -> None:
        raw = consumer.encode()
        if len(raw) >= CONSUMER_CAP_BYTES:
            raise ValueError(f"consumer name of {len(raw)} bytes")
        at = _HEADER_BYTES + worker * CONSUMER_CAP_BYTES
        self._page[at] = 0
        self._page[at + 1 : at + 1 + len(raw)] = raw
        self._page[at] = len(raw)

    def host_of(self, worker: int) -> CellWriter:
        """Writes the cells of one Worker."""
        return CellWriter(self, self._page, self._first_cell[worker])

    def metered_host_of(self, worker: int) -> MeteredCellWriter:
        """As `host_of`, and counts per task."""
        first_task = sum(len(shape.tasks) for shape in self._shapes[:worker])
        meter = Meter(self._page, _meters_at(self._shapes), first_task, self._shapes[worker].cells)
        return MeteredCellWriter(self.host_of(worker), meter)

    def meter(self) -> Meter:
        """Counts by the rows of the first Worker."""
        return Meter(self._page, _meters_at(self._shapes), 0, 0)

    def retried(self) -> None:
        """What is counted next is an attempt that failed and was not its job's last."""
        self._is_retried = True

    def count(self, ok: bool) -> None:
        if ok:
            self._done += 1
        elif self._is_retried:
            self._is_retried = False
            self._retried += 1
            _pack_counter(self._page, _RETRIED_AT, self._retried)
            return
        else:
            self._failed += 1
        _pack_counts(self._page, _COUNTS_AT, self._done, self._failed)


class CellWriter:
    """Writes starts and ends of one Worker's jobs: the part that is paid per job."""

    __slots__ = ("_first", "_page", "_writer")

    def __init__(self, writer: Writer, page: Any, first: int) -> None:
        self._writer = writer
        self._page = page
        self._first = first

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None:
        at = self._first + cell * _CELL_BYTES
        page = self._page
        _pack_cell(page, at, _monotonic(), entry_ms, entry_seq, born_ms, born_seq, task, lane, born)
        page[at + _VALID] = _RUNS

    def parked(self, cell: int) -> None:
        self._page[self._first + cell * _CELL_BYTES + _VALID] = 0

    def ended(self, cell: int, ok: bool) -> None:
        self._page[self._first + cell * _CELL_BYTES + _VALID] = _HAS_ENDED
        self._writer.count(ok)

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        del task, entry_ms, entry_seq
        self._writer.count(ok)


class MeteredCellWriter:
    """Writes cells and meters."""

    __slots__ = ("_cells", "_meter")

    def __init__(self, cells: CellWriter, meter: Meter) -> None:
        self._cells = cells
        self._meter = meter

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None:
        self._cells.started(cell, task, lane, entry_ms, entry_seq, born, born_ms, born_seq)
        self._meter.started(cell, task, entry_ms, entry_seq)

    def parked(self, cell: int) -> None:
        self._cells.parked(cell)
        self._meter.parked(cell)

    def ended(self, cell: int, ok: bool) -> None:
        self._cells.ended(cell, ok)
        self._meter.ended(cell, ok)

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        self._cells.ended_parked(task, entry_ms, entry_seq, ok)
        self._meter.ended_parked(task, entry_ms, entry_seq, ok)


class Reader:
    """The supervisor's side of a page. Outlives the child."""

    def __init__(self, page: Memory, shapes: Sequence[WorkerShape]) -> None:
        self._page: Any = page
        _check(self._page)
        self._shapes = tuple(shapes)

    def close(self) -> None:
        self._page.close()

    @property
    def heartbeat(self) -> int:
        return _COUNTER.unpack_from(self._page, _HEARTBEAT_AT)[0]

    @property
    def done(self) -> int:
        return _COUNTER.unpack_from(self._page, _COUNTS_AT)[0]

    @property
    def failed(self) -> int:
        """Jobs that ended without a value; not attempts after which the job runs again."""
        return _COUNTER.unpack_from(self._page, _COUNTS_AT + 8)[0]

    @property
    def attempts(self) -> int:
        """Attempts that are over, also those after which the job runs again."""
        return self.done + self.failed + _COUNTER.unpack_from(self._page, _RETRIED_AT)[0]

    def consumers(self) -> list[str]:
        """Current consumer of every Worker, in order; "" where it has none yet."""
        names: list[str] = []
        for worker in range(len(self._shapes)):
            at = _HEADER_BYTES + worker * CONSUMER_CAP_BYTES
            length = min(self._page[at], CONSUMER_CAP_BYTES - 1)
            names.append(self._page[at + 1 : at + 1 + length].decode("utf-8", "replace"))
        return names

    def running(self, now: float) -> list[list[RunningJob]]:
        """Jobs of every Worker that have started and not ended, in order. `now`: monotonic seconds."""
        return self._jobs(_RUNS, now)

    def ended(self, now: float) -> list[list[RunningJob]]:
        """Jobs of every Worker, in order, that ended last: the child need not have recorded that yet. At most ENDED_CAP of each."""
        return [sorted(jobs, key=_age)[:ENDED_CAP] for jobs in self._jobs(_HAS_ENDED, now)]

    def _jobs(self, valid: int, now: float) -> list[list[RunningJob]]:
        at = _HEADER_BYTES + len(self._shapes) * CONSUMER_CAP_BYTES
        found: list[list[RunningJob]] = []
        for shape in self._shapes:
            jobs: list[RunningJob] = []
            for _ in range(shape.cells):
                if self._page[at + _VALID] == valid:
                    job = self._job(at, shape, now)
                    if job is not None:
                        jobs.append(job)
                at += _CELL_BYTES
            found.append(jobs)
        return found

    def meters(self) -> Meters:
        """What was counted per task."""
        return meters.read(self._page, _meters_at(self._shapes), [task for s in self._shapes for task in s.tasks])

    def busy(self) -> int:
        """How many jobs run."""
        first = _HEADER_BYTES + len(self._shapes) * CONSUMER_CAP_BYTES + _VALID
        return self._page[first : _meters_at(self._shapes) : _CELL_BYTES].count(_RUNS)

    @property
    def ran_job(self) -> bool:
        return self.attempts > 0 or self.busy() > 0

    def _job(self, at: int, shape: WorkerShape, now: float) -> RunningJob | None:
        fields: tuple[float, int, int, int, int, int, int, int] = _CELL.unpack_from(self._page, at)
        started, entry_ms, entry_seq, born_ms, born_seq, task, lane, born = fields
        if task >= len(shape.tasks):
            return None
        name = shape.tasks[task]
        job_id = f"{name}:{chr(born)}{born_ms}-{born_seq}"
        return RunningJob(job_id, name, chr(lane), f"{entry_ms}-{entry_seq}", max(0.0, now - started))
