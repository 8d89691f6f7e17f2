"""Secrets of a service: read in each worker process after its start, from the first source that has them; hidden in what leaves it.

Only the process that runs jobs reads them: the supervisor and the process that imports the service never have them in memory.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, cast

import orjson

from upnext.core import secret_names
from upnext.errors import SecretError

MOST_BYTES = 64 * 1024
EXEC_S = 20.0
"""What a program that gives secrets may take for one."""
SHORTEST_HIDDEN = 8
"""Characters: shorter values are in too many texts to be replaced."""


class Source(StrEnum):
    """Where a secret came from; shown in status, as the value never is."""

    CREDENTIALS = "credentials"
    DIRECTORY = "directory"
    ENVIRONMENT = "environment"
    EXEC = "exec"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where secrets are looked for, in this order; None: not there. `variables` are those that begin with UPNEXT_SECRET_."""

    credentials: Path | None
    directory: Path | None
    variables: Mapping[str, str]
    program: str | None

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Sources:
        credentials, directory = env.get(secret_names.CREDENTIALS_VARIABLE), env.get(secret_names.DIRECTORY_VARIABLE)
        return cls(
            Path(credentials) if credentials else None,
            Path(directory) if directory else None,
            {name: value for name, value in env.items() if name.startswith(secret_names.VARIABLE)},
            env.get(secret_names.EXEC_VARIABLE) or None,
        )


class Secret:
    """A secret's value, behind attributes, so that it is printed nowhere by mistake. It can't be an argument, a result or pickled."""

    __slots__ = ("_name", "_raw", "source")

    def __init__(self, name: str, raw: bytes, source: Source) -> None:
        self._name, self._raw, self.source = name, raw, source

    @property
    def name(self) -> str:
        return self._name

    @property
    def bytes(self) -> bytes:
        """Exactly what the source gave."""
        return self._raw

    @property
    def value(self) -> str:
        """As text, without one line end at its end. Raises SecretError when it is not UTF-8."""
        try:
            text = self._raw.decode()
        except UnicodeDecodeError:
            raise SecretError(f"secret {self._name!r} is not UTF-8 text: use its .bytes") from None
        return text.removesuffix("\n").removesuffix("\r")

    def json(self) -> Any:
        """The JSON value that it holds. Raises SecretError when it holds none."""
        try:
            return orjson.loads(self._raw)
        except ValueError:
            raise SecretError(f"secret {self._name!r} is not JSON") from None

    def __repr__(self) -> str:
        return f"<Secret {self._name!r} from {self.source}>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"secret {self._name!r} can't be pickled or copied to another process: ask for it there")


def read(name: str, sources: Sources) -> Secret:
    """From the first source that has it. Blocks. Raises SecretError, which says what is missing or wrong and never the value."""
    for folder, source in ((sources.credentials, Source.CREDENTIALS), (sources.directory, Source.DIRECTORY)):
        if folder is not None and (raw := _of_file(name, folder / name)) is not None:
            return Secret(name, _bounded(name, raw), source)
    for variable in (secret_names.variable(name), secret_names.VARIABLE + name):
        if variable in sources.variables:
            return Secret(name, _bounded(name, os.fsencode(sources.variables[variable])), Source.ENVIRONMENT)
    if sources.program is not None:
        return Secret(name, _bounded(name, _of_program(name, sources.program)), Source.EXEC)
    looked = [str(folder / name) for folder in (sources.credentials, sources.directory) if folder is not None]
    looked.append("$" + secret_names.variable(name))
    raise SecretError(
        f"secret {name!r} is missing: it is not in {', '.join(looked)}; see --secrets-dir and --secrets-exec"
    )


def _of_file(name: str, path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SecretError(f"secret {name!r}: can't read {path}: {error.strerror}") from None


def _of_program(name: str, program: str) -> bytes:
    try:
        done = subprocess.run(
            [program, name], stdin=subprocess.DEVNULL, capture_output=True, timeout=EXEC_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SecretError(f"secret {name!r}: {program} did not answer within {EXEC_S:g} s") from None
    except OSError as error:
        raise SecretError(f"secret {name!r}: can't run {program}: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = f": {lines[0][:200]}" if lines else ""
        raise SecretError(f"secret {name!r}: {program} ended with {done.returncode}{why}")
    return done.stdout


def _bounded(name: str, raw: bytes) -> bytes:
    if len(raw) > MOST_BYTES:
        raise SecretError(f"secret {name!r} is larger than {MOST_BYTES // 1024} KiB")
    if not raw.strip():
        raise SecretError(f"secret {name!r} is empty")
    return raw


# -- those of this process --

_read: dict[str, Secret] = {}
_hidden: dict[str, str] = {}
"""Text -> what stands in its place."""
_pattern: re.Pattern[str] | None = None


def open_all(names: Iterable[str], sources: Sources) -> None:
    """Read these for this process, before its first job; from now on records, errors and tracebacks hide them. Raises SecretError."""
    for name in names:
        found = read(name, sources)
        _read[name] = found
        _hide(found)


def shown() -> list[tuple[str, str]]:
    """(name, source) of each that was read here, by name."""
    return sorted((name, str(one.source)) for name, one in _read.items())


def secret(name: str) -> Secret:
    """A secret that this service declares, `Worker(secrets=["stripe_key"])`: good in tasks, lifespans and hooks.

    Raises SecretError where none was read (at import, or outside of a worker), and for one that isn't declared.
    """
    found = _read.get(name)
    if found is not None:
        return found
    if not _read:
        raise SecretError(
            f"secret {name!r}: there are no secrets here: each worker process reads those of Worker(secrets=[…]) after its start;"
            " ask for them in a task or a lifespan, not at import"
        )
    raise SecretError(
        f"secret {name!r} is not declared: Worker(secrets=[{name!r}]); declared here: {', '.join(sorted(_read))}"
    )


def forget() -> None:
    """Undo `open_all`: for tests, and for programs that run a service again."""
    global _pattern
    _read.clear()
    _hidden.clear()
    _pattern = None


def masked(text: str) -> str:
    """The text without the secrets of this process."""
    return text if _pattern is None else _pattern.sub(lambda found: _hidden[found[0]], text)


def _hide(one: Secret) -> None:
    global _pattern
    for text in _forms(one):
        if len(text) >= SHORTEST_HIDDEN:
            for form in {text, text.encode("unicode_escape").decode(), orjson.dumps(text).decode()[1:-1]}:
                _hidden[form] = f"[secret {one.name}]"
    if _hidden:
        longest_first = sorted(_hidden, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))
        logging.setLogRecordFactory(_hiding(logging.getLogRecordFactory()))


def _forms(one: Secret) -> Iterator[str]:
    text = one.bytes.decode("utf-8", "replace")
    yield text
    yield text.strip()
    for line in text.splitlines():  # of a PEM, say
        yield line.strip()
    try:
        value = orjson.loads(one.bytes)
    except ValueError:
        return
    yield from _leaves(value)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in cast("dict[str, Any]", value).values():
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from _leaves(one)


class _Hiding:
    """Makes records whose text and traceback hide the secrets, for all handlers of the process, the service's own too."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        if _pattern is None:
            return record
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a bad format string is reported by the handler, as it always is
            return record
        hidden = masked(text)
        if hidden != text:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            hidden = masked(trace)
            if hidden != trace:
                record.exc_text, record.exc_info = hidden, None
        return record


def _hiding(make: Any) -> Any:
    return make if isinstance(make, _Hiding) else _Hiding(make)
