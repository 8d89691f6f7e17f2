"""The command line's edge: errors become one line and a code, flags may stand anywhere, and little is imported."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from upnext import errors
from upnext.cli import main
from upnext.cli.options import Flags, control_options, flags, queue_options
from upnext.control.exits import ExitCode
from upnext.control.protocol import ErrorCode


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["jbos"], "upnext jobs"),
        (["ctl", "statsu"], "upnext ctl status"),
        (["cron", "lst"], "upnext cron list"),
        (["statsu"], "upnext ctl status"),
        (["reload"], "upnext ctl reload"),
        (["retry"], "upnext dead retry"),
    ],
)
def test_a_typing_error_gets_the_nearest_command(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == 64
    assert f"did you mean `{meant}`?" in capsys.readouterr().err


def test_a_word_that_is_near_to_nothing_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["zzzzzz"]) == 64
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["call", "tea", "--delay", "soon"],
            "Invalid value for '--delay': 'soon' is not a number (see `upnext call --help`)",
        ),
        (
            ["call", "tea", "--timeout", "-1"],
            "Invalid value for '--timeout': -1.0; write 0 or more (see `upnext call --help`)",
        ),
        *(
            (
                [*command, flag, value],
                f"Invalid value for '{flag}': '{value}' is not a number (see `upnext {named} --help`)",
            )
            for command, named, flag in (
                (["call", "tea"], "call", "--timeout"),
                (["call", "tea"], "call", "--delay"),
                (["ctl", "drain"], "ctl drain", "--timeout"),
            )
            for value in ("nan", "inf", "1e999")
        ),
        (["jobs", "--limit", "0"], "Invalid value for '--limit': 0; write 1 to 100000 (see `upnext jobs --help`)"),
        (
            ["ctl", "scale", "many"],
            "Invalid value for 'WORKERS': 'many' is not a whole number (see `upnext ctl scale --help`)",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_to_write(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == 64
    assert capsys.readouterr().err == f"upnext: {line}\n"


def test_closed_stdout_is_no_failure() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m upnext --help >&-"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_locale_cannot_carry_is_escaped() -> None:
    program = "from upnext.cli import main, output; main._fit_streams(); output.print_line('a \u2192 b')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={"PYTHONIOENCODING": "latin-1"}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a \\u2192 b\n", b"")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 64),
        (errors.InvalidArgumentsError("x"), 64),
        (errors.ServiceError("x"), 64),
        (errors.NoBrokerError("x"), 69),
        (errors.BrokerUnavailableError("x"), 69),
        (errors.BrokerRefusedError("x"), 69),
        (errors.SubmitUncertain("x"), 69),
        (errors.JobNotFoundError("x"), 1),
        (errors.DaemonNotRunningError("x"), 3),
        (errors.DaemonGoneError("x"), 3),
        (errors.ControlError("x", ErrorCode.FAILED), 1),
        (errors.ControlError("x", ErrorCode.NO_SUCH_SLOT), 64),
        (errors.ControlError("x", ErrorCode.INVALID_PARAMS), 64),
        (TimeoutError("x"), 75),
        (click.UsageError("x"), 64),
    ],
)
def test_each_error_has_its_code(error: BaseException, code: int) -> None:
    assert main.exit_code(error) == code


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def command(**_: object) -> None:
        raise error

    monkeypatch.setattr(main.cli, "main", command)
    return main.run([])


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(errors.UsageError("no such thing"), monkeypatch) == 64
    assert capsys.readouterr().err == "upnext: no such thing\n"


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(RuntimeError("two\nlines"), monkeypatch) == 1
    assert capsys.readouterr().err == "upnext: unexpected RuntimeError: two lines (UPNEXT_DEBUG=1 shows where)\n"


def test_a_developer_gets_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPNEXT_DEBUG", "1")
    with pytest.raises(RuntimeError):
        raising(RuntimeError("x"), monkeypatch)


def test_the_daemons_traceback_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(errors.ControlError("reload failed", ErrorCode.FAILED, "SyntaxError: no"), monkeypatch) == 1
    assert capsys.readouterr().err == "upnext: reload failed\nSyntaxError: no\n"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raising(KeyboardInterrupt(), monkeypatch) == 130
    assert raising(click.Abort(), monkeypatch) == 130


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "No such command 'fly'"),
        (["tasks", "--fly"], "No such option"),
        (["jobs", "--state", "asleep"], "'asleep' is not one of"),
        (["job"], "Missing argument 'ID'"),
        (["ctl", "scale", "many"], "'many' is not a whole number"),
        (["ctl", "scale", "-1"], "No such option"),
        (["call", "t", "--kwargs", "{"], "--kwargs is not JSON"),
        (["call", "t", "--kwargs", "[]"], "not a JSON object"),
        (["tasks", "--redis-url", "http://x"], "not a Redis URL"),
        (["tasks", "--redis-url", "redis://x", "--namespace", "a b"], "namespace"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == ExitCode.USAGE
    output = capsys.readouterr()
    assert text in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize("arguments", [[], ["ctl"], ["dead"], ["cron"]])
def test_a_group_alone_shows_its_help_and_is_wrong_use(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == ExitCode.USAGE
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*main.COMMANDS, "ctl status", "ctl stop", "dead retry", "cron run"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*name.split(), "--help"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"Usage: upnext {name}" in out
    assert "--json" in out


def test_no_redis_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tasks"]) == ExitCode.UNAVAILABLE
    output = capsys.readouterr().err
    assert "UPNEXT_REDIS_URL" in output
    assert "upnextd start" in output
    assert output.count("\n") == 1


def test_a_redis_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tasks", "--redis-url", "unix:///nowhere/at/all.sock"]) == ExitCode.UNAVAILABLE
    assert capsys.readouterr().err.count("\n") == 1


def test_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ctl", "status"]) == ExitCode.NOT_RUNNING
    assert main.run(["ctl", "--socket", "/nowhere.sock", "status"]) == ExitCode.NOT_RUNNING
    assert main.run(["ctl", "status", "--name", "orders"]) == ExitCode.NOT_RUNNING
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Flags()),
        (["--json", "sub"], Flags(json=True)),
        (["sub", "--json"], Flags(json=True)),
        (["--name", "outer", "sub"], Flags(name="outer")),
        (["--name", "outer", "sub", "--name", "inner"], Flags(name="inner")),
        (["--redis-url", "a", "sub", "--name", "b"], Flags(redis_url="a", name="b")),
        (["sub", "--socket", "/s"], Flags(socket="/s")),
    ],
)
def test_shared_flags_stand_before_or_after_the_command(arguments: list[str], expected: Flags) -> None:
    seen: list[Flags] = []

    @click.group(invoke_without_command=True)
    @queue_options
    def outer() -> None: ...

    @outer.command()
    @control_options
    def sub() -> None:
        seen.append(flags())

    outer.main(args=arguments or ["sub"], standalone_mode=False)
    assert seen == [expected]


def test_ctl_imports_neither_redis_nor_the_engine() -> None:
    program = (
        "import sys; from upnext.cli import main; code = main.run(['ctl', 'status']);"
        "heavy = {'redis', 'hiredis', 'upnext.engine', 'asyncio', 'rich', 'pydantic', 'croniter', 'uvloop'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert ran.stdout == "3 []\n", ran.stderr
