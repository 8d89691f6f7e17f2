"""A number with its noun."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """-> `1 job`, `2 jobs`: of nouns that take an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
