"""Completion at TAB, as bash asks for it with the script of `upnext completion bash`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.program import UPNEXT

SERVICE = """
    import upnext
    worker = upnext.Worker("mail")

    @worker.task
    async def send_mail() -> None: ...

    @worker.task
    async def send_letter() -> None: ...
"""


def complete(line: str, folder: Path, **env: str) -> list[str]:
    """What bash offers for the last word of `line` (empty after a space)."""
    words = line.split() + ([""] if line.endswith(" ") else [])
    script = f"""
        source <({UPNEXT} completion bash) || exit 1
        COMP_WORDS=({" ".join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1}
        _{words[0]}_completion {words[0]} {words[-1]!r} {words[-2]!r} 2> errors || exit 2
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "UPNEXT_COMPLETION_S": "30", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    # Outside of a real TAB, bash's compopt has nothing to set; `upnext` itself is silent.
    errors = [line for line in (folder / "errors").read_text().splitlines() if "compopt" not in line]
    assert errors == []
    return ended.stdout.split()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=1, args=("--name", "post")) as one:
        yield one


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("upnext pau", ["pause-task"]),
        ("upnext completion ", ["bash", "zsh", "fish"]),
        ("upnext run --rel", ["--reload"]),
        ("upnextd st", ["start"]),
        ("upnextd start --log-l", ["--log-level"]),
    ],
)
def test_commands_and_flags(tmp_path: Path, line: str, offered: list[str]) -> None:
    assert complete(line, tmp_path) == offered


def test_names_of_tasks_and_slots(daemon: Daemon, tmp_path: Path) -> None:
    env = {"UPNEXT_REDIS_URL": daemon.broker_url, "UPNEXTD_SOCKET": str(daemon.socket_path)}
    assert complete("upnext call send_", tmp_path, **env) == ["send_letter", "send_mail"]
    assert complete("upnext pause-task send_m", tmp_path, **env) == ["send_mail"]
    assert complete("upnext ctl restart w", tmp_path, **env) == ["worker-1"]
    assert "scheduler" in complete("upnext ctl dump ", tmp_path, **env)


def test_names_of_daemons(daemon: Daemon, tmp_path: Path) -> None:
    folder = daemon.directory / "run"
    folder.mkdir(mode=0o700)
    (folder / "upnextd").mkdir(mode=0o700)
    (folder / "upnextd" / "post.sock").symlink_to(daemon.socket_path)
    assert "post" in complete("upnext ctl --name po", tmp_path, XDG_RUNTIME_DIR=str(folder))


def test_what_is_away_or_slow_gives_nothing(tmp_path: Path) -> None:
    assert (
        complete("upnext call s", tmp_path, UPNEXT_REDIS_URL="redis://127.0.0.1:1/0", UPNEXT_COMPLETION_S="0.5") == []
    )
    assert (
        complete(
            "upnext ctl restart w", tmp_path, UPNEXTD_SOCKET=str(tmp_path / "none.sock"), UPNEXT_COMPLETION_S="0.5"
        )
        == []
    )
    (tmp_path / "pyproject.toml").write_text("[tool.upnext\n")
    assert complete("upnext call s", tmp_path) == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert complete("upnext call s", tmp_path, UPNEXT_REDIS_URL=url, UPNEXT_COMPLETION_S="0.5") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts(tmp_path: Path, shell: str) -> None:
    ended = subprocess.run([UPNEXT, "completion", shell], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == ""
    assert f"_UPNEXT_COMPLETE={shell}_complete" in ended.stdout
    assert f"_UPNEXTD_COMPLETE={shell}_complete" in ended.stdout
    if program := shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(ended.stdout)
        subprocess.run([program, "-n", str(path)], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_names_with_whole_descriptions(tmp_path: Path) -> None:
    script = subprocess.run([UPNEXT, "completion", "fish"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "upnext.fish").write_text(script)
    ended = subprocess.run(
        ["fish", "-c", "source upnext.fish; complete -C 'upnextd st'"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PATH": f"{BIN}:{os.environ['PATH']}", "UPNEXT_COMPLETION_S": "30"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "a module as" in ended.stdout, "what stands behind the comma of the description"


def test_the_script_for_fish_splits_kind_and_name_alone() -> None:
    script = subprocess.run([UPNEXT, "completion", "fish"], capture_output=True, text=True, check=True).stdout
    assert script.count('string split --max 1 "," $completion') == script.count("string split ") == 2
