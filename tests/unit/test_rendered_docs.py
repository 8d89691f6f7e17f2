"""Pages that show tables of the code: they show them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.render_docs import BLOCK, BLOCKS, diagram, rendered

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_the_code_says(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- generated: ") == len(BLOCK.findall(text)), "a block has no end"
    assert rendered(text) == text, "run .venv/bin/python scripts/render_docs.py"


def test_every_table_has_one_place() -> None:
    assert sorted(name for page in PAGES for _, name, _ in BLOCK.findall(page.read_text())) == sorted(BLOCKS)


def test_a_changed_block_is_noticed() -> None:
    page = next(page for page in PAGES if page.stem == "job-states").read_text()
    assert rendered(page.replace("queued --> running", "queued --> done")) == page


def test_edges_between_the_same_states_share_a_line() -> None:
    text = diagram([("A", "B", "x"), ("A", "B", "y")], [("A", "")], ["B"])
    assert text.splitlines()[2:-1] == ["    [*] --> A", "    A --> B: x / y", "    B --> [*]"]
