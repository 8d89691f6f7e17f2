"""The socket of a dashboard: who may connect to it, and what it does not take the place of."""

from __future__ import annotations

import grp
import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from upnext.address import Address
from upnext.dashboard.server import bind
from upnext.errors import UsageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_path_is_its_user_s_alone_or_a_group_s_too(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    for group, expected in ((None, 0o600), (_own_group(), 0o660)):
        with closing(bind(Address(path=str(path)), group)):  # the second time, what the first one left is in the way
            assert mode(path) == expected
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with closing(bind(Address(path=str(path)))), pytest.raises(OSError, match="another process listens there"):
        bind(Address(path=str(path)))
    path.unlink()
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"dashboard socket .*a\.sock: a file that is not a socket is in the way"):
        bind(Address(path=str(path)))
    assert path.read_text() == "mine"


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no group 'no-such-group'"):
        bind(Address(path=str(tmp_path / "a.sock")), "no-such-group")


def _own_group() -> str:
    return grp.getgrgid(os.getgid()).gr_name
