"""Operations: begun once, reported, superseded, remembered."""

from __future__ import annotations

import asyncio

import orjson

from upnextd.supervisor.operations import Operation, Operations, Progress


async def test_watchers_get_each_new_progress_once() -> None:
    operations = Operations()
    steps = iter(["a", "a", "b"])
    operation = operations.begin("scale 2", lambda: Progress(next(steps)))
    seen: list[str] = []

    def watch(changed: Operation) -> None:
        seen.append(changed.progress.text)

    operation.watchers.add(watch)
    for _ in range(3):
        operations.check()
    assert seen == ["a", "b"]
    assert not operation.ended.is_set()


def test_an_operation_that_is_under_way_is_joined() -> None:
    operations = Operations()
    first = operations.begin("pause", lambda: Progress("", done=True))
    assert operations.begin("pause", lambda: Progress("")) is first
    first.check()
    assert operations.begin("pause", lambda: Progress("")) is not first


async def test_an_ended_operation_changes_no_more() -> None:
    operations = Operations()
    operation = operations.begin("drain False", lambda: Progress("drained", done=True))
    operations.check()
    operations.supersede(("drain",), "stop")
    assert operation.progress == Progress("drained", done=True)
    await asyncio.wait_for(operation.ended.wait(), 1.0)


def test_only_the_named_kinds_are_superseded() -> None:
    operations = Operations()
    scale = operations.begin("scale 2", lambda: Progress(""))
    reload = operations.begin("reload 2", lambda: Progress(""))
    operations.supersede(("scale",), "stop")
    assert scale.ended.is_set()
    assert not reload.ended.is_set()
    assert operations.under_way


def test_ended_operations_survive_an_upgrade() -> None:
    operations = Operations()
    ended = operations.begin("scale 2", lambda: Progress("done", done=True, data={"x": 1}))
    ended.check()
    fresh = Operations.from_state(orjson.loads(orjson.dumps(operations.to_state())))
    found = fresh.find(ended.op_id)
    assert found is not None
    assert found.progress == ended.progress
    assert fresh.begin("scale 3", lambda: Progress("")).op_id != ended.op_id


def test_old_operations_are_forgotten() -> None:
    operations = Operations()
    first = operations.begin("scale 0", lambda: Progress(""))
    for number in range(1, 257):
        operations.begin(f"scale {number}", lambda: Progress(""))
    assert operations.find(first.op_id) is None
