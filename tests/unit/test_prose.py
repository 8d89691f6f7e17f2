"""The words of the project: those of the field. A private word needs a glossary, and hides who does what."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"(?i)\b(said|told|somebody|whoever|nobody|hears?|heard|feels?|felt)\b")
PLACES = (
    *("upnext/*.py", "upnext/cli/**/*.py", "upnext/control/*.py", "upnext/core/*.py"),
    *("upnextd/*.py", "upnextd/shared/*.py", "upnextd/rules/*.py", "upnextd/metrics/*.py", "upnextd/broker/*.py"),
    *("docs/*.md", "docs/guides/*.md", "*.md", "scripts/**/*", "systemd/*", "deploy/**/*", "examples/*"),
)
NAMES = re.compile(r"\.told\(|\.said\b|\bsaid[:=]|def heard\(")
"""Attributes that the supervisor and the engine share."""


def test_no_private_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for place in PLACES
        for path in sorted(ROOT.glob(place))
        if path.is_file() and path.suffix != ".pyc"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(NAMES.sub("", line))
    ]
    assert not found, "\n".join(found)


def test_every_decision_is_in_the_index_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \d+ \| \[.*\]\((.*\.md)\) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    assert len({name[:4] for name in listed}) == len(listed), "two decisions have one number"
