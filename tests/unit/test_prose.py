"""The words of the project: those of the field. A private word needs a glossary, and hides who does what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"(?i)(?<![a-z])(said|told|somebody|whoever|nobody|hears?|heard|feels?|felt)(?![a-z])")
"""Also as a part of a name: `_told_at`."""
PLACES = (
    *("upnext/**/*.py", "upnext/**/*.lua", "upnext/**/*.html", "upnextd/**/*.py"),
    *("docs/**/*.md", "*.md", "scripts/**/*", "systemd/*", "deploy/**/*", "examples/*"),
)
IN_TESTS = re.compile(r"(?i)\b(said|told|somebody|whoever)\b")


@pytest.mark.parametrize(("word", "places"), [(PRIVATE, PLACES), (IN_TESTS, ("tests/**/*.py",))], ids=["code", "tests"])
def test_no_private_word(word: re.Pattern[str], places: tuple[str, ...]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for place in places
        for path in sorted(ROOT.glob(place))
        if path.is_file() and path.suffix != ".pyc" and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_decision_is_in_the_index_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \d+ \| \[.*\]\((.*\.md)\) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    assert len({name[:4] for name in listed}) == len(listed), "two decisions have one number"
