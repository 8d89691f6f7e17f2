"""What a child does at a graceful end: it runs the `atexit` handlers, by which exporters and log queues write what they hold back."""

from __future__ import annotations

import atexit
import logging


def forget_inherited() -> None:
    """Drop the handlers that the import registered in the template, right after the fork.

    They are the template's: in a child, one of a TemporaryDirectory would delete it under all siblings.
    """
    # No other way: handlers that are not known can't be unregistered one by one.
    atexit._clear()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    # `logging` registers its own when it is imported, which was before the fork.
    atexit.register(logging.shutdown)


def run_handlers() -> None:
    """Run what was registered since, the newest first. A handler that raises prints its traceback, and the next one runs.

    One that hangs is ended with the child, at the deadline of its stop.
    """
    # The child ends by os._exit, which runs none.
    atexit._run_exitfuncs()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
