"""The processes beside the service: the embedded broker, the metrics exporter and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upnext import config
from upnext.core import secret_names
from upnext.errors import UpNextError
from upnextd.broker.embedded import STOP_S, EmbeddedBroker
from upnextd.metrics.exporter import Exporter
from upnextd.rules.plan import Mode
from upnextd.settings import Settings
from upnextd.shared import leftovers
from upnextd.shared.companion import Companion
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet
from upnextd.supervisor.generations import Generation

_BROKER_NOW_S = 1.0
"""What the broker gets to write out its data when the daemon stops at once."""
_DASHBOARD_ENV = frozenset(
    (
        *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "SSL_CERT_DIR"),
        *("SSL_CERT_FILE", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    )
)
"""What the dashboard's process gets of the environment: nothing of the service's secrets."""


class Companions:
    """Start and stop them. The broker is kept over an upgrade; the others are not, the new program starts its own."""

    def __init__(self, fleet: Fleet, duties: Duties, settings: Settings, kernel: Kernel, log: Log) -> None:
        self.beside: list[Companion] = []
        """The exporter and the dashboard, as far as they are wanted."""
        self._fleet = fleet
        self._duties = duties
        self._settings = settings
        self._kernel = kernel
        self._log = log

    @property
    def child_env(self) -> Mapping[str, str]:
        """What every child gets, and passes on: by the daemon's mark, what a job leaves behind is found and ended."""
        return {**self._settings.child_env, leftovers.VARIABLE: self._fleet.mark}

    @property
    def pids(self) -> set[int]:
        kept = (self._fleet.broker, *self.beside)
        return {one.pid for one in kept if one is not None and one.pid is not None}

    async def ensure_broker(self, generation: Generation) -> Exception | None:
        """Start the embedded broker if this generation needs one and there is none. -> why that failed."""
        fleet, settings = self._fleet, self._settings
        if fleet.broker is not None or settings.redis_url is not None or None not in generation.redis_urls:
            return None
        path = config.broker_socket_path(settings.state_dir, settings.runtime_dir, settings.name)
        fleet.broker = EmbeddedBroker(
            settings.state_dir,
            path,
            secret_names.without(settings.child_env),
            self._log,
            self._duties.wake,
            self._kernel,
        )
        try:
            await fleet.broker.start()
        except (UpNextError, OSError) as error:
            return error
        return None

    def resume_broker(self, state: dict[str, Any] | None) -> None:
        """Take over the broker that the program before us left."""
        if state is not None:
            settings = self._settings
            self._fleet.broker = EmbeddedBroker.from_state(
                state,
                settings.state_dir,
                secret_names.without(settings.child_env),
                self._log,
                self._duties.wake,
                self._kernel,
            )

    def start_beside(self) -> None:
        """Start the exporter and the dashboard, where the settings ask for them."""
        settings = self._settings
        if settings.metrics is not None:
            env = secret_names.without(self.child_env)
            self.beside.append(Exporter(self._metrics_order, env, self._log, self._kernel))
        if settings.dashboard is not None:
            env = {name: value for name, value in self.child_env.items() if name in _DASHBOARD_ENV}
            env[leftovers.VARIABLE] = self._fleet.mark
            entry = "upnext.dashboard.served:main"
            self.beside.append(Companion("dashboard", entry, self._dashboard_order, env, self._log, self._kernel))
        for companion in self.beside:
            companion.start()

    def kill_beside(self) -> None:
        """End what an upgrade doesn't hand over: the new program starts its own, on the same addresses."""
        for companion in self.beside:
            companion.kill()

    async def stop(self) -> None:
        """End them; the broker gets time to write out its data."""
        for companion in self.beside:
            companion.stop()
        if self._fleet.broker is not None:
            await self._fleet.broker.stop(_BROKER_NOW_S if self._fleet.desired.mode is Mode.STOP_NOW else STOP_S)

    def _metrics_order(self) -> dict[str, Any]:
        return {
            "supervisor_pid": self._kernel.pid(),
            "name": self._settings.name,
            "listen": self._settings.metrics,
            "socket": str(self._settings.socket),
            "redis_url": self._fleet.broker_url(),
            "namespace": self._settings.namespace,
        }

    def _dashboard_order(self) -> dict[str, Any]:
        dashboard = self._settings.dashboard
        assert dashboard is not None
        return {
            "supervisor_pid": self._kernel.pid(),
            "name": self._settings.name,
            "listen": str(dashboard.listen),
            "hosts": dashboard.hosts,
            "users": str(dashboard.users) if dashboard.users is not None else None,
            "proxy_header": dashboard.proxy_header,
            "state_dir": str(self._settings.state_dir),
            "socket": str(self._settings.socket),
            "redis_url": self._fleet.broker_url(),
            "namespace": self._settings.namespace,
        }
