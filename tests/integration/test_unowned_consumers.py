"""unowned_consumers: consumers in a group that have neither a lease nor a grave."""

from __future__ import annotations

from tests.integration.lua_harness import CONSUMER, Workbench, task
from upnext.core.keys import GROUP
from upnext.engine.calls import lease
from upnext.engine.calls.lease import Unowned


def read_as(work: Workbench, consumer: str, name: str = "ship", lane: str = "n") -> None:
    """A read that nothing fences: Redis creates the consumer."""
    work.broker.command(
        "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", 1, "STREAMS", work.keys.stream(name, lane), ">"
    )


def look(work: Workbench, *names: str, most: int = 1000) -> Unowned:
    streams = [stream for name in names for stream in work.keys.streams(name)]
    return work.broker.run(lease.unowned_consumers(work.keys, work.epoch, streams, most))


def test_what_holds_a_lease_or_a_grave_is_not_listed(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.take()
    assert look(work, "ship") == Unowned(4, [])
    work.submit("ship")
    work.reap(final=False)
    read_as(work, CONSUMER)
    assert look(work, "ship") == Unowned(4, [])


def test_one_with_neither_is_listed_wherever_it_is_with_or_without_entries(work: Workbench) -> None:
    work.register(task("pack"), task("ship"))
    work.submit("ship")
    read_as(work, "late")
    read_as(work, "late", "pack", "h")
    assert look(work, "pack", "ship") == Unowned(8, [(1, "late"), (4, "late")])


def test_a_record_alone_keeps_nothing(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.take()
    work.broker.command("ZREM", work.keys.leases, CONSUMER)
    assert (0, CONSUMER) in look(work, "ship").consumers


def test_after_so_many_consumers_it_says_how_far_it_came(work: Workbench) -> None:
    work.register(task("pack"), task("ship"))
    for number in range(3):
        read_as(work, f"late-{number}", "pack", "h")
    assert look(work, "pack", "ship", most=2) == Unowned(2, [(1, "late-0"), (1, "late-1"), (1, "late-2")])


def test_streams_that_are_not_there_have_no_consumers(work: Workbench) -> None:
    work.register(task("ship"))
    work.broker.command("DEL", work.keys.stream("ship", "n"))
    assert look(work, "ship", "unheard-of") == Unowned(8, [])


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.refuses_another_epoch(lambda epoch: lease.unowned_consumers(work.keys, epoch, work.keys.streams("ship"), 1))
