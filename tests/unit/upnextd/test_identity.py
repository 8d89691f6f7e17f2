"""A daemon's name is believed only in the place where it was made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from upnextd.shared import identity
from upnextd.shared.identity import InstanceView, identify, known_id, stored_form

HERE = InstanceView("machine", "boot", "host", 12)
ID = "0123456789abcdef"


def test_it_is_known_where_it_was_made() -> None:
    assert known_id(stored_form(ID, HERE), HERE) == ID


@pytest.mark.parametrize(
    "elsewhere",
    [replace(HERE, machine="m2"), replace(HERE, boot="b2"), replace(HERE, host="h2"), replace(HERE, inode=13)],
    ids=["machine", "boot", "host", "copy"],
)
def test_it_is_not_known_elsewhere(elsewhere: InstanceView) -> None:
    assert known_id(stored_form(ID, HERE), elsewhere) is None


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\n",
        ID.encode(),
        ID.encode() + b"\nnot json\n",
        ID.encode() + b"\n[]\n",
        b"../../etc/passwd" + stored_form(ID, HERE)[16:],
        b"\xff\xfe\x00" * 9,
        stored_form(ID.upper(), HERE),
    ],
)
def test_junk_is_no_name(stored: bytes) -> None:
    assert known_id(stored, HERE) is None


def test_a_second_start_finds_the_name_of_the_first(tmp_path: Path) -> None:
    first, second = identify(tmp_path), identify(tmp_path)
    assert (first.is_known, second.is_known) == (False, True)
    assert first.daemon_id == second.daemon_id


def test_a_copy_of_the_directory_has_a_name_of_its_own(tmp_path: Path) -> None:
    original, copy = tmp_path / "a", tmp_path / "b"
    original.mkdir()
    first = identify(original)
    shutil.copytree(original, copy)
    other = identify(copy)
    assert not other.is_known
    assert other.daemon_id != first.daemon_id
    assert identify(original) == replace(first, is_known=True), "and the original keeps its own"
    assert identify(copy) == replace(other, is_known=True)


def test_another_machine_of_the_same_image_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = identify(tmp_path)
    monkeypatch.setattr("upnextd.shared.identity.socket.gethostname", lambda: "clone")
    assert identify(tmp_path).daemon_id != first.daemon_id


def test_a_name_of_an_older_version_is_not_bound_and_so_not_known(tmp_path: Path) -> None:
    (tmp_path / identity.FILE).write_text(ID + "\n")
    assert identify(tmp_path).daemon_id != ID
