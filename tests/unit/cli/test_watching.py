"""Files that change are found with `watchfiles`, without it, and where it breaks off."""

from __future__ import annotations

import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from upnext.cli.watching import Watch, watchfiles


def broken(*folders: Path, **options: Any) -> Iterator[set[Any]]:
    raise OSError("no space for one more watch")
    yield set()


LIBRARIES = {"with": watchfiles(), "without": None, "broken": types.SimpleNamespace(watch=broken)}


@pytest.fixture(params=LIBRARIES)
def watch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watch]:
    (tmp_path / "shop.py").touch()
    (tmp_path / ".venv").mkdir()
    watch = Watch([tmp_path], watchfiles=LIBRARIES[request.param])
    watch.begin()
    yield watch
    watch.close()


def found(watch: Watch, within_s: float = 20) -> list[str]:
    changed: list[Path] = []

    def look() -> bool:
        watch.wait(0.1)
        changed[:] = watch.changed()
        return bool(changed)

    wait_until(look, within_s, "the change to be found")
    return [path.name for path in changed]


def test_the_library_is_here() -> None:
    assert watchfiles() is not None, "it is among the development tools"


def test_what_is_new_changed_or_gone_is_found_until_it_counts(tmp_path: Path, watch: Watch) -> None:
    assert watch.changed() == []
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".venv" / "library.py").touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "tea.py").touch()
    assert found(watch) == ["tea.py"]
    assert found(watch) == ["tea.py"], "it was not taken up yet"
    watch.begin()
    (tmp_path / "shop.py").unlink()
    assert found(watch) == ["shop.py"]
    watch.begin()
    os.utime(tmp_path / "below" / "tea.py", ns=(1, 1))
    assert found(watch) == ["tea.py"]


def test_a_descriptor_ends_the_wait(watch: Watch) -> None:
    reads, writes = os.pipe()
    assert not watch.wait(0, reads)
    os.write(writes, b".")
    assert watch.wait(20, reads)
    os.close(reads)
    os.close(writes)


def test_a_change_ends_the_wait(tmp_path: Path) -> None:
    watch = Watch([tmp_path], watchfiles=watchfiles())
    watch.begin()
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.2):  # the first writes may come before the library watches
            (tmp_path / "tea.py").touch()

    writing = threading.Thread(target=write)
    writing.start()
    watch.wait(200)  # longer than the test may last
    ended.set()
    writing.join()
    assert [path.name for path in watch.changed()] == ["tea.py"]
    watch.close()
