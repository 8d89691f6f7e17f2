"""The lowest sources of settings: `.env` beside pyproject.toml, then its table [tool.upnext]; the environment goes before both.

They belong to the nearest pyproject.toml in the working directory or above it. They are read once a process and exported to no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from upnext.errors import UsageError

QUEUE = ("redis_url", "namespace", "log_level", "service_name")
"""Keys of [tool.upnext] that stand for UPNEXT_… variables."""
DAEMON = (
    "api_listen", "api_processes", "boot_timeout", "dashboard", "dashboard_host", "dashboard_proxy_header",
    "dashboard_users", "hang_timeout", "import_timeout", "log_file", "log_format", "max_jobs", "max_rss", "metrics",
    "name", "no_preload", "only", "reload_timeout", "secrets_dir", "secrets_exec", "socket", "state_dir",
    "stop_timeout", "workers",
)  # fmt: skip
"""Those that stand for UPNEXTD_… variables: the flags of `upnextd start`."""

_SERVICE = "UPNEXT_SERVICE"
_URL, _DAEMON_URL = "UPNEXT_REDIS_URL", "UPNEXTD_REDIS_URL"
_OWN = {_DAEMON_URL: _URL, "UPNEXTD_LOG_LEVEL": "UPNEXT_LOG_LEVEL"}
"""Variables of the daemon alone, and the common ones that they stand before."""
_LINE = re.compile(r"\s*(?:export\s+)?(UPNEXT[A-Z0-9_]*)\s*(=?)\s*(.*?)\s*\Z")
_CAP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as an environment variable would have it, and the FILE:LINE where it was given."""

    value: str
    place: str


def environment(env: Mapping[str, str], *, daemon: bool = False) -> dict[str, str]:
    """The environment over what the project's files say; an empty variable counts as not set. `daemon`: for `upnextd`.

    Raises UsageError, naming file and line, for a file that can't be read.
    """
    found = in_effect(env, daemon=daemon)
    return {**env, **{variable: one.value for variable, one in found.items()}}


def in_effect(env: Mapping[str, str], *, daemon: bool = False) -> dict[str, Setting]:
    """Variable -> what the project's files say of those that the environment does not set."""
    found = dict(_of(_working_directory()))
    # The daemon's own variable goes before the common one among equals only: never before the environment's.
    set_here = {variable for variable, value in env.items() if value}
    for own, common in _OWN.items():
        one = found.pop(own, None)
        if daemon and one is not None:
            found[common] = one
        if daemon and own in set_here:
            set_here.add(common)
    return {variable: one for variable, one in found.items() if variable not in set_here}


def place_of(message: str, env: Mapping[str, str], *, daemon: bool = False) -> str:
    """` (FILE:LINE)` of the setting that an error's message is about, where that came from a file; else nothing."""
    try:
        found = in_effect(env, daemon=daemon)
    except UsageError:
        return ""
    for variable, one in found.items():
        flag = "--" + variable.partition("_")[2].lower().replace("_", "-")
        if re.search(rf"(?<![\w-])({variable}|{flag})(?![\w-])", message) or repr(one.value) in message:
            return f" ({one.place})"
    return ""


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


@lru_cache(maxsize=8)
def _of(directory: str | None) -> dict[str, Setting]:
    """What `.env` says goes before what the table says."""
    if directory is None:
        return {}
    for folder in (Path(directory), *Path(directory).parents):
        file = folder / "pyproject.toml"
        if os.access(file, os.R_OK):
            lower, upper = _table(file), _dotenv(folder / ".env")
            if _URL in upper or _DAEMON_URL in upper:
                lower.pop(_URL, None)
            return lower | upper
    return {}


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_CAP_BYTES).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UsageError(f"{path}:1: is not UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}:1: {error.strerror}") from None


def _dotenv(path: Path) -> dict[str, Setting]:
    """NAME=VALUE lines whose names begin with UPNEXT; others are not ours to judge."""
    found: dict[str, Setting] = {}
    for number, line in enumerate((_read(path) or "").splitlines(), 1):
        match = _LINE.match(line)
        if match is None:
            continue
        name, equals, value = match.groups()
        if not equals:
            raise UsageError(f"{path}:{number}: write {name}=VALUE")
        if value[:1] in ("'", '"'):
            end = value.find(value[0], 1)
            rest = value[end + 1 :].strip()
            if end < 0 or (rest and not rest.startswith("#")):
                raise UsageError(f"{path}:{number}: {name}: the quotes do not match")
            value = value[1:end]
        else:
            value = re.split(r"(?:^|\s+)#", value, maxsplit=1)[0]
        if value:
            found[name] = Setting(value, f"{path}:{number}")
    return found


def _table(path: Path) -> dict[str, Setting]:
    import tomllib  # noqa: PLC0415 - every command and every first submit imports this module; most read no table

    text = _read(path) or ""
    try:
        project: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        why = str(error).partition(" (at ")[0]
        raise UsageError(f"{path}:{at[1] if at else len(text.splitlines())}: {why}") from None
    table: Any = project.get("tool", {}).get("upnext", {}) if isinstance(project.get("tool", {}), dict) else {}
    lines = text.splitlines()
    found: dict[str, Setting] = {}
    for key, value in cast("dict[str, Any]", table).items() if isinstance(table, dict) else ():
        place = f"{path}:{_line_of(lines, key)}"
        name = key.replace("-", "_")
        if name not in QUEUE + DAEMON:
            raise UsageError(f"{place}: [tool.upnext] {key}: no setting has that name{_nearest(name)}")
        variable = _SERVICE if name == "service_name" else f"{'UPNEXT' if name in QUEUE else 'UPNEXTD'}_{name.upper()}"
        found[variable] = Setting(_as_text(value, f"{place}: [tool.upnext] {key}"), place)
    return {variable: one for variable, one in found.items() if one.value}


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):  # pyright: ignore[reportUnknownVariableType]
        return " ".join(value)  # pyright: ignore[reportUnknownArgumentType]
    raise UsageError(f"{where}: write text, a number, true or false, or a list of texts")


def _line_of(lines: list[str], key: str) -> int:
    inside, last = False, 1
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("["):
            inside, last = (
                bool(re.match(r"\s*\[\s*tool\s*\.\s*upnext\s*\]", line)),
                number if "upnext" in line else last,
            )
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", line):
            return number
    return last


def _nearest(name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - for an error only

    near = get_close_matches(name, QUEUE + DAEMON, 1)
    return f"; did you mean {near[0].replace('_', '-')}?" if near else ""


def defaults(names: Iterable[tuple[str, bool]], env: Mapping[str, str]) -> dict[str, Any]:
    """For the flags of `upnextd` (name as in Python, whether it may be repeated): what the files say of them."""
    found = in_effect(env, daemon=True)
    return {
        name: one.value.split() if repeated else one.value
        for name, repeated in names
        if (one := found.get(f"UPNEXTD_{name.upper()}")) is not None
    }
