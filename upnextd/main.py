"""`upnextd`: the command line. Settings are read here, once; everything after works on frozen objects."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import click
import setproctitle

import upnext
from upnext import config, project
from upnext.cli import completing
from upnext.cli.nearest import NearestGroup
from upnext.cli.wrong_usage import wrong_usage
from upnext.control.exits import ExitCode
from upnext.control.listen import refuse_taken
from upnext.core.visible import visible
from upnext.embedded import private_files
from upnext.errors import ListenError, UsageError
from upnextd import check as service_check
from upnextd import kernel_check
from upnextd.control.commands import ControlCommands
from upnextd.control.server import ControlServer, SocketInUseError
from upnextd.rules import plan
from upnextd.rules.modes import Request
from upnextd.settings import Flags, Settings, build, child_env
from upnextd.shared import identity, leftovers, lock, process
from upnextd.shared.identity import Identity
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.logs import Log, Sink
from upnextd.supervisor import upgrade
from upnextd.supervisor.supervisor import Supervisor
from upnextd.supervisor.systemd import Notifier
from upnextd.supervisor.upgrade import OUR_SIGNALS, Inherited, Upgrades


@click.group(cls=NearestGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(upnext.__version__, prog_name="upnextd", message="%(prog)s %(version)s")
def cli() -> None:
    """Supervises a service: worker processes, the scheduler, and a broker where none is configured."""


def _option(name: str, *args: Any, **kwargs: Any) -> Any:
    """A flag with its UPNEXTD_… variable."""
    variable = "UPNEXTD_" + name.removeprefix("--").replace("-", "_").upper()
    # The URL and the namespace have variables of their own rank: upnext.config reads them.
    kwargs.setdefault("envvar", None if name == "--redis-url" else variable)
    return click.option(name, *args, show_envvar=True, **kwargs)


@cli.command()
@click.argument("service", shell_complete=completing.files)
@_option("--workers", type=int, metavar="N", help="Worker processes. [default: usable CPUs]")
@_option("--only", multiple=True, metavar="NAME", help="Only these Workers of the service; may be repeated.")
@_option("--name", metavar="NAME", help="Name of this daemon. [default: the file's stem]")
@_option("--service-name", metavar="NAME", help="Name of the service in Redis (UPNEXT_SERVICE). [default: its file's]")
@_option(
    "--redis-url",
    metavar="URL",
    help="Redis or Valkey (UPNEXTD_REDIS_URL, UPNEXT_REDIS_URL); without any, an embedded one is started.",
)
@_option("--namespace", metavar="NAME", help="Namespace of the queue (UPNEXT_NAMESPACE). [default: default]")
@_option("--socket", metavar="PATH", help="Control socket.")
@_option("--state-dir", metavar="PATH", help="Lock and data of the embedded broker.")
@_option(
    "--stop-timeout",
    type=float,
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds for running jobs at a stop.",
)
@_option(
    "--hang-timeout", type=float, default=60.0, show_default=True, metavar="S", help="Seconds without a heartbeat."
)
@_option(
    "--reload-timeout",
    type=float,
    default=3600.0,
    show_default=True,
    metavar="S",
    help="Seconds for jobs of old children.",
)
@_option(
    "--import-timeout",
    type=float,
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds for an import of the service.",
)
@_option(
    "--boot-timeout",
    type=float,
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds for the broker to answer at the start; 0: wait without end.",
)
@_option("--max-jobs", type=int, metavar="N", help="Replace a child after N jobs.")
@_option("--max-rss", metavar="SIZE", help="Replace a child that grew over SIZE, as 512M.")
@_option("--no-preload", is_flag=True, help="Every child imports the service itself.")
@_option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics.")
@_option("--dashboard", metavar="HOST:PORT|/path.sock", help="Serve the dashboard.")
@_option("--dashboard-host", multiple=True, metavar="NAME", help="A further name that people reach it by.")
@_option("--dashboard-users", metavar="FILE", help="Its `user:role:hash` lines (see `upnext dashboard adduser`).")
@_option("--dashboard-proxy-header", metavar="NAME", help="Header in which a proxy names the user; Unix socket only.")
@_option("--api-listen", multiple=True, metavar="NAME=ADDRESS", help="Where this Api listens: HOST:PORT or /path.sock.")
@_option("--api-processes", multiple=True, metavar="NAME=N", help="How many processes serve this Api.")
@_option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_option(
    "--log-level",
    metavar="LEVEL",
    help="debug, info, warning or error: the least that is logged (UPNEXT_LOG_LEVEL). [default: info]",
)
@_option("--log-file", metavar="PATH", help="Log there instead of to stderr.")
@_option("--secrets-dir", metavar="DIR", help="Secrets of the service are files in it, by their names.")
@_option("--secrets-exec", metavar="PROGRAM", help="Gives a secret on stdout for its name as argument.")
def start(service: str, **flags: Any) -> None:
    """Run SERVICE (a file, or a module as pkg.mod) until it is asked to stop. Stays in the foreground."""
    inherited = upgrade.take_over(os.environ)
    directory = None if inherited is None else inherited.directory
    sys.exit(_start(build(Flags(service, **flags), os.environ, directory), os.environ, inherited))


@cli.command()
@click.argument("service", shell_complete=completing.files)
@_option("--only", multiple=True, metavar="NAME", help="Only these Workers of the service; may be repeated.")
@_option("--service-name", metavar="NAME", help="Name of the service in Redis (UPNEXT_SERVICE). [default: its file's]")
@_option("--secrets", "with_secrets", is_flag=True, help="Read its secrets, too, and print where each comes from.")
@_option("--secrets-dir", metavar="DIR", help="Secrets of the service are files in it, by their names.")
@_option("--secrets-exec", metavar="PROGRAM", help="Gives a secret on stdout for its name as argument.")
def check(
    service: str,
    only: tuple[str, ...],
    service_name: str | None,
    with_secrets: bool,
    secrets_dir: str | None,
    secrets_exec: str | None,
) -> None:
    """Import SERVICE in a throw-away process and print what it declares."""
    names = [name for part in only for name in part.split(",") if name]
    env = child_env(os.environ, service_name, secrets_dir, secrets_exec)
    code, line = service_check.check(service, names, env, with_secrets=with_secrets)
    if line is not None:
        _die(code, line)
    sys.exit(code)


def main() -> None:
    """Entry point. Every failure that has a code in the contract ends here with one line."""
    process.fill_standard_descriptors()
    completing.answer_if_asked(cli, "upnextd")
    if sys.platform != "linux":
        _die(ExitCode.USAGE, "upnextd needs Linux; elsewhere, `upnext run service.py` runs a service in one process")
    try:
        cli.main(prog_name="upnextd", standalone_mode=False, default_map=_defaults(os.environ))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(ExitCode.USAGE)
    except click.ClickException as error:
        text = wrong_usage(error) if isinstance(error, click.UsageError) else error.format_message()
        _die(ExitCode.USAGE, text + project.place_of(text, os.environ, daemon=True))
    except UsageError as error:
        _die(ExitCode.USAGE, f"{error}{project.place_of(str(error), os.environ, daemon=True)}")


def _defaults(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Command -> its flags that the project's files set."""
    return {
        name: project.defaults(((str(one.name), getattr(one, "multiple", False)) for one in command.params), env)
        for name, command in cli.commands.items()
    }


def _start(settings: Settings, env: Mapping[str, str], inherited: Inherited | None) -> int:
    """The daemon's life, from its lock to its exit code; or from an upgrade on."""
    if inherited is None:
        # A parent may have had some ignored or blocked; without SIGCHLD, no end of a child is ever reported.
        process.default_signals()
    process.lift_descriptor_limit(None if inherited is None else inherited.descriptors)
    if inherited is None:
        if (denied := kernel_check.denied()) is not None:
            _die(ExitCode.CONFIG, denied)
        held, known = _take_place(settings)
    else:
        held, known = inherited.lock_fd, Identity(inherited.state["daemon_id"], is_known=True)
    try:
        return asyncio.run(_supervise(settings, env, held, known, inherited))
    except SocketInUseError as error:
        _die(ExitCode.LOCKED, str(error))
    finally:
        os.close(held)


def _take_place(settings: Settings) -> tuple[int, Identity]:
    """The lock of the state directory, and who we are there. What jobs of a former life left running is ended: they run again."""
    if settings.metrics is not None and process.is_other_than_a_socket(settings.metrics):
        _die(ExitCode.USAGE, f"--metrics {settings.metrics}: there is a file that is not a socket")
    try:
        config.private_dir(settings.state_dir)
        _make_socket_folder(settings)
        held = lock.acquire(settings.state_dir / "lock")
        # An earlier start may have had a broker where this one has none.
        private_files.close_to_others(str(settings.state_dir))
        known = identity.identify(settings.state_dir)
        if known.is_known:
            leftovers.end_all(known.daemon_id)
        if settings.dashboard is not None:
            refuse_taken(settings.dashboard.listen)
        return held, known
    except ListenError as error:
        _die(ExitCode.UNAVAILABLE, f"--dashboard: {error}")
    except lock.LockedError as error:
        _die(
            ExitCode.LOCKED,
            f"{error}; to run this one beside it, give this one another --name (it is {settings.name!r})",
        )
    except OSError as error:
        _die(ExitCode.USAGE, f"{error.filename or settings.state_dir}: {error.strerror}")


def _make_socket_folder(settings: Settings) -> None:
    """A folder that is there is left as it is, unless it is ours by its name. Raises OSError, UsageError."""
    folder = settings.socket.parent
    if not folder.exists() or folder == settings.runtime_dir:
        config.private_dir(folder)


async def _supervise(
    settings: Settings, env: Mapping[str, str], held: int, known: Identity, inherited: Inherited | None
) -> int:
    setproctitle.setproctitle(f"upnextd {settings.name}: supervisor")
    loop = asyncio.get_running_loop()
    sink = Sink(_log_fd(settings))
    sink.attach(loop)
    under_journal = "JOURNAL_STREAM" in env and settings.log_file is None
    log = Log(sink, as_json=settings.log_format == "json", timestamps=not under_journal, least=settings.log_level)
    loop.set_exception_handler(lambda _loop, context: log.fault(_unhandled(context)))
    for line in settings.warnings:
        log.caution(line)
    notifier = Notifier(env)
    supervisor = Supervisor(settings, known.daemon_id, log, notifier, LinuxKernel())
    server = ControlServer(settings.socket, commands_of(supervisor), partial(_make_socket_folder, settings))
    upgrades = Upgrades(
        supervisor.fleet,
        supervisor,
        supervisor.companions,
        supervisor.kernel,
        loop,
        log,
        server,
        supervisor.orphans,
        settings.child_env,
        settings.directory,
        held,
        sink.flush,
    )
    try:
        if inherited is None:
            await _listen(server, settings)
        else:
            # Before a kept connection can ask for anything.
            supervisor.take_over(inherited.state)
            await server.start(inherited.control)
        watch_signals(loop, supervisor, upgrades)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OUR_SIGNALS)
        return await supervisor.run()
    finally:
        await server.close()
        notifier.close()
        sink.finish()


def commands_of(supervisor: Supervisor) -> ControlCommands:
    """The control socket's methods; what happens in the daemon is published by them."""
    commands = ControlCommands(
        supervisor.settings,
        supervisor.fleet,
        supervisor,
        supervisor.requests,
        supervisor.reloads,
        supervisor.companions,
        supervisor.hang_watch,
        supervisor.loop.time,
    )
    supervisor.on_event = commands.publish
    supervisor.describe = commands.describe
    return commands


async def _listen(server: ControlServer, settings: Settings) -> None:
    """Raises UsageError where there can be no socket, SocketInUseError."""
    try:
        await server.start()
    except OSError as error:
        raise UsageError(
            f"control socket {settings.socket}: {error.strerror or error}; give another --socket"
        ) from None


def _log_fd(settings: Settings) -> int:
    if settings.log_file is None:
        return 2
    try:
        return os.open(settings.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise UsageError(f"--log-file {settings.log_file}: {error.strerror}") from None


def watch_signals(loop: asyncio.AbstractEventLoop, supervisor: Supervisor, upgrades: Upgrades) -> None:
    """Signals edit the desired state, as commands do."""

    def scale(request: Request, by: int) -> None:
        workers = supervisor.fleet.desired.workers
        wanted = plan.signalled_workers(workers, by)
        if wanted == workers:
            supervisor.log.caution(
                f"{request.value} changes nothing: {workers} wanted (`upnext ctl scale 0` ends the last)"
            )
        supervisor.requests.scale(wanted, request.value)

    def watch(number: signal.Signals, request: Request, then: Callable[[], Any] | None = None) -> None:
        def handle() -> None:
            refusal = supervisor.requests.ask(request)
            if refusal is not None:
                supervisor.log.caution(f"{request.value} changes nothing: {refusal}")
            elif then is not None:
                then()

        loop.add_signal_handler(number, handle)

    for number, request in (
        (signal.SIGTERM, Request.TERM),
        (signal.SIGINT, Request.INT),
        (signal.SIGQUIT, Request.QUIT),
        (signal.SIGTSTP, Request.TSTP),
        (signal.SIGCONT, Request.CONT),
    ):
        watch(number, request)
    watch(signal.SIGHUP, Request.HUP, supervisor.reloads.begin)
    watch(signal.SIGTTIN, Request.TTIN, lambda: scale(Request.TTIN, 1))
    watch(signal.SIGTTOU, Request.TTOU, lambda: scale(Request.TTOU, -1))
    watch(signal.SIGUSR1, Request.USR1, lambda: _reopen_log(supervisor))
    watch(signal.SIGUSR2, Request.USR2, upgrades.ask)


def _reopen_log(supervisor: Supervisor) -> None:
    """The log file was moved away: go on in a new one of its name."""
    if supervisor.settings.log_file is None:
        return
    try:
        supervisor.log.reopen(_log_fd(supervisor.settings))
    except UsageError as error:
        supervisor.log.caution(f"the log goes on where it was: {error}")
    else:
        supervisor.log.note("log reopened")


def _unhandled(context: dict[str, Any]) -> str:
    """What the loop could not give to anybody: a bug, with its traceback, or a connection that no descriptor was free for."""
    error = context.get("exception")
    if error is None or isinstance(error, OSError):
        return f"{context['message']}" + (f": {error.strerror or error}" if error is not None else "")
    return f"{context['message']}\n{''.join(traceback.format_exception(error)).rstrip()}"


def _die(code: ExitCode, line: str) -> NoReturn:
    click.echo(f"upnextd: {visible(' '.join(line.split()))}", err=True)
    sys.exit(code)
