"""Names for completion at TAB that only a queue or a daemon knows."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import os
from collections.abc import Iterable

import click


def tasks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The registered tasks."""
    from upnext.cli.queue import queue
    from upnext.engine.views import tasks as view

    with ctx.scope(cleanup=False), queue() as broker:
        return _beginning(incomplete, (facts.name for facts in view.known(broker, broker.keys)))


def slots(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The slots of the daemon that the command is for."""
    from upnext.cli.ctl.connect import connect

    with ctx.scope(cleanup=False), connect() as client:
        return _beginning(incomplete, (child["slot"] for child in client.call("status")["children"]))


def daemons(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The daemons that run on this machine."""
    from upnext import config, project

    return _beginning(incomplete, (name for name, _ in config.find_control_sockets(project.environment(os.environ))))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
