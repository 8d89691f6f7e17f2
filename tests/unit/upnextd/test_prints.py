"""What jobs print: a record a line, with the job's id."""

from __future__ import annotations

import io
import threading

from upnextd.forked.prints import JobPrints, marked
from upnextd.shared.log_records import LINE_CAP_BYTES, parse


class Prints:
    """What is printed in `job` comes out of `lines`."""

    def __init__(self) -> None:
        self.job: str | None = None
        self.raw = io.BytesIO()
        self.before = io.TextIOWrapper(self.raw, "utf-8", line_buffering=True)
        self.stream = JobPrints(self.before, lambda: self.job)

    def print(self, job: str | None, text: str) -> None:
        self.job = job
        print(text, end="", file=self.stream)

    def lines(self) -> list[tuple[str | None, str]]:
        found = [(parse(line), line) for line in self.raw.getvalue().decode().split("\n")[:-1]]
        return [(None, line) if record is None else (record.job_id, record.message) for record, line in found]


def test_a_line_that_a_job_prints_has_its_id() -> None:
    prints = Prints()
    prints.print(None, "no job\n")
    prints.print("t:n1-0", "one\ntwo\n\n")
    print("by a handler of the service", file=prints.before)
    assert prints.lines() == [
        (None, "no job"), ("t:n1-0", "one"), ("t:n1-0", "two"), ("t:n1-0", ""), (None, "by a handler of the service"),
    ]  # fmt: skip
    record = parse(prints.raw.getvalue().decode().split("\n")[1])
    assert record is not None
    assert (record.level, record.logger) == ("", "")


def test_lines_that_several_jobs_have_begun_stay_apart() -> None:
    prints = Prints()
    prints.print("t:n1-0", "fir")
    prints.print("t:n2-0", "sec")
    prints.stream.flush()
    prints.print(None, "no job\n")
    assert prints.lines() == [(None, "no job")]
    prints.print("t:n1-0", "st\n")
    assert prints.lines()[1:] == [("t:n1-0", "first")]
    prints.job = None
    prints.stream.flush()
    assert prints.lines()[2:] == [("t:n2-0", "sec")]
    for number in range(JobPrints.MOST + 1):
        prints.print(f"t:n{number}-0", "begun")
    assert prints.lines()[3:] == [("t:n0-0", "begun")], "more do not wait"


def test_a_long_line_comes_in_pieces_and_what_has_no_form_is_escaped() -> None:
    prints = Prints()
    prints.print("t:n1-0", "é" * 20_000)
    assert "".join(text for _, text in prints.lines()) == "é" * 20_000
    assert all(len(line) <= LINE_CAP_BYTES for line in prints.raw.getvalue().split(b"\n"))
    prints.print(None, "\ud800\n")
    assert prints.lines()[-1] == (None, "\\ud800")


def test_a_stream_of_the_service_s_own_is_left() -> None:
    own = io.StringIO()
    assert marked(own, lambda: "t:n1-0") is own


class _Interrupted(str):
    """Text in the midst of whose print a destructor, or a signal's handler, prints."""

    __slots__ = ("stream",)
    stream: JobPrints

    def __radd__(self, before: str) -> str:
        print("bye", file=self.stream)
        return before + str(self)


def test_a_destructor_prints_in_the_midst_of_a_print() -> None:
    prints = Prints()
    prints.job = "t:n1-0"
    text = _Interrupted(" and ended\n")
    text.stream = prints.stream
    thread = threading.Thread(target=prints.stream.writelines, args=(["begun", text],), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [text for _, text in prints.lines()] == ["bye", "begun and ended"]


def test_two_threads_of_a_job_print_lines_of_their_own() -> None:
    prints = Prints()
    prints.job = "t:n1-0"
    prints.stream.write("begun")
    thread = threading.Thread(target=prints.stream.write, args=("another's\n",))
    thread.start()
    thread.join()
    prints.stream.write(" and ended\n")
    assert [text for _, text in prints.lines()] == ["another's", "begun and ended"]
