"""Hides what a task declares as not to be shown, `@worker.task(redact=("card",))`, from people: not from the code that runs.

The names are those of arguments. What such an argument holds, and what stands under such a name in it, in other arguments or in a result,
is replaced where it is shown; in the text of an error, its values are replaced before they leave the worker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, cast

import orjson

HIDDEN = "[redacted]"
SHORTEST = 4
"""Characters: shorter values are in too many texts to be replaced."""


def json_shown(raw: bytes, names: Collection[str]) -> bytes:
    """The JSON as people may see it. What can't be read as JSON is hidden whole."""
    if not names:
        return raw
    try:
        return orjson.dumps(_shown(orjson.loads(raw), frozenset(names)))
    except ValueError:
        return orjson.dumps(HIDDEN)


def text_shown(text: str, payload: bytes, names: Collection[str]) -> str:
    """The text without the values that `payload` has under these names."""
    try:
        values = set(_hidden_values(orjson.loads(payload), frozenset(names)))
    except ValueError:
        return text
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _shown(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: HIDDEN if name in names else _shown(one, names) for name, one in members.items()}
    if isinstance(value, list):
        return [_shown(one, names) for one in cast("list[Any]", value)]
    return value


def _hidden_values(value: Any, names: frozenset[str], *, inside: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in cast("dict[str, Any]", value).items():
            yield from _hidden_values(one, names, inside=inside or name in names)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from _hidden_values(one, names, inside=inside)
    elif inside and value is not None and not isinstance(value, bool):
        text = str(value)
        if len(text) >= SHORTEST:
            yield text
            if (escaped := text.encode("unicode_escape").decode()) != text:
                yield escaped


def restored(given: Any, payload: bytes, names: Collection[str]) -> Any:
    """Arguments that a person edited, with what was hidden from them as `payload` has it."""
    return _restored(given, orjson.loads(payload)) if names else given


def _restored(given: Any, known: Any) -> Any:
    if given == HIDDEN:
        return known
    if isinstance(given, dict) and isinstance(known, dict):
        before = cast("dict[str, Any]", known)
        members = cast("dict[str, Any]", given)
        return {name: _restored(one, before[name]) if name in before else one for name, one in members.items()}
    if isinstance(given, list) and isinstance(known, list):
        items, former = cast("list[Any]", given), cast("list[Any]", known)
        return [_restored(*pair) for pair in zip(items, former, strict=False)] + items[len(former) :]
    return cast("Any", given)
