"""What an actor of the supervisor can have done: six verbs. What it knows is in the fleet; it never knows the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from upnext.control.exits import ExitCode
from upnextd.rules.slots import Event
from upnextd.supervisor.instances import Instance


class Duties(Protocol):
    """The verbs. The supervisor's loop carries them out."""

    def post(self, instance: Instance, event: Event, until: float | None = None) -> None:
        """Step the instance's table by one event. `until`: the deadline that STOP and BACK_OFF bring along (monotonic s)."""
        ...

    def wake(self) -> None:
        """Compare desired and observed soon."""
        ...

    def edit(self, **changes: Any) -> None:
        """Change fields of the desired state."""
        ...

    def fail(self, code: ExitCode, line: str) -> None:
        """End the daemon with this code; `line` says why. The first failure counts."""
        ...

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """Send an event to the subscribers of the control socket."""
        ...

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run in the background, for no longer than the daemon; a failure of it ends the daemon."""
        ...
