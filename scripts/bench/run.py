"""Drives the peer benchmark harness with our adapter, then prints medians and ratios."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "upnextd"
FLOOR = "floor"
BUSY_PERCENT = 10
"""Runs that began while others used more of the machine are left out of the medians."""

# (title, path in the values of a run, better when higher)
ROWS = (
    ("drain, 1 worker, jobs/s", "1p", True),
    ("drain, 2 workers, jobs/s", "2p", True),
    ("drain, 10 KiB argument, jobs/s", "payload", True),
    ("enqueue one by one, /s", "enqueue.sequential", True),
    ("enqueue 100 in flight, /s", "enqueue.concurrent", True),
    ("enqueue in bulk, /s", "enqueue.bulk", True),
    ("submit and wait, p50 ms", "roundtrip_ms.p50", False),
    ("submit and wait, p99 ms", "roundtrip_ms.p99", False),
    ("start latency at 300/s, p50 ms", "open_loop_ms.p50", False),
    ("start latency at 300/s, p99 ms", "open_loop_ms.p99", False),
    ("delayed, lateness p50 ms", "delayed_ms.p50", False),
    ("delayed, lateness p99 ms", "delayed_ms.p99", False),
    ("idle, CPU %", "idle_cpu_percent", False),
    ("idle, requests/s", "idle_commands_per_s", False),
    ("launch to first job, s", "startup_s", False),
    ("memory per queued job, bytes", "memory_per_job", False),
    ("client requests per job", "reads_per_job", False),
    ("commands per job", "commands_per_job", False),
    ("RSS of all processes, MiB", "rss_mib", False),
    ("USS of all processes, MiB", "uss_mib", False),
)

Samples = dict[str, dict[str, list[float]]]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, float(value)


def samples_of(runs: list[dict[str, Any]]) -> Samples:
    """system -> path -> values, of the runs on a quiet machine."""
    found: Samples = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["session"] not in ("drain", "latency") or (run.get("others_cpu_percent") or 0) > BUSY_PERCENT:
            continue
        for path, value in flatten(run["values"]):
            found[run["system"]][path].append(value)
    return found


def text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(samples: Samples) -> Iterator[str]:
    medians = {name: {path: statistics.median(v) for path, v in rows.items()} for name, rows in samples.items()}
    peers = [name for name in medians if name not in (OURS, FLOOR)]
    yield "| workload | UpNext | floor | UpNext / floor | best peer | UpNext / peer |"
    yield "|---|---|---|---|---|---|"
    for title, path, higher in ROWS:
        ours, floor = medians.get(OURS, {}).get(path), medians.get(FLOOR, {}).get(path)
        there = {name: medians[name][path] for name in peers if path in medians[name]}
        best = (max if higher else min)(there, key=there.__getitem__, default=None)
        peer = there[best] if best else None
        ratios = [text(ours / other) if ours is not None and other else "–" for other in (floor, peer)]
        beside = f"{text(peer)} ({best})" if best else "–"
        yield f"| {title} | {text(ours)} | {text(floor)} | {ratios[0]} | {beside} | {ratios[1]} |"


def crashes(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Seconds from kill -9 to the next start of the job, each repetition."""
    times: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        if run["session"] == "crash":
            after = run["values"].get("restarted_after_s", run["values"].get("failed"))
            times[run["system"], run["profile"]].append("not within 90" if after is None else str(after))
    for (system, profile), values in sorted(times.items()):
        yield f"kill -9, {system} ({profile}): {', '.join(values)} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", default=FLOOR, help="what to measure beside UpNext, comma separated")
    parser.add_argument("--sessions", default="drain,latency,crash")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--results", type=Path, help="file that runs are appended to")
    parser.add_argument("--peerbench", type=Path, default=os.environ.get("PEERBENCH"), help="folder with bench.py")
    parser.add_argument("--no-setup", action="store_true", help="the systems' environments are there and up to date")
    options = parser.parse_args()
    if options.peerbench is None or not (options.peerbench / "bench.py").exists():
        print("bench: name the folder of the peer benchmark harness (bench.py) with PEERBENCH= or --peerbench")
        return 64
    results = options.results or Path(os.environ.get("TMPDIR", "/tmp")) / time.strftime(
        "upnext-bench-%Y%m%d-%H%M%S.json"
    )
    bench = [sys.executable, str(options.peerbench / "bench.py"), "--extra", str(HERE)]
    bench += ["--systems", f"{OURS},{options.systems}" if options.systems else OURS]
    if not options.no_setup:
        subprocess.run([*bench, "--setup"], check=True)
    measured = [*bench, "--sessions", options.sessions, "--repeat", str(options.repeat), "--results", str(results)]
    subprocess.run(measured, check=True)
    runs = json.loads(results.read_text())["runs"]
    print(f"\nresults: {results}\n")
    for line in (*table(samples_of(runs)), "", *crashes(runs)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
