"""The flags that every command takes, before or after its name; the nearest to the end of the line wins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from upnext.cli import known_names

F = TypeVar("F", bound=Callable[..., Any])

_META = "upnext.cli"


class Seconds(click.FloatRange):
    """A finite number of them: `nan` and `inf` are floats, too, and no comparison refuses them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a valid float.", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Flags:
    """Values of the shared flags; None: not given."""

    json: bool = False
    redis_url: str | None = None
    namespace: str | None = None
    name: str | None = None
    socket: str | None = None


def flags() -> Flags:
    """The shared flags of the running command and of the groups above it."""
    return Flags(**click.get_current_context().meta.get(_META, {}))


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # Contexts of one command line share `meta`, and the outer are parsed first, so the inner overwrite.
    if value is not None and value is not False:
        ctx.meta.setdefault(_META, {})[param.name] = value


def _flag(*names: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_keep, **attributes)


def json_option(command: F) -> F:
    """--json alone: for commands that ask neither."""
    return _flag("--json", is_flag=True, help="Print JSON.")(command)


def _name(command: F) -> F:
    return _flag(
        "--name",
        metavar="NAME",
        shell_complete=known_names.daemons,
        help="The daemon's name (default: the only one that runs).",
    )(command)


def queue_options(command: F) -> F:
    """--json, --redis-url, --namespace, --name: for commands that ask the queue."""
    command = _name(command)
    command = _flag("--namespace", metavar="NAME", help="Namespace in Redis (UPNEXT_NAMESPACE; default: default).")(
        command
    )
    command = _flag(
        "--redis-url", metavar="URL", help="Redis or Valkey to ask (UPNEXT_REDIS_URL; default: the running daemon's)."
    )(command)
    return json_option(command)


def control_options(command: F) -> F:
    """--json, --socket, --name: for commands that ask a daemon."""
    command = _name(command)
    command = _flag("--socket", metavar="PATH", help="Control socket of the daemon (UPNEXTD_SOCKET).")(command)
    return json_option(command)
