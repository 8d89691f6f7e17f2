"""Renders the tables of the code into the pages that show them: keys of Redis, states of jobs, attempts, children and reloads.

`scripts/render_docs.py` rewrites the marked blocks of `docs/`; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path

from upnext.core import job_states
from upnext.core.keys import ROWS
from upnext.core.outcome import JobStatus
from upnext.engine.worker import slots as attempts
from upnextd.rules import rollout, slots

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)

Edge = tuple[str, str, str]
"""From, to, by what."""


def keys() -> str:
    """Every key with its type, life, content and writers."""
    lines = ["| Key | Type | Lives | Holds | Written by |", "|---|---|---|---|---|"]
    for row in ROWS.values():
        writers = ", ".join([*row.writers.split(), *filter(None, [row.besides])])
        lines.append(f"| `{row.name}{row.variable}` | {row.type} | {row.life} | {row.holds} | {writers} |")
    return "\n".join(lines).replace("P:", "")


def diagram(edges: Iterable[Edge], begins: Iterable[tuple[str, str]], ends: Iterable[str] = ()) -> str:
    """A state diagram; edges between the same two states share a line."""
    labels: dict[tuple[str, str], list[str]] = {}
    for origin, to, by in edges:
        labels.setdefault((origin, to), []).append(by)
    lines = [f"    [*] --> {state}: {by}" if by else f"    [*] --> {state}" for state, by in begins]
    lines += [f"    {origin} --> {to}: {' / '.join(by)}" for (origin, to), by in labels.items()]
    lines += [f"    {state} --> [*]" for state in ends]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def meanings(states: type[Enum]) -> str:
    """The table of an enum whose values are sentences."""
    return "\n".join(["| State | Meaning |", "|---|---|", *(f"| {state.name} | {state.value} |" for state in states)])


def _word(member: Enum) -> str:
    return member.name.lower().replace("_", " ")


def jobs() -> str:
    """The life of a job."""
    edges = [
        (status.value, to.value, event.value)
        for (status, event), to in job_states.TABLE.items()
        if to and status is not to
    ]
    begins = [(status.value, by) for status, by in job_states.BIRTHS.items()]
    return diagram(edges, begins, (status.value for status in JobStatus if status in job_states.ENDS))


def slots_of_attempts() -> str:
    """What becomes of an attempt's slot."""
    edges = [
        (slot.name, to.name, _word(event))
        for (slot, event), to in attempts.TABLE.items()
        if to is not None and to is not slot
    ]
    return diagram(edges, [(attempts.Slot.HELD.name, "")], [attempts.Slot.ENDED.name])


def children() -> str:
    """The life of a child in a slot of the daemon."""
    edges = [
        (state.name, cell.to.name, _word(event))
        for state, row in slots.TABLE.items()
        for event, cell in row.items()
        if cell.to is not None and cell.to is not state
    ]
    return diagram(edges, [(slots.State.EMPTY.name, "")]) + "\n\n" + meanings(slots.State)


def reloads() -> str:
    """The life of a reload."""
    edges = [
        (phase.name, to.name, _word(event))
        for phase, row in rollout.TABLE.items()
        for event, (to, _) in row.items()
        if to is not None
    ]
    over = (phase.name for phase in rollout.Phase if phase in rollout.OVER)
    return diagram(edges, [(rollout.Phase.QUEUED.name, "")], over) + "\n\n" + meanings(rollout.Phase)


BLOCKS: dict[str, Callable[[], str]] = {
    "keys": keys,
    "jobs": jobs,
    "slots of attempts": slots_of_attempts,
    "children": children,
    "reloads": reloads,
}


def rendered(page: str) -> str:
    """A page with its generated blocks as the code wants them."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n\n{block[3]}", page)


def main() -> None:
    """Rewrite the pages."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if (new := rendered(text)) != text:
            path.write_text(new)
            print(f"rendered {path.name}")


if __name__ == "__main__":
    main()
