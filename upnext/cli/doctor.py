"""`upnext doctor`: what can't be read in Redis, why, and how to remove it."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from upnext.cli import output
from upnext.cli.options import flags, queue_options
from upnext.cli.queue import queue
from upnext.cli.tasks import confirm
from upnext.control.exits import ExitCode
from upnext.engine.calls.rows import lenient

if TYPE_CHECKING:
    from upnext.engine.views.doctor import Finding

_SHOWN = 200
"""Bytes of a row's name that a line shows."""


@click.command()
@click.option(
    "--remove", "removes", is_flag=True, help="Remove what is named, each row only while it is what was read."
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option(
    "--limit", type=click.IntRange(min=1, max=100_000), default=1000, show_default=True, help="At most so many."
)
@queue_options
@click.pass_context
def doctor(ctx: click.Context, removes: bool, yes: bool, limit: int) -> None:
    """Find rows and keys in Redis that can't be read. Exit 1 when there are some.

    They come from other versions, hands, half-restored dumps, and each is passed over. It reads everything once, in small parts.
    """
    from upnext.engine.views import doctor as view
    from upnext.errors import UsageError

    with queue() as broker:
        if removes and view.is_newer(broker, broker.keys):
            raise UsageError(
                "a newer version of upnext uses this namespace: its own `upnext doctor` knows what can be removed"
            )
        found = list(islice(view.examine(broker, broker.keys), limit + 1))
        more, found = len(found) > limit, found[:limit]
        if not flags().json:
            _print(found, more)
        removed: set[int] = set()
        if removes and found:
            confirm(yes, f"remove {_count(len(found))}?")
            removed = {at for at, one in enumerate(found) if view.remove(broker, broker.keys, one)}
    if flags().json:
        output.print_json([{**_json(one), "removed": at in removed} for at, one in enumerate(found)])
    elif removes and found:
        kept = len(found) - len(removed)
        output.print_line(f"removed {_count(len(removed))}" + (f"; {kept} had changed meanwhile" if kept else ""))
    ctx.exit(ExitCode.FAILED if more or len(removed) < len(found) else ExitCode.OK)


def _print(found: Sequence[Finding], more: bool) -> None:
    for one in found:
        field = "" if one.field is None else f"  {lenient(one.field[:_SHOWN])}{'…' if len(one.field) > _SHOWN else ''}"
        output.print_line(f"{one.key}{field}")
        output.print_line(f"  {one.why}")
        output.print_line(f"  {_command(one)}")
    if not found:
        output.print_line("everything can be read")
    elif more:
        output.print_line("there are more: --limit")


def _json(one: Finding) -> dict[str, Any]:
    return {
        "key": _plain(one.key),
        "field": None if one.field is None else lenient(one.field),
        "why": one.why,
        "remove": _command(one),
    }


def _command(one: Finding) -> str:
    """For a shell: bytes that are no plain text are written as bash reads them within $'…'."""
    return " ".join(["redis-cli", *map(_quoted, one.command)])


def _quoted(word: str | bytes) -> str:
    raw = word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word
    if raw and all(0x20 < byte < 0x7F and byte not in b"'\"\\$`!*?[](){}<>|&;#~" for byte in raw):
        return raw.decode()
    if all(0x20 <= byte < 0x7F and byte not in b"'\\" for byte in raw):
        return f"'{raw.decode()}'"
    return (
        "$'"
        + "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\x{byte:02x}" for byte in raw)
        + "'"
    )


def _plain(key: str) -> str:
    """A key's name; bytes that are not text are escaped."""
    return lenient(key.encode("utf-8", "surrogateescape"))


def _count(number: int) -> str:
    return "1 row or key" if number == 1 else f"{number} rows and keys"
