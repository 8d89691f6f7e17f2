"""Texts of users as a terminal may show them. Every text that people read on one goes through here; JSON stays exact."""

from __future__ import annotations

import unicodedata


def visible(text: str, keep: str = "") -> str:
    """One line: control characters, line ends and what turns the direction of text are escaped, save those in `keep`."""
    if text.isprintable():
        return text
    return "".join(one if _harmless(one) or one in keep else one.encode("unicode_escape").decode() for one in text)


def visible_lines(text: str, keep: str = "", indent: str = "") -> str:
    """Several lines, the further ones after `indent`."""
    return f"\n{indent}".join(visible(line, keep) for line in text.split("\n"))


def _harmless(one: str) -> bool:
    """Whether it can be seen or is a blank of some width, as they stand in French and Japanese."""
    return one.isprintable() or unicodedata.category(one) == "Zs"
