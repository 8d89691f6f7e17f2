"""note_activity: events of daemons are appended once; pages of them and of what people did."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from upnext.core import activity
from upnext.dashboard import history
from upnext.engine.calls import daemons


def event(number: int, life: int = 1) -> tuple[str, bytes]:
    fields = {"number": number, "at_ms": number, "kind": "mode", "slot": "", "text": f"mode: {number}"}
    return activity.encode(life, fields, "shop", "web-1")


def act(bench: Bench, what: str) -> None:
    bench.broker.command("XADD", bench.keys.audit, "*", "e", f'{{"who":"ann","what":"{what}","target":"ship"}}')


def shown(
    bench: Bench, before: str | None = None, daemon: str | None = None, most: int = 100
) -> tuple[list[str], str | None]:
    lines, older = history.lines(bench.broker, bench.keys, before, daemon, most)
    return [line["what"] for line in lines], older


def test_an_event_that_is_sent_again_stands_there_once(bench: Bench) -> None:
    assert bench.broker.run(daemons.note_activity(bench.keys, "a", [event(1), event(2)])) == 2
    assert bench.broker.run(daemons.note_activity(bench.keys, "a", [event(1), event(2), event(3)])) == 1
    assert bench.broker.run(daemons.note_activity(bench.keys, "b", [event(1)])) == 1
    assert bench.broker.run(daemons.note_activity(bench.keys, "a", [event(1, life=2)])) == 1
    assert bench.broker.command("XLEN", bench.keys.activity) == 5


def test_both_are_one_list_by_time_and_by_page(bench: Bench) -> None:
    for number in range(1, 8):
        bench.broker.run(daemons.note_activity(bench.keys, "a", [event(number)]))
        act(bench, f"pause {number}")
    bench.broker.command("XADD", bench.keys.activity, "*", "e", "{broken", "d", "a")
    whole, older = shown(bench)
    assert (len(whole), older) == (14, None)
    found: list[str] = []
    before = None
    for _ in range(10):
        part, before = shown(bench, before, most=4)
        found += part
        if before is None:
            break
    assert found == whole
    assert set(whole) == {f"mode: {number}" for number in range(1, 8)} | {f"pause {number}" for number in range(1, 8)}


def test_those_of_one_daemon(bench: Bench) -> None:
    bench.broker.run(daemons.note_activity(bench.keys, "a", [event(1)]))
    bench.broker.run(daemons.note_activity(bench.keys, "b", [event(2)]))
    act(bench, "pause")
    assert shown(bench, daemon="b") == (["mode: 2"], None)
    [line] = history.lines(bench.broker, bench.keys, None, "b", 100)[0]
    assert (line["kind"], line["who"], line["daemon"], line["at_ms"]) == ("mode", "shop on web-1", "b", 2)
