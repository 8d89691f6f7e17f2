"""Children that can't start for want of something outside of the code: it is logged once, and waited for."""

from __future__ import annotations

from collections.abc import Callable

from upnextd.rules import boot
from upnextd.shared.logs import Log
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.systemd import Notifier


class BootWait:
    """How long the broker is waited for, and what the status says meanwhile. `clock`: monotonic seconds."""

    def __init__(
        self, fleet: Fleet, notifier: Notifier, log: Log, clock: Callable[[], float], boot_timeout_s: float
    ) -> None:
        self._fleet = fleet
        self._notifier = notifier
        self._log = log
        self._clock = clock
        self._boot_timeout_s = boot_timeout_s

    def try_s(self, *, first: bool) -> float:
        """Return for how long a child tries to reach the broker. `first`: the first child of its slot."""
        return boot.try_s(self._boot_timeout_s, self._waited_s(), booted=self._fleet.booted, first=first)

    def goes_on(self) -> bool:
        """Whether a child that found no broker is followed by another: the start goes on."""
        return not self._fleet.booted and boot.goes_on(self._boot_timeout_s, self._waited_s())

    def report(self, what: str, line: str) -> None:
        """A child did not get what it needs: log it once, and ask the service manager for more time."""
        if not self._fleet.waiting:
            self._log.caution(f"waiting for {what}: {line}")
        self._fleet.waiting = f"{self._fleet.name}: waiting for {what}: {line}"
        if not self._fleet.booted:
            self._notifier.extend_start(boot.EXTENSION_S)

    def _waited_s(self) -> float:
        return self._clock() - self._fleet.opened_at
