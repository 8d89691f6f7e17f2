"""Calls of scripts: what the command names besides what the script sees."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

from upnext.core.keys import Keys
from upnext.engine.calls import lease
from upnext.engine.redis.scripts import script

NAMES = sorted(
    file.name.removesuffix(".lua")
    for file in (resources.files("upnext.engine") / "lua").iterdir()
    if file.name.endswith(".lua")
)


def test_the_last_key_of_a_call_is_never_set() -> None:
    call = lease.resign(Keys("a"), "e", daemon="d", token="t")
    for command in (call.evalsha(), call.eval()):
        assert command[2] == 3
        assert command[3:6] == ("upnext:{a}:epoch", "upnext:{a}:leader", "upnext:{a}:absent")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_takes_it_off_before_it_does_anything(name: str) -> None:
    head, second, *_ = script(name).text.splitlines()
    assert head.startswith("#!lua")
    assert second.startswith("local ABSENT = table.remove(KEYS)")


def test_they_are_the_same_whatever_the_locale() -> None:
    """A program that runs without one gets ASCII from the system."""
    code = f"from upnext.engine.redis.scripts import script; print(*(script(n).sha for n in {NAMES!r}))"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [script(name).sha for name in NAMES]
