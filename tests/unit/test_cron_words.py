"""Crons in words: all of what the expression says, or nothing."""

from __future__ import annotations

import pytest

from upnext.core.cron_words import words


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("0 9 * * *", "every day at 09:00"),
        ("@daily", "every day at 00:00"),
        ("@hourly", "every hour"),
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("15 * * * *", "every hour at :15"),
        ("0,30 8 * * *", "every day at 08:00 and 08:30"),
        ("30 6 * * mon-fri", "Monday to Friday at 06:30"),
        ("30 6 * * 1-5", "Monday to Friday at 06:30"),
        ("0 12 * * 0", "Sunday at 12:00"),
        ("0 12 * * 7", "Sunday at 12:00"),
        ("0 12 * * sat,sun", "Saturday and Sunday at 12:00"),
        ("0 0 1 * *", "on day 1 of each month at 00:00"),
        ("@yearly", "on day 1 of January at 00:00"),
        ("0 9 * 6 *", "in June at 09:00"),
        ("0 */2 * * *", "every 2 hours"),
        ("10 */6 * * *", "every 6 hours at :10"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("* * * * * *", "every second"),
        ("30 0 9 * * *", "every day at 09:00:30"),
        ("0 */12 * * *", "every day at 00:00 and 12:00"),
        ("*/15 * * * 1", "every 15 minutes, Monday"),
    ],
)
def test_in_words(schedule: str, expected: str) -> None:
    assert words(schedule) == expected


@pytest.mark.parametrize(
    "schedule",
    [
        "", "garbage", "*/7 * * * *", "0 9 1 * 1", "0 9-17 * * *", "1-5 9 * * *", "0 0-23/5 * * *", "5 */5 * * *",
        "* 9 * * *", "0 9 * * 1#2", "0 9 l * *", "0,10,20,30,40 9 * * *", "every 90 s", "30 * * * * 1", "*/20 5 * * * *",
    ],
)  # fmt: skip
def test_no_words_rather_than_half_of_it(schedule: str) -> None:
    assert words(schedule) == ""
