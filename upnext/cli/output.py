"""What commands print: JSON when asked, tables by rich on a terminal, aligned plain text in a pipe."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson

from upnext.core.visible import visible, visible_lines

_GAP = "  "
_RICH_GAP = 2
"""Between two columns of a table on a terminal."""


def on_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Indented on a terminal, one line in a pipe."""
    options = orjson.OPT_INDENT_2 if on_terminal() else 0
    click.echo(orjson.dumps(value, option=options))


def print_line(text: str = "") -> None:
    """One line, whatever is in it."""
    click.echo(visible(text))


def print_lines(text: str) -> None:
    """A text of several lines."""
    click.echo(visible_lines(text))


def tell(text: str) -> None:
    """Say on stderr how the command goes, or why it ends."""
    click.echo(f"upnext: {visible_lines(text)}", err=True)


class VisibleFormatter(logging.Formatter):
    """Log lines for a terminal. Further lines of a message are set in, so that none passes for another record's."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record), keep="\t", indent="    ")


def log_to_stderr(level: int, line: str) -> None:
    """What this process logs goes to stderr by the format `line`, unless it has a configuration of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    none: str,
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """`none` is the line to print when there are no rows; `right` names the columns of numbers. None in a cell prints as `-`.

    `spare` are the columns that a terminal too narrow for all does without, the first of them first.
    """
    if not rows:
        click.echo(none)
        return
    cells = [[cell(value) for value in row] for row in rows]
    if on_terminal():
        columns, cells = fitting(columns, cells, spare, shutil.get_terminal_size().columns)
        _print_rich(columns, cells, right)
        return
    for line in aligned(columns, cells, right):
        click.echo(line)


def print_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """`name  value` lines; fields that are None or empty are left out, values of several lines go below their name."""
    shown = [(name, _lines(value)) for name, value in fields if value not in (None, "", [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        if "\n" in value:
            click.echo(_styled(name))
            for line in value.rstrip("\n").split("\n"):
                click.echo(f"  {line}")
        else:
            click.echo(f"{_styled(name)}{' ' * (width - len(name))}  {value}")


def fitting(
    columns: Sequence[str], cells: Sequence[Sequence[str]], spare: Sequence[str], width: int
) -> tuple[list[str], list[list[str]]]:
    """Return the columns, and their cells, that are left when as many `spare` ones are dropped as do not fit into `width`."""
    kept = list(range(len(columns)))
    widths = [max(len(column), *(len(row[at]) for row in cells)) for at, column in enumerate(columns)]
    for name in spare:
        if sum(widths[at] for at in kept) + _RICH_GAP * (len(kept) - 1) <= width:
            break
        kept = [at for at in kept if columns[at] != name]
    return [columns[at] for at in kept], [[row[at] for at in kept] for row in cells]


def aligned(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Plain lines, the header first; columns as wide as their widest cell."""
    table = [[column.upper() for column in columns], *cells]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    lines: list[str] = []
    for row in table:
        padded = (
            text.rjust(width) if column in right else text.ljust(width)
            for column, text, width in zip(columns, row, widths, strict=True)
        )
        lines.append(_GAP.join(padded).rstrip())
    return lines


def cell(value: Any) -> str:
    """A value as a cell of a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return visible(str(value))


def _lines(value: Any) -> str:
    """A cell that may have several lines."""
    return "\n".join(map(cell, value.split("\n"))) if isinstance(value, str) else cell(value)


def _styled(name: str) -> str:
    return click.style(name, bold=True) if on_terminal() else name


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(rich_table(columns, [[Text(text) for text in row] for row in cells], right))


def rich_table(columns: Sequence[str], cells: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> Any:
    """A rich Table in the house's style. Cells are rich renderables: texts of users go in as `rich.text.Text`, never as markup."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), justify="right" if column in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table
