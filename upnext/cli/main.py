"""The `upnext` command: finds the subcommand, turns errors into one line and an exit code."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click
from click.shell_completion import CompletionItem

from upnext import errors, project
from upnext.cli import completing, output
from upnext.cli.nearest import NearestGroup
from upnext.cli.options import queue_options
from upnext.cli.wrong_usage import wrong_usage
from upnext.control.exits import ExitCode
from upnext.control.protocol import ErrorCode
from upnext.core.visible import visible_lines

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "run": "upnext.cli.run:run",
        "new": "upnext.cli.new:new",
        "call": "upnext.cli.call:call",
        "list": "upnext.cli.tasks:list_",
        "job": "upnext.cli.jobs:job",
        "jobs": "upnext.cli.jobs:jobs",
        "tasks": "upnext.cli.tasks:tasks_",
        "hosts": "upnext.cli.hosts:hosts",
        "cancel": "upnext.cli.cancel:cancel",
        "explain": "upnext.cli.jobs:explain",
        "dead": "upnext.cli.dead:dead",
        "pause-task": "upnext.cli.tasks:pause_task",
        "resume-task": "upnext.cli.tasks:resume_task",
        "purge": "upnext.cli.tasks:purge",
        "limits": "upnext.cli.tasks:limits",
        "forget": "upnext.cli.tasks:forget",
        "cron": "upnext.cli.cron:cron",
        "doctor": "upnext.cli.doctor:doctor",
        "ctl": "upnext.cli.ctl:ctl",
        "completion": "upnext.cli.completion:completion",
        "dashboard": "upnext.dashboard.command:dashboard",
    }
)
"""name -> where it is. Modules are imported when their command is asked for, and import what is heavy when it runs."""


class LazyGroup(NearestGroup):
    """A group whose commands are imported when they are asked for."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        target = self._lazy.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, without the help texts: no command is imported for them."""
        names = [CompletionItem(name) for name in self._lazy if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value:
        from importlib.metadata import version

        click.echo(f"upnext {version('upnext')}")
        ctx.exit()


@click.group(
    cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@queue_options
def cli() -> None:
    """Submit jobs, look into the queue, control the daemon."""


def exit_code(error: BaseException) -> ExitCode:
    """The code of CONTRACT for an error that ends a command."""
    match error:
        case errors.ControlError(code=ErrorCode.INVALID_PARAMS | ErrorCode.NO_SUCH_SLOT):
            return ExitCode.USAGE
        case errors.ConflictError() | errors.ServiceError(__cause__=BaseException()):
            # The service's own code is wrong; what is wrong with the command line itself has no such cause.
            return ExitCode.CONFIG
        case errors.UsageError() | click.ClickException():
            return ExitCode.USAGE
        case errors.NoBrokerError() | errors.QueueError() | errors.ListenError():
            return ExitCode.UNAVAILABLE
        case errors.BrokerInUseError():
            return ExitCode.LOCKED
        case errors.DaemonNotRunningError():
            return ExitCode.NOT_RUNNING
        case TimeoutError():
            return ExitCode.TIMEOUT
        case _:
            return ExitCode.FAILED


def run(arguments: Sequence[str]) -> int:
    """One command line -> its exit code. Prints; raises nothing but KeyboardInterrupt's kin."""
    try:
        code = cli.main(args=list(arguments), prog_name="upnext", standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.UsageError as error:
        output.tell(wrong_usage(error))
        return ExitCode.USAGE
    except (click.ClickException, errors.UpNextError, TimeoutError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        output.tell(text + (project.place_of(text, os.environ) if isinstance(error, errors.UsageError) else ""))
        if isinstance(error, errors.ControlError) and isinstance(error.data, str):
            click.echo(visible_lines(error.data), err=True)
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader of our pipe has seen enough; keep the interpreter from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        # The command line's edge: a person gets one line, a developer the traceback on request.
        if os.environ.get("UPNEXT_DEBUG"):
            raise
        output.tell(f"unexpected {type(error).__name__}: {_one_line(str(error))} (UPNEXT_DEBUG=1 shows where)")
        return ExitCode.FAILED


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fit_streams() -> None:
    """Make the standard streams fit for any text: what a locale can't carry is escaped, and what is closed leads nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process
        else:
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the `upnext` script."""
    _fit_streams()
    completing.answer_if_asked(cli, "upnext")
    sys.exit(run(sys.argv[1:]))
