"""The sockets on which the Apis take connections. The supervisor binds them; children inherit them, so that none is missed at a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from upnext.address import Address
from upnextd.shared.kernel import Kernel
from upnextd.shared.messages import DeclaredApi


class Listeners:
    """One socket an address, shared by all processes and generations of its Api. `processes`: for Apis that have another number of them."""

    def __init__(self, kernel: Kernel, processes: Mapping[str, int] | None = None) -> None:
        self._kernel = kernel
        self._processes = processes or {}
        self._bound: dict[Address, int] = {}

    def bind(self, apis: Iterable[DeclaredApi]) -> None:
        """Listen where none of them does yet. Raises ListenError, and listens then nowhere new."""
        made: list[Address] = []
        try:
            for api in apis:
                address = address_of(api)
                if address not in self._bound:
                    self._bound[address] = self._kernel.listen(f"api {api.name!r}", address)
                    made.append(address)
        except BaseException:
            self._close(made)
            raise

    def wanted(self, apis: Iterable[DeclaredApi]) -> tuple[tuple[str, int], ...]:
        """(name, number of processes) of each."""
        return tuple((api.name, self._processes.get(api.name, api.processes)) for api in apis)

    def descriptor(self, api: DeclaredApi) -> int:
        return self._bound[address_of(api)]

    def url(self, api: DeclaredApi) -> str:
        """How people reach it: with the port that the system chose, where the Api leaves that open and it is not closed yet."""
        address = address_of(api)
        return (self._kernel.listens_at(self._bound[address]) if address in self._bound else address).url

    @property
    def addresses(self) -> tuple[Address, ...]:
        """As declared."""
        return tuple(self._bound)

    def refuse(self, address: Address) -> None:
        """Have connects there fail. Raises OSError."""
        self._kernel.refuse(self._bound[address])

    def listen_again(self, address: Address) -> None:
        """After `refuse`. Raises OSError when another process has come to listen there."""
        self._kernel.listen_again(self._bound[address])

    def refuses(self, address: Address) -> bool:
        """Also where it is closed: the daemon stops."""
        return address not in self._bound or self._kernel.refuses(self._bound[address])

    def keep(self, apis: Iterable[DeclaredApi]) -> None:
        """Close those that are for none of these."""
        kept = {address_of(api) for api in apis}
        self._close([address for address in self._bound if address not in kept])

    def close(self) -> None:
        self._close(list(self._bound))

    def _close(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._kernel.close(self._bound.pop(address))
            if address.path is not None:
                self._kernel.remove(address.path)

    # -- over an upgrade --

    def to_state(self, fds: list[int]) -> list[list[Any]]:
        """As JSON; `fds` gets the descriptors."""
        fds += self._bound.values()
        return [[one.host, one.port, one.path, fd] for one, fd in self._bound.items()]

    def resume(self, state: Iterable[Iterable[Any]]) -> None:
        """Take over what `to_state` wrote, with its descriptors open."""
        for host, port, path, fd in state:
            self._bound[Address(host, port, path)] = fd


def address_of(api: DeclaredApi) -> Address:
    return Address(api.host, api.port, api.path)
