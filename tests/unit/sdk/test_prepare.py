"""What is done once in the template, before children are forked, so that no child does it again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from upnext.service import load

SOURCE = """
import decimal
import upnext

worker = upnext.Worker()

@worker.task
async def pay(amount: decimal.Decimal) -> decimal.Decimal:
    return amount

@worker.event("paid").on
async def note(amount: decimal.Decimal) -> None: ...
"""


def test_prepare_makes_the_converters_of_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "service_to_prepare.py"
    path.write_text(SOURCE)
    service = load(str(path))
    try:
        signatures = [task.arguments for worker in service.spec.workers for task in worker.tasks.values()]
        assert [signature.is_prepared for signature in signatures] == [False, False]  # type: ignore[attr-defined]
        service.prepare()
        assert [signature.is_prepared for signature in signatures] == [True, True]  # type: ignore[attr-defined]
    finally:
        del sys.modules[path.stem]
