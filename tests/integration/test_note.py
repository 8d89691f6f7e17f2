"""note, and what becomes of notes: they live and go with their job, or with its dead letter."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.lua_harness import Taken, Workbench, task
from upnext.core import entry
from upnext.core.outcome import JobStatus
from upnext.engine.calls import admin, worker
from upnext.engine.calls.worker import Finish
from upnext.engine.views import dead_letters

NOTES = {"progress": 0.5, "message": None, "checkpoint": {"row": 7}}
MOST_DEAD_BYTES = 256 * 1024 * 1024


def note(work: Workbench, one: Taken) -> bool:
    call = worker.note(work.keys, one.task, one.lane, one.entry_id, one.job_id, json.dumps(NOTES).encode())
    return work.broker.run(call)


def notes(work: Workbench) -> dict[str, dict[str, object]]:
    return {job_id: json.loads(raw) for job_id, raw in work.hash(work.keys.notes).items()}


def end(one: Taken, *, bury: bool = False, text: bytes = b"") -> Finish:
    meta = one.meta if one.meta != entry.Meta() else None
    status = JobStatus.FAILED if bury else JobStatus.DONE
    return Finish(
        one.task, one.lane, one.entry_id, status, b'{"s":"%s"}' % status.value.encode(), meta, bury, notes=text
    )


def buried(work: Workbench, text: bytes = b"") -> str:
    one = work.take()
    assert work.broker.run(work.finish_call(end(one, bury=True, text=text))) == []
    return one.job_id


def test_only_the_holder_notes(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    assert note(work, one)
    assert notes(work) == {one.job_id: NOTES}
    work.hand_back(one)
    before = work.everything()
    assert not note(work, one), "it is another entry by now"
    assert work.everything() == before
    again = work.take()
    assert note(work, again)
    work.broker.run(work.finish_call(end(again)))
    assert not note(work, again), "a write that comes late"
    assert notes(work) == {}


def _finish(work: Workbench, one: Taken) -> None:
    assert work.broker.run(work.finish_call(end(one))) == []


def _cancel_delayed(work: Workbench, one: Taken) -> None:
    work.retry(work.put_back(one, delay_ms=60_000))
    assert work.cancel(one.job_id) == 1


def _purge_delayed(work: Workbench, one: Taken) -> None:
    work.retry(work.put_back(one, delay_ms=60_000))
    work.broker.run(admin.purge_delayed(work.keys, "ship", "0"))


def _cancel_queued(work: Workbench, one: Taken) -> None:
    work.reap()
    assert work.cancel(one.job_id) == 1


def _purge_queued(work: Workbench, one: Taken) -> None:
    work.reap()
    assert work.broker.run(admin.purge_queued(work.keys, "ship", "b")) == 1


def _cancel_running_then_lose_it(work: Workbench, one: Taken) -> None:
    assert work.cancel(one.job_id) == 2
    work.reap()


def _purge_dead(work: Workbench, one: Taken) -> None:
    assert work.broker.run(work.finish_call(end(one, bury=True))) == []
    assert notes(work) == {one.job_id: NOTES}
    dead_letters.purge(work.broker, work.keys, [one.job_id])


@pytest.mark.parametrize(
    "how",
    [
        _finish,
        _cancel_delayed,
        _purge_delayed,
        _cancel_queued,
        _purge_queued,
        _cancel_running_then_lose_it,
        _purge_dead,
    ],
)
def test_they_go_on_every_way_out(work: Workbench, how: Callable[[Workbench, Taken], None]) -> None:
    work.register(task("ship", retries=2))
    work.submit("ship")
    one = work.take()
    note(work, one)
    how(work, one)
    assert notes(work) == {}
    assert work.leaks() == []


def test_a_retry_takes_the_newest_along(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    work.submit("ship")
    back = work.put_back(work.take())
    back.notes = b'{"checkpoint":2}'
    work.retry(back)
    work.retry(back)
    assert notes(work) == {back.job_id: {"checkpoint": 2}}


def test_what_was_running_at_a_stop_starts_with_its_notes(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.submit("ship")
    noted, other = work.fetch(2)
    note(work, noted)
    work.reap()
    assert {meta.job_id: meta.noted for meta in work.metas("ship", "b")} == {noted.job_id: True, other.job_id: False}
    assert notes(work) == {noted.job_id: NOTES}


def test_a_dead_letter_has_the_newest_and_a_retry_of_it_starts_with_them(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    job_id = buried(work, b'{"checkpoint":3}')
    assert notes(work) == {job_id: {"checkpoint": 3}}
    dead_letters.retry(work.broker, work.keys, [job_id])
    again = work.take()
    assert (again.job_id, again.meta.noted) == (job_id, True)
    work.broker.run(work.finish_call(end(again)))
    assert work.leaks() == []
    assert notes(work) == {}


# --- how large dead letters are


def total(work: Workbench) -> tuple[int, int]:
    count, bytes_ = (work.broker.command("GET", work.keys.dead_bytes) or b"0 0").split()
    return int(count), int(bytes_)


def really(work: Workbench) -> tuple[int, int]:
    rows = [*work.hash(work.keys.dead_jobs).items(), *((id_, raw) for id_, raw in work.hash(work.keys.notes).items())]
    ids = work.dead_ids()
    return len(ids), sum(len(raw) for _, raw in rows) + sum(len(id_) for id_ in ids)


def test_their_size_is_known_whatever_comes_and_goes(work: Workbench) -> None:
    work.register(task("ship"))
    ids: list[str] = []
    for number in range(6):
        work.submit("ship")
        ids.append(buried(work, b'{"checkpoint":"%s"}' % (b"x" * 1000 * number)))
        assert total(work) == really(work)
    dead_letters.purge(work.broker, work.keys, [*ids[:2], "ship:n1-0"])
    assert total(work) == really(work)
    dead_letters.retry(work.broker, work.keys, [ids[2]])
    count, size = total(work)
    assert (count, size) == (3, really(work)[1] - len(work.hash(work.keys.notes)[ids[2]])), (
        "its notes are a job's again"
    )
    dead_letters.purge(work.broker, work.keys, ids[3:])
    assert total(work) == (0, 0)


def test_the_oldest_go_when_all_together_are_too_large(work: Workbench) -> None:
    work.register(task("ship"))
    ids: list[str] = []
    for number in range(5):
        work.submit("ship")
        ids.append(buried(work, b'{"checkpoint":"%s"}' % (b"x" * 100_000)))
        work.broker.command("ZADD", work.keys.dead, number + 1, ids[-1])
    work.broker.command("SET", work.keys.dead_bytes, f"5 {MOST_DEAD_BYTES - 50_000}")
    work.submit("ship")
    ids.append(buried(work, b'{"checkpoint":"%s"}' % (b"x" * 100_000)))
    assert work.dead_ids() == ids[1:]
    assert set(work.hash(work.keys.dead_jobs)) == set(notes(work)) == set(ids[1:])
    count, size = total(work)
    assert count == 5
    assert MOST_DEAD_BYTES - 51_000 < size <= MOST_DEAD_BYTES


def test_what_another_version_wrote_is_counted(work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(3):
        work.submit("ship")
        buried(work)
    work.broker.command("DEL", work.keys.dead_bytes)
    work.submit("ship")
    buried(work)
    (count, size), (_, real) = total(work), really(work)
    assert count == 4
    assert abs(size - real) <= 4
