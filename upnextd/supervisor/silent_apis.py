"""Connects to an Api are refused while none of its processes takes any: what asks goes elsewhere, in place of waiting for nothing.

That is so after NO_PROCESS_S without a process that is ready and whose loop turns. The socket stays bound; as soon as a process is
ready, it listens again. Processes that hang are replaced then: a loop that goes on would find its socket closed.
"""

from __future__ import annotations

from collections.abc import Iterator

from upnext.address import Address
from upnextd.rules.slots import SERVING, State
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.instances import Instance
from upnextd.supervisor.listeners import address_of

NO_PROCESS_S = 5.0


class SilentApis:
    """Refuse connects, and take them again; after every change and at every tick."""

    def __init__(self, fleet: Fleet, duties: Duties, log: Log, hang_timeout_s: float) -> None:
        self._fleet = fleet
        self._duties = duties
        self._log = log
        self._hang_timeout_s = hang_timeout_s
        self._served_at: dict[Address, float] = {}
        self._refused_logged: set[Address] = set()
        """Where it was logged that it can't be listened on again."""
        self._shut: set[int] = set()
        """Instances that hung when connects were refused: they count no more, whatever becomes of their loops."""

    def check(self, now: float) -> None:
        """Compare what listens with what serves. `now`: monotonic seconds."""
        listeners = self._fleet.listeners
        if self._fleet.desired.stopping or not listeners.addresses:
            return
        self._served_at = {address: self._served_at.get(address, now) for address in listeners.addresses}
        serving: set[Address] = set()
        for address, instance, beaten_s in self._processes(now):
            if instance.life.state is State.READY and instance.id not in self._shut:
                self._served_at[address] = max(self._served_at[address], now - beaten_s)
                if beaten_s <= self._hang_timeout_s:
                    serving.add(address)
        for address in listeners.addresses:
            refuses = listeners.refuses(address)
            if address in serving and refuses:
                self._listen_again(address)
            elif address not in serving and not refuses and now - self._served_at[address] >= NO_PROCESS_S:
                self._refuse(address, now)

    def _refuse(self, address: Address, now: float) -> None:
        try:
            self._fleet.listeners.refuse(address)
        except OSError:
            # Of a path that was removed: connects to it fail already.
            return
        for where, instance, beaten_s in self._processes(now):
            if where == address and beaten_s > self._hang_timeout_s:
                self._shut.add(instance.id)
                instance.outdated = True
                self._duties.wake()
        for api, _ in self._fleet.served():
            if address_of(api) == address:
                self._log.fault(
                    f"api {api.name!r} at {self._fleet.listeners.url(api)}: no process has taken connections for"
                    f" {NO_PROCESS_S:g} s; they are refused until one does"
                )
                self._duties.emit("api", {"api": api.name, "listening": False})

    def _listen_again(self, address: Address) -> None:
        try:
            self._fleet.listeners.listen_again(address)
        except OSError as error:
            if address not in self._refused_logged:
                self._log.fault(f"{address} can't be listened on again: {error.strerror or error}")
            self._refused_logged.add(address)
            return
        self._refused_logged.discard(address)
        for api, _ in self._fleet.served():
            if address_of(api) == address:
                self._log.note(f"api {api.name!r} at {self._fleet.listeners.url(api)}: connections are taken again")
                self._duties.emit("api", {"api": api.name, "listening": True})

    def _processes(self, now: float) -> Iterator[tuple[Address, Instance, float]]:
        """-> the address of each that was ready and was not asked to end, and the age of its last beat in seconds."""
        for instance in self._fleet.instances:
            address, child = instance.address, instance.child
            if (
                address is not None
                and child is not None
                and child.ready_at is not None
                and instance.life.state in SERVING
            ):
                yield address, instance, child.heart.age_s(now)
