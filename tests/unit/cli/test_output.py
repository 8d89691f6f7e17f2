"""What commands print, on a terminal and in a pipe."""

from __future__ import annotations

import pytest

from upnext.cli import formatting, output


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert output.aligned(["slot", "pid"], [["worker-1", "7"], ["w", "12345"]], right=["pid"]) == [
        "SLOT        PID",
        "worker-1      7",
        "w         12345",
    ]


def test_a_table_in_a_pipe_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["job", "ok"], [["[red]a[/]", True], ["b", None]], none="no jobs")
    assert capsys.readouterr().out == "JOB        OK\n[red]a[/]  yes\nb          -\n"


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (40, ["slot", "pid", "gen", "done"]),
        (22, ["slot", "pid", "done"]),
        (15, ["slot", "done"]),
        (3, ["slot", "done"]),
    ],
)
def test_a_narrow_terminal_does_without_spare_columns(width: int, left: list[str]) -> None:
    rows = [["worker-1", "12345", "1", "17"]]
    columns, cells = output.fitting(["slot", "pid", "gen", "done"], rows, ("gen", "pid"), width)
    assert columns == left
    assert cells == [[dict(zip(["slot", "pid", "gen", "done"], rows[0], strict=True))[name] for name in left]]


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["job"], [], none="no jobs")
    assert capsys.readouterr().out == "no jobs\n"


def test_a_table_on_a_terminal_shows_markup_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    output.print_table(["job"], [["[red]a[/]"]], none="no jobs")
    assert "[red]a[/]" in capsys.readouterr().out


def test_fields_leave_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields([("job", "a"), ("worker", None), ("attempt", 1), ("traceback", "one\ntwo\n")])
    assert capsys.readouterr().out == "job        a\nattempt    1\ntraceback\n  one\n  two\n"


def test_json_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": [1, "é"]})
    assert capsys.readouterr().out == '{"a":[1,"é"]}\n'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "0ms"),
        (0.25, "250ms"),
        (-1, "0ms"),
        (3.21, "3.2s"),
        (75, "1m15s"),
        (3600, "1h"),
        (90000, "1d1h"),
        (86461, "1d1m"),
    ],
)
def test_durations(seconds: float | None, text: str | None) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, None), (0, "0B"), (1023, "1023B"), (1536, "1.5K"), (300 << 20, "300M"), (5 << 40, "5.0T")],
)
def test_sizes(count: int | None, text: str | None) -> None:
    assert formatting.size(count) == text


def test_times_are_utc_with_milliseconds() -> None:
    assert formatting.iso(1_767_225_600_007) == "2026-01-01T00:00:00.007Z"
    assert formatting.iso(None) is None
