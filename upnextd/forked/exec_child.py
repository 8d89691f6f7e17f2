"""A child that was exec'd, with --no-preload: it imports the service for itself, and is from then on as any other child.

Nothing is shared, so the service may leave threads and connections behind; and nothing is shared, so it costs an import and its memory
each. Light at its top: the supervisor imports it for the numbers.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import orjson

from upnextd.shared import process

CHANNEL_FD, PAGE_FD, DUMP_FD = 3, 4, 5
_CONFIG = 78


def main() -> None:
    """Entry of the exec'd process; the order is on stdin, as JSON."""
    with open(0, "rb", closefd=False) as told:
        order = orjson.loads(told.read())
    process.die_with_parent(order["supervisor_pid"])
    template = importlib.import_module("upnextd.forked.template")
    assignment = order["assignment"]
    template.title(f"{order['name']}: {assignment['slot']} g{order['generation']}")
    code = 1
    try:
        loaded = _load(template, order)
        child = importlib.import_module("upnextd.forked.child")
        fds = child.Descriptors(CHANNEL_FD, PAGE_FD, DUMP_FD, os.dup(1))
        code = child.run(loaded, assignment, fds)
    except BaseException as error:  # noqa: BLE001 - whatever an import can raise, SystemExit too, is the service's failure to import
        _say_why(template.failure(error))
        code = _CONFIG
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _load(template: Any, order: dict[str, Any]) -> Any:
    loaded = template.load(order["service"], tuple(order["only"]))
    shapes = [[worker.name, worker.concurrency, list(worker.tasks)] for worker in loaded.spec.workers]
    if shapes != order["shapes"]:
        raise RuntimeError(
            f"the service declares other workers or tasks than generation {order['generation']} did: reload, to take in the new code"
        )
    return loaded


def _say_why(failure: dict[str, Any]) -> None:
    if failure["traceback"]:
        sys.stderr.write(failure["traceback"])
    line = orjson.dumps({"op": "boot_failed", "code": _CONFIG, "line": failure["line"]}) + b"\n"
    os.write(CHANNEL_FD, line)
