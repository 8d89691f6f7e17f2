"""`.env` and [tool.upnext]: what they say, in which order, and the place that an error names."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from upnext import project
from upnext.errors import UsageError
from upnextd.settings import Flags


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    below = tmp_path / "src/shop"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    project._of.cache_clear()
    return tmp_path


def write(folder: Path, table: str = "", dotenv: str | None = None) -> None:
    (folder / "pyproject.toml").write_text(f"[project]\nname = 'shop'\n\n[tool.upnext]\n{table}")
    if dotenv is not None:
        (folder / ".env").write_text(dotenv)


def test_the_order(folder: Path) -> None:
    write(
        folder,
        "redis-url = 'redis://table'\nnamespace = 'table'\nlog-level = 'error'\nservice_name = 'shop'\nworkers = 3\n",
        "# ours\nexport UPNEXT_NAMESPACE=dotenv # so\nOTHER=1\nUPNEXT_LOG_LEVEL='debug'\nUPNEXT_SERVICE=\n",
    )
    env = {"UPNEXT_LOG_LEVEL": "warning", "UPNEXT_NAMESPACE": "", "HOME": "/home/you"}
    assert project.environment(env) == {
        "HOME": "/home/you",
        "UPNEXT_LOG_LEVEL": "warning",
        "UPNEXT_NAMESPACE": "dotenv",
        "UPNEXT_REDIS_URL": "redis://table",
        "UPNEXT_SERVICE": "shop",
        "UPNEXTD_WORKERS": "3",
    }


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "redis://daemons"),
        ({"UPNEXT_REDIS_URL": "redis://env"}, "redis://env"),
        ({"UPNEXTD_REDIS_URL": "redis://env"}, None),
    ],
)
def test_a_daemons_url_in_a_file_is_below_every_url_of_the_environment(
    folder: Path, env: dict[str, str], url: str | None
) -> None:
    write(folder, "redis-url = 'redis://table'\n", "UPNEXTD_REDIS_URL=redis://daemons\n")
    assert project.environment(env, daemon=True).get("UPNEXT_REDIS_URL") == url
    assert project.environment({}).get("UPNEXT_REDIS_URL") is None, "for the daemon alone"


@pytest.mark.parametrize(
    ("env", "level"),
    [({}, "error"), ({"UPNEXT_LOG_LEVEL": "debug"}, "debug"), ({"UPNEXTD_LOG_LEVEL": "debug"}, None)],
)
def test_the_daemons_own_level_goes_first(folder: Path, env: dict[str, str], level: str | None) -> None:
    write(folder, "log-level = 'warning'\n", "UPNEXTD_LOG_LEVEL=error\n")
    assert project.environment(env, daemon=True).get("UPNEXT_LOG_LEVEL") == level
    assert project.environment({})["UPNEXT_LOG_LEVEL"] == "warning"


def test_without_a_project_there_is_nothing(folder: Path) -> None:
    (folder / ".env").write_text("UPNEXT_NAMESPACE=shop\n")
    assert project.in_effect({}) == {}


def test_flags_of_the_daemon(folder: Path) -> None:
    write(folder, "only = ['a', 'b']\nno-preload = true\nmax-rss = '512M'\nnamespace = 'n'\n")
    names = [("only", True), ("no_preload", False), ("max_rss", False), ("workers", False), ("namespace", False)]
    assert project.defaults(names, {"UPNEXTD_MAX_RSS": "1G"}) == {"only": ["a", "b"], "no_preload": "1"}


def test_the_table_has_a_key_for_each_flag() -> None:
    flags = {one.name for one in fields(Flags)} - {"service", "redis_url", "namespace", "service_name", "log_level"}
    assert set(project.DAEMON) == flags


@pytest.mark.parametrize(
    ("table", "dotenv", "line"),
    [
        (
            "workers = 2\nworker = 3\n",
            None,
            "pyproject.toml:6: [tool.upnext] worker: no setting has that name; did you mean workers?",
        ),
        ("name = {a = 1}\n", None, "pyproject.toml:5: [tool.upnext] name: write text"),
        ("name = 'a\n", None, "pyproject.toml:5: "),
        ("", "\nUPNEXT_NAMESPACE\n", ".env:2: write UPNEXT_NAMESPACE=VALUE"),
        ("", "UPNEXT_NAMESPACE='a\n", ".env:1: UPNEXT_NAMESPACE: the quotes do not match"),
    ],
)
def test_what_can_not_be_read_names_its_line(folder: Path, table: str, dotenv: str | None, line: str) -> None:
    write(folder, table, dotenv)
    with pytest.raises(UsageError) as raised:
        project.environment({})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_value_is_traced_to_its_line(folder: Path) -> None:
    write(folder, "namespace = 'a b'\nworkers = 'many'\n", "UPNEXT_REDIS_URL=http://x\n")
    at = folder / "pyproject.toml"
    assert project.place_of("namespace 'a b': use 1 to 100 characters", {}) == f" ({at}:5)"
    assert project.place_of("Invalid value for '--workers': 'many' is no integer", {}) == f" ({at}:6)"
    assert project.place_of("UPNEXT_REDIS_URL: not a URL", {}) == f" ({folder / '.env'}:1)"
    assert project.place_of("UPNEXT_REDIS_URL: not a URL", {"UPNEXT_REDIS_URL": "http://y"}) == ""
    assert project.place_of("no such file", {}) == ""
