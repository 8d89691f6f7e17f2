"""`upnext dashboard`: pages about the queue, for one person or a team."""

# ruff: noqa: PLC0415 - heavy modules are imported when the command runs

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import signal
import time
from pathlib import Path

import click

from upnext import config, project
from upnext.cli import output
from upnext.cli.options import flags, queue_options
from upnext.control.exits import ExitCode
from upnext.control.listen import parse_listen
from upnext.dashboard import auth, footprint
from upnext.dashboard.settings import DashboardSettings, check
from upnext.errors import UsageError

DEFAULT_LISTEN = "127.0.0.1:8300"
NAME = "dashboard"


@click.group(invoke_without_command=True)
@click.option(
    "--listen", metavar="HOST:PORT|/path.sock", default=DEFAULT_LISTEN, show_default=True, help="Where to listen."
)
@click.option(
    "--users", "users_file", type=click.Path(path_type=Path), help="A file of `user:role:hash` lines (see adduser)."
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME", help="A further name that people reach it by; may be repeated."
)
@click.option("--proxy-header", metavar="NAME", help="Header in which a proxy names the user; with a Unix socket only.")
@click.option("--group", metavar="NAME", help="Group that may open the Unix socket (else only this user).")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where dashboard.token lives.")
@queue_options
@click.pass_context
def dashboard(
    ctx: click.Context,
    listen: str,
    users_file: Path | None,
    hosts: tuple[str, ...],
    proxy_header: str | None,
    group: str | None,
    state_dir: Path | None,
) -> None:
    """Serve pages about hosts, workers, tasks and jobs."""
    ctx.obj = state_dir
    if ctx.invoked_subcommand is not None:
        ctx.meta["upnext.dashboard.listen"] = listen
        return
    asked = flags()
    settings = DashboardSettings(
        listen=parse_listen(listen),
        namespace=config.namespace(asked.namespace, project.environment(os.environ)),
        redis_url=config.redis_url(asked.redis_url, project.environment(os.environ), name=asked.name).url,
        state_dir=_state(state_dir),
        hosts=frozenset(hosts),
        users_file=users_file,
        proxy_header=proxy_header,
        group=group,
    )
    check(settings)
    ctx.exit(serve(settings))


@dashboard.command()
@queue_options
@click.pass_context
def url(ctx: click.Context) -> None:
    """Print a link that logs in once, within a minute."""
    from upnext.dashboard.logins import load_token

    listen = parse_listen(ctx.meta["upnext.dashboard.listen"])
    if listen.path is not None:
        raise UsageError("a dashboard on a Unix socket is reached through its proxy: log in there")
    token = load_token(_state(ctx.obj) / "dashboard.token")
    click.echo(f"http://{listen}/login?ticket={auth.make_link(token, time.time(), secrets.token_bytes(16))}")


@dashboard.command()
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in auth.Role]), required=True)
def adduser(name: str, role: str) -> None:
    """Ask for a password and print a line for the users file."""
    password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    click.echo(auth.user_line(name, auth.Role(role), password, secrets.token_bytes(16)))


def _state(given: Path | None) -> Path:
    return config.state_dir(NAME, str(given) if given is not None else None, project.environment(os.environ))


def serve(settings: DashboardSettings, until: int | None = None) -> ExitCode:
    """Serve until a signal asks to end, or `until`, a descriptor, becomes readable. Raises UsageError for what is missing or wrong."""
    output.log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    footprint.keep_small()
    try:
        from upnext.dashboard import app, server
        from upnext.dashboard.actions import Actions
        from upnext.dashboard.logins import Logins
        from upnext.dashboard.pages import Pages
        from upnext.dashboard.render import Renderer
        from upnext.dashboard.source import Source
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the dashboard needs {error.name}: install the extra, pip install '/path/to/checkout[dashboard]'"
        ) from None
    from upnext.engine.client.sync_client import SyncQueueClient

    logins = Logins(settings)
    client = SyncQueueClient(settings.redis_url, settings.namespace, name="upnext-dashboard")
    source, renderer = Source(client), Renderer("UpNext")
    pages = Pages(source, renderer)
    routes = [*pages.routes(), *Actions(source, renderer, pages).routes()]
    application = app.build(settings, logins, renderer, routes)

    footprint.give_back()

    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        if until is not None:
            loop.add_reader(until, stopped.set)
        await server.serve(settings, application, stopped, _ready(settings))

    try:
        asyncio.run(main())
    except OSError as error:
        output.tell(f"can't listen on {settings.listen}: {error.strerror or error}")
        return ExitCode.UNAVAILABLE
    finally:
        client.close()
    return ExitCode.OK


def _url_command(settings: DashboardSettings) -> str:
    """With the options that this dashboard needs and the command does not have by itself."""
    words = ["upnext", "dashboard"]
    if str(settings.listen) != DEFAULT_LISTEN:
        words += ["--listen", str(settings.listen)]
    if settings.state_dir != _state(None):
        words += ["--state-dir", str(settings.state_dir)]
    return shlex.join([*words, "url"])


def _ready(settings: DashboardSettings) -> str:
    if settings.listen.path is not None:
        return f"the dashboard listens on {settings.listen}"
    how = (
        "log in with a name of the users file"
        if settings.users_file
        else f"`{_url_command(settings)}` prints a link that logs you in"
    )
    return f"the dashboard listens on http://{settings.listen}/ ({how})"
