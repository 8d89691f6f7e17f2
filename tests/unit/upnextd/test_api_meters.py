"""Rows of an Api's page: what a request is counted under."""

from __future__ import annotations

import pytest

from upnextd.metrics.counters import Counters
from upnextd.shared import api_meters, scoreboard
from upnextd.shared.meters import Meters

ROUTES = ("GET /orders/{number}", "POST /orders")


@pytest.mark.parametrize(
    ("route", "status", "counted"),
    [
        ("GET /orders/{number}", 200, ("front", "GET /orders/{number}", "2xx")),
        ("POST /orders", 503, ("front", "POST /orders", "5xx")),
        ("POST /orders", 101, ("front", "POST /orders", "2xx")),
        ("DELETE /orders", 404, ("front", "other", "4xx")),
        ("other", 302, ("front", "other", "3xx")),
    ],
)
def test_a_request_has_a_row(route: str, status: int, counted: tuple[str, str, str]) -> None:
    shape, rows = api_meters.shape("front", ROUTES), api_meters.Rows(ROUTES)
    assert api_meters.names(shape.tasks[rows.of(route, status)]) == counted


def test_of_many_routes_the_last_count_as_others() -> None:
    many = [f"GET /{number}" for number in range(api_meters.MOST_ROUTES + 5)]
    rows = api_meters.Rows(many)
    assert rows.of("GET /3", 200) != rows.of("other", 200)
    assert rows.of(many[-1], 200) == rows.of("other", 200)
    assert len(api_meters.shape("front", many).tasks) == 4 * (api_meters.MOST_ROUTES + 1)


def test_counts_outlive_the_process() -> None:
    def counted() -> Meters:
        shapes = [api_meters.shape("front", ROUTES)]
        page = bytearray(scoreboard.page_bytes(shapes))
        page[:8] = scoreboard.LAYOUT.to_bytes(8, "little")
        scoreboard.Writer(page, shapes).meter().observed(api_meters.Rows(ROUTES).of("POST /orders", 201), 0.02)
        return scoreboard.Reader(memoryview(page), shapes).meters()  # type: ignore[arg-type]

    counters = Counters()
    counters.child_ended("api", "exit:0", counted(), replaced=True)
    shown = Counters.from_state(counters.to_state()).as_json((), [counted()])
    assert {row: one["ok"] for row, one in shown["apis"].items()} == {"front\tPOST /orders\t2xx": 2}
    assert shown["tasks"] == {}
