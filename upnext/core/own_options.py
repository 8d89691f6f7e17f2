"""What one job has in place of its task's options, and its labels: field `own` of its meta, and `Submission.own`.

A JSON object of `timeout_s`, `retries` (both null for none), `result_ttl_s`, `labels` (names to texts), `via` (what submitted it, where
that was no job: `POST /orders`, `cron NAME`, `schedule NAME`); only what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from upnext.core.spec import LONGEST_S, TaskOptions
from upnext.errors import UsageError

MOST_LABELS = 16
LONGEST_LABEL = 64
"""Characters of a label's name; its text may have LONGEST_LABEL_TEXT."""
LONGEST_LABEL_TEXT = 256


def applied(options: TaskOptions, own: Mapping[str, Any]) -> TaskOptions:
    """The options of one job. What is not of the right kind (a row of another version) counts as not given."""
    changes: dict[str, Any] = {}
    if "timeout_s" in own and (own["timeout_s"] is None or _seconds(own["timeout_s"])):
        changes["timeout_s"] = own["timeout_s"]
    if "retries" in own and (own["retries"] is None or _count(own["retries"])):
        changes["retries"] = own["retries"]
    if _seconds(own.get("result_ttl_s"), zero=True):
        changes["result_ttl_s"] = own["result_ttl_s"]
    return replace(options, **changes) if changes else options


def result_ttl_ms(own: Mapping[str, Any] | None) -> int | None:
    """None: as the task has it."""
    value: Any = 0 if own is None else own.get("result_ttl_s")
    return round(value * 1000) if own is not None and _seconds(value, zero=True) else None


def labels(own: Mapping[str, Any] | None) -> dict[str, str]:
    """The job's labels; what is not text is left out."""
    found = None if own is None else own.get("labels")
    if not isinstance(found, dict):
        return {}
    return {name: text for name, text in cast("dict[str, Any]", found).items() if isinstance(text, str)}


def with_via(own: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    return {**(own or {}), "via": what[:LONGEST_LABEL_TEXT]}


def via(own: Mapping[str, Any] | None) -> str | None:
    """What submitted the job, where that was no job and is known."""
    found = None if own is None else own.get("via")
    return found if isinstance(found, str) else None


def checked_labels(what: str, given: Mapping[str, str]) -> dict[str, str]:
    """Raises UsageError for what can be no label, or too many."""
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{what}: labels are names and their texts, as a dict has them, not {given!r:.80}")
    if len(given) > MOST_LABELS:
        raise UsageError(f"{what}: at most {MOST_LABELS} labels, not {len(given)}")
    for name, text in given.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_LABEL:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}: a label's name is text of 1 to {LONGEST_LABEL} characters, not {name!r:.80}")
        if not isinstance(text, str) or len(text) > LONGEST_LABEL_TEXT:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"{what}: label {name} has text of at most {LONGEST_LABEL_TEXT} characters, not {text!r:.80}"
            )
        try:
            (name + text).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{what}: label {name!r} has no UTF-8 form") from None
    return dict(given)


def _seconds(value: Any, *, zero: bool = False) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and (value > 0 or (zero and value == 0)) and value <= LONGEST_S


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
