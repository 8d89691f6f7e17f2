"""Measures UpNext alone: how it scales, and what users run. Prints the table of medians, as Markdown; `--results` keeps every figure."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

for _name in [name for name in os.environ if name.startswith("UPNEXT")]:
    del os.environ[_name]  # a caller's own settings must not leak in
# Compiled once, as an installed package is; and not into the tree.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_bytecode = tempfile.TemporaryDirectory(prefix="upnext-bench-bytecode-")
os.environ["PYTHONPYCACHEPREFIX"] = _bytecode.name

import mixed  # noqa: E402
import scale  # noqa: E402
from rig import MeasureError, binary, default_server, others_cpu_percent  # noqa: E402
from table import Size, busy, markdown, medians  # noqa: E402

SUITES: dict[str, ModuleType] = {"scale": scale, "mixed": mixed}
QUICK = 10


def machine() -> dict[str, Any]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 1024 / 1024, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "broker": os.path.basename(binary(default_server())),
    }


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def measure(function: Any, size: Size, repetition: int) -> dict[str, Any]:
    """One repetition of one measure; a failure is written down and does not end the others."""
    run: dict[str, Any] = {
        "measure": function.__name__,
        "repetition": repetition,
        "others_cpu_percent": others_cpu_percent(),
    }
    begun = time.monotonic()
    try:
        run["values"] = {name: round(value, 4) for name, value in function(size).items()}
    except (MeasureError, AssertionError, OSError) as error:
        run["failed"] = f"{type(error).__name__}: {error}"
    return {**run, "took_s": round(time.monotonic() - begun, 1), "at": time.strftime("%FT%TZ", time.gmtime())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True, choices=sorted(SUITES))
    parser.add_argument("--only", default="", help="measures of the suite, comma separated")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: whether it runs, not how fast")
    parser.add_argument("--results", type=Path, help="file for everything that was measured, as JSON")
    options = parser.parse_args()
    suite = SUITES[options.suite]
    wanted = options.only.split(",") if options.only else [function.__name__ for function in suite.MEASURES]
    chosen = [function for function in suite.MEASURES if function.__name__ in wanted]
    if len(chosen) < len(wanted):
        print(f"bench: {options.suite} measures {', '.join(function.__name__ for function in suite.MEASURES)}")
        return 64
    size = Size(QUICK if options.quick else 1)
    report: dict[str, Any] = {"suite": options.suite, "quick": options.quick, "machine": machine(), "runs": []}
    # Round by round, so that a disturbance hits one sample of several measures and the median drops it.
    for repetition in range(options.repeat):
        for function in chosen:
            run = measure(function, size, repetition)
            report["runs"].append(run)
            print(json.dumps(run), file=sys.stderr, flush=True)
            if options.results:
                options.results.write_text(json.dumps({**report, "medians": medians(report["runs"])}, indent=1) + "\n")
    for line in markdown(suite.ROWS, medians(report["runs"])):
        print(line)
    print()
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    if options.quick:
        print("--quick: a tenth of the work, the figures mean nothing")
    if noisy := busy(report["runs"]):
        print(f"measured while the machine was busy with other things: {', '.join(noisy)}")
    failed = [run for run in report["runs"] if "failed" in run]
    for run in failed:
        print(f"{run['measure']} failed: {run['failed']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
