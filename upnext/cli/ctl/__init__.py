"""`upnext ctl`: commands to a running daemon over its control socket. Nothing here knows Redis."""

from __future__ import annotations

import click

from upnext.cli.ctl.operations import drain, pause, reload, restart, resume, scale, stop
from upnext.cli.ctl.show import dump, status
from upnext.cli.ctl.watch import events, top
from upnext.cli.nearest import NearestGroup
from upnext.cli.options import control_options


@click.group(cls=NearestGroup)
@control_options
def ctl() -> None:
    """Control a running upnextd."""


for _command in (status, drain, pause, resume, reload, scale, restart, dump, stop, top, events):
    ctl.add_command(_command)
