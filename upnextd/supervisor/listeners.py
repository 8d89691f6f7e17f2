"""The sockets on which the Apis take connections. The supervisor binds them; children inherit them, so that none is missed at a change."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from upnext.address import Address
from upnext.listening import bound_at, listen
from upnextd.shared.messages import DeclaredApi


class Listeners:
    """One socket an address, shared by all processes and generations of its Api. `processes`: for Apis that have another number of them."""

    def __init__(self, processes: Mapping[str, int] | None = None) -> None:
        self._processes = processes or {}
        self._bound: dict[Address, socket.socket] = {}

    def bind(self, apis: Iterable[DeclaredApi]) -> None:
        """Listen where none of them does yet. Raises ListenError, and listens then nowhere new."""
        made: list[Address] = []
        try:
            for api in apis:
                address = _address(api)
                if address not in self._bound:
                    self._bound[address] = listen(f"api {api.name!r}", address)
                    made.append(address)
        except BaseException:
            self._close(made)
            raise

    def wanted(self, apis: Iterable[DeclaredApi]) -> tuple[tuple[str, int], ...]:
        """(name, number of processes) of each."""
        return tuple((api.name, self._processes.get(api.name, api.processes)) for api in apis)

    def descriptor(self, api: DeclaredApi) -> int:
        return self._bound[_address(api)].fileno()

    def url(self, api: DeclaredApi) -> str:
        """How people reach it: with the port that the system chose, where the Api leaves that open."""
        return bound_at(self._bound[_address(api)]).url

    def keep(self, apis: Iterable[DeclaredApi]) -> None:
        """Close those that are for none of these."""
        kept = {_address(api) for api in apis}
        self._close([address for address in self._bound if address not in kept])

    def close(self) -> None:
        self._close(list(self._bound))

    def _close(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._bound.pop(address).close()
            if address.path is not None:
                try:
                    os.unlink(address.path)
                except OSError:
                    continue

    # -- over an upgrade --

    def to_state(self, fds: list[int]) -> list[list[Any]]:
        """As JSON; `fds` gets the descriptors."""
        fds += [one.fileno() for one in self._bound.values()]
        return [[one.host, one.port, one.path, bound.fileno()] for one, bound in self._bound.items()]

    def resume(self, state: Iterable[Iterable[Any]]) -> None:
        """Take over what `to_state` wrote, with its descriptors open."""
        for host, port, path, fd in state:
            self._bound[Address(host, port, path)] = socket.socket(fileno=fd)


def _address(api: DeclaredApi) -> Address:
    return Address(api.host, api.port, api.path)
