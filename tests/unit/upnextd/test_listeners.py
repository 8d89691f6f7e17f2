"""The sockets of the Apis: bound once, shared, handed over, closed when no generation has an Api for them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from upnext.errors import ListenError
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.messages import DeclaredApi
from upnextd.supervisor.listeners import Listeners


def declared(name: str, *, port: int = 0, path: Path | None = None, processes: int = 1) -> DeclaredApi:
    return DeclaredApi(
        name=name,
        host="127.0.0.1",
        port=port,
        path=None if path is None else str(path),
        processes=processes,
        graceful_timeout_s=1.0,
    )


def test_an_address_is_bound_once(tmp_path: Path) -> None:
    listeners, api = Listeners(LinuxKernel()), declared("front", path=tmp_path / "a.sock")
    listeners.bind([api])
    first = listeners.descriptor(api)
    listeners.bind([api])
    assert listeners.descriptor(api) == first
    assert listeners.url(api) == f"unix:{tmp_path}/a.sock"
    listeners.close()
    assert not (tmp_path / "a.sock").exists()


def test_one_that_is_taken_leaves_nothing_bound(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listeners = Listeners(LinuxKernel())
        with pytest.raises(ListenError, match="api 'back': .* is in use"):
            listeners.bind([declared("front", path=tmp_path / "a.sock"), declared("back", port=taken.getsockname()[1])])
    assert not (tmp_path / "a.sock").exists()


def test_those_that_no_api_has_are_closed(tmp_path: Path) -> None:
    front, back = declared("front", path=tmp_path / "a.sock"), declared("back", path=tmp_path / "b.sock")
    listeners = Listeners(LinuxKernel())
    listeners.bind([front, back])
    listeners.keep([back])
    assert not (tmp_path / "a.sock").exists()
    assert (tmp_path / "b.sock").exists()
    listeners.close()


def test_they_go_over_an_upgrade(tmp_path: Path) -> None:
    api = declared("front", path=tmp_path / "a.sock")
    before, after = Listeners(LinuxKernel()), Listeners(LinuxKernel())
    before.bind([api])
    fds: list[int] = []
    state = before.to_state(fds)
    copy = os.dup(fds[0])
    state[0][3] = copy
    after.resume(state)
    assert after.descriptor(api) == copy
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "a.sock"))
    after.close()
    before.close()


def test_the_number_of_processes_can_be_given() -> None:
    apis = [declared("front", processes=2), declared("back")]
    assert Listeners(LinuxKernel(), {"front": 5}).wanted(apis) == (("front", 5), ("back", 1))


@pytest.mark.parametrize("on_a_path", [False, True])
def test_one_that_refuses_keeps_its_address_and_listens_again(tmp_path: Path, on_a_path: bool) -> None:
    api = declared("front", path=tmp_path / "a.sock" if on_a_path else None)
    listeners = Listeners(LinuxKernel())
    listeners.bind([api])
    (address,), url = listeners.addresses, listeners.url(api)
    other_copy = os.dup(listeners.descriptor(api))  # as a child has it
    there = str(tmp_path / "a.sock") if on_a_path else ("127.0.0.1", int(url.rpartition(":")[2]))

    def connect() -> None:
        with socket.socket(socket.AF_UNIX if on_a_path else socket.AF_INET) as client:
            client.connect(there)

    connect()
    for _ in range(2):
        listeners.refuse(address)
        assert listeners.refuses(address)
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            connect()
        listeners.listen_again(address)
        assert not listeners.refuses(address)
        connect()
    assert listeners.url(api) == url
    listeners.refuse(address)
    listeners.close()
    os.close(other_copy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_a_path", [False, True])
def test_one_that_refuses_does_not_drive_another_out(tmp_path: Path, on_a_path: bool) -> None:
    api = declared("front", path=tmp_path / "a.sock" if on_a_path else None)
    listeners = Listeners(LinuxKernel())
    listeners.bind([api])
    (address,) = listeners.addresses
    port = 0 if on_a_path else int(listeners.url(api).rpartition(":")[2])
    listeners.refuse(address)
    other = Listeners(LinuxKernel())
    other.bind([declared("front", port=port, path=tmp_path / "a.sock" if on_a_path else None)])
    with pytest.raises(OSError, match="in use"):
        listeners.listen_again(address)
    listeners.close()
    other.close()
