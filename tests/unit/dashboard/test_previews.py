"""What a stop would do, as a person reads it."""

from __future__ import annotations

import pytest

from upnext.dashboard.previews import NOTHING, preview


def slot(*jobs: tuple[str, float], count: int | None = None) -> dict[str, object]:
    return {
        "in_flight": [{"task": task, "age_s": age_s} for task, age_s in jobs],
        "in_flight_count": len(jobs) if count is None else count,
    }


USUAL = {"quick": 10.0, "long": 600.0, "new": None}


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([], NOTHING),
        ([slot()], NOTHING),
        (
            [slot(("quick", 1.0), ("quick", 2.0), ("long", 5.0))],
            "3 jobs run; 2 would end within 30 s by their usual p95, 1 would be killed and run again.",
        ),
        ([slot(("long", 590.0))], "1 job runs; 1 would end within 30 s by its usual p95."),
        ([slot(("quick", 11.0))], "1 job runs; 1 would be killed and run again."),
        ([slot(("new", 1.0))], "1 job runs; of 1 it is not known how long it usually runs."),
        (
            [slot(("quick", 1.0)), slot(("quick", 1.0), count=5)],
            "6 jobs run; 2 would end within 30 s by their usual p95, of 4 it is not known how long they usually run.",
        ),
    ],
)
def test_the_text(slots: list[dict[str, object]], text: str) -> None:
    found = preview(slots, USUAL, 30.0)
    assert found["text"] == text
    assert found["would_end"] + found["would_be_killed"] + found["unknown"] == found["in_flight_count"]
