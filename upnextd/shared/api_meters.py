"""Where an Api's child counts its requests: rows of its page, as tasks have them, one for each route and class of status."""

from __future__ import annotations

from collections.abc import Sequence

from upnextd.shared.scoreboard import WorkerShape

CLASSES = ("2xx", "3xx", "4xx", "5xx")
OTHER = "other"
"""Requests that no route of the Api takes, and all of an application that shows no routes."""
MOST_ROUTES = 200
_SEPARATOR = "\t"


def shape(api: str, routes: Sequence[str]) -> WorkerShape:
    """The page of a child that serves it. `routes`: `METHOD /path/{template}`."""
    rows = (_SEPARATOR.join((api, route, status)) for route in (*routes[:MOST_ROUTES], OTHER) for status in CLASSES)
    return WorkerShape(api, 1, tuple(rows))


def names(row: str) -> tuple[str, str, str]:
    """(api, route, class of status) of a row."""
    api, route, status = row.split(_SEPARATOR)
    return api, route, status


class Rows:
    """Finds the row of a request."""

    def __init__(self, routes: Sequence[str]) -> None:
        self._first = {route: number * len(CLASSES) for number, route in enumerate((*routes[:MOST_ROUTES], OTHER))}

    def of(self, route: str, status: int) -> int:
        first = self._first.get(route, self._first[OTHER])
        return first + min(max(status // 100 - 2, 0), len(CLASSES) - 1)
