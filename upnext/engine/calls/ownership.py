"""Calls about who declares what: announce, withdraw, registry, remove, set_limits. The decisions are in `upnext.core.ownership`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.ownership import Announcer, Definition, owner_of
from upnext.core.spec import TaskKind
from upnext.engine.calls.rows import readable
from upnext.engine.redis.scripts import Arg, Call, Calls, script, text

BATCH = 200
"""Most names of one announcement's script, which renews each."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What an announcer states. `handlers` maps names of `declares` to their events; `crons` are names of `declares`, too.

    `token` is of the scheduler that states it.
    """

    announcer: str
    service: str
    generation_ms: int
    host: str
    file: str | None
    declares: Mapping[str, str]
    serves: Sequence[str]
    crons: Sequence[str] = ()
    handlers: Mapping[str, str] = field(default_factory=dict[str, str])
    token: str = ""


def announce(keys: Keys, epoch: str, statement: Statement, lease_ms: int) -> list[Call[list[str]]]:
    """To be run in their order. Each -> names and crons that are not registered."""
    record: bytes = orjson.dumps(
        {
            "service": statement.service,
            "generation_ms": statement.generation_ms,
            "host": statement.host,
            "file": statement.file,
            "token": statement.token,
            "declares": dict(statement.declares),
            "serves": list(statement.serves),
        }
    )
    calls: list[Call[list[str]]] = []
    crons, serves = set(statement.crons), set(statement.serves)
    declared = list(statement.declares)
    for start in range(0, max(1, len(declared)), BATCH):
        names = declared[start : start + BATCH]
        timed = [name for name in names if name in crons]
        handlers = [name for name in names if name in statement.handlers]
        words: list[Arg] = [*names, *timed]
        for name in handlers:
            words += (name, int(name in serves))
        calls.append(
            Call(
                script("announce"),
                [
                    keys.epoch,
                    keys.announcers,
                    keys.announced,
                    keys.seen,
                    keys.tasks,
                    keys.crons,
                    *(keys.event(statement.handlers[name]) for name in handlers),
                ],
                [epoch, statement.announcer, record, lease_ms, len(names), len(timed), *words],
                lambda reply: [text(name) for name in reply],
            )
        )
        record = b""
    return calls


def withdraw(keys: Keys, epoch: str, announcers: Sequence[str], *, token: str = "", ended: bool = False) -> Call[int]:
    """`ended`: only those of them whose lease has ended; `token`: only what this scheduler stated. -> how many were there."""
    words = [epoch, int(ended), token, *announcers]
    return Call(script("withdraw"), [keys.epoch, keys.announcers, keys.announced], words, int)


@dataclass(frozen=True, slots=True)
class Raw:
    """A registered name as it is stored ("" where a row is missing): what `remove` compares. `event` is a handler's."""

    definition: bytes
    cron: bytes
    seen: bytes
    subscribed: bytes
    event: str | None


@dataclass(frozen=True, slots=True)
class Registry:
    """All that is registered. `announcers` also holds those whose lease has ended; `served` is what living consumers fetch.

    `epoch` is "" where nothing has ever registered. `unreadable` names rows that can't be read: `KEY FIELD`. `lapsed` are crons that
    lapsed, and when.
    """

    now_ms: int
    definitions: list[Definition]
    raw: dict[str, Raw]
    announcers: list[Announcer]
    served: set[str]
    lapsed: dict[str, int]
    unreadable: list[str]
    epoch: str = ""


_ROWS = {"t": 100, "c": 100, "a": 2, "w": 10, "l": 100}
"""About how many rows a page of each part has, in the order of the parts. An announcer or a consumer names hundreds of tasks."""


@dataclass(frozen=True, slots=True)
class _Page:
    now_ms: int
    epoch: str
    cursor: bytes
    rows: list[Any]


def _page(keys: Keys, part: str, cursor: bytes) -> Call[_Page]:
    return Call(
        script("registry"),
        [
            keys.tasks,
            keys.crons,
            keys.seen,
            keys.announcers,
            keys.announced,
            keys.consumers,
            keys.leases,
            keys.lapsed,
            keys.epoch,
        ],
        [keys.event_prefix, part, cursor, _ROWS[part]],
        lambda reply: _Page(reply[0], (reply[1] or b"").decode("utf-8", "backslashreplace"), reply[2], reply[3:]),
    )


def registry(keys: Keys) -> Calls[Registry]:
    """Read all that is registered; rows that can't be read are left out.

    Definitions are read before the announcers and consumers: what is registered and announced meanwhile counts as announced.
    """
    first: _Page | None = None
    found: dict[str, list[Any]] = {}
    for part in _ROWS:
        rows: list[Any] = []
        cursor = b"0"
        while True:
            page = yield _page(keys, part, cursor)
            first = first or page
            rows += page.rows
            cursor = page.cursor
            if cursor == b"0":
                break
        found[part] = rows
    assert first is not None
    return _registry(keys, first, found)


def _registry(keys: Keys, first: _Page, found: Mapping[str, list[Any]]) -> Registry:
    unreadable: list[str] = []

    def read(key: str, raw: Mapping[bytes, bytes | None]) -> dict[str, dict[str, Any]]:
        fine: dict[str, dict[str, Any]] = {}
        for raw_name, value in raw.items():
            if value is None:
                continue
            row = readable(value)
            if row is None or (name := _name(raw_name)) is None:
                unreadable.append(f"{key} {raw_name!r}")
            else:
                fine[name] = row
        return fine

    named = {row[0]: row[1:] for part in "tc" for row in found[part]}
    task_rows = read(keys.tasks, {name: row[0] for name, row in named.items()})
    cron_rows = read(keys.crons, {name: row[1] for name, row in named.items()})
    definitions: list[Definition] = []
    raw: dict[str, Raw] = {}
    for name in {**task_rows, **cron_rows}:
        task, cron, seen, by_event = named[name.encode()]
        row = task_rows.get(name) or cron_rows.get(name) or {}
        raw[name] = Raw(task or b"", cron or b"", seen or b"", by_event or b"", row.get("event"))
        definitions.append(_definition(name, row, cron_rows.get(name), seen, by_event))
    stated = {row[0]: row[1:] for row in found["a"]}
    announcers = [
        _announcer(name, row, _number(stated[name.encode()][1]))
        for name, row in read(keys.announcers, {name: row[0] for name, row in stated.items()}).items()
    ]
    served = {str(name) for [record] in found["w"] for name in (readable(record) or {}).get("tasks") or ()}
    gone = {
        name: _number(row.get("at_ms"))
        for name, row in read(keys.lapsed, {row[0]: row[1] for row in found["l"]}).items()
    }
    return Registry(first.now_ms, definitions, raw, announcers, served, gone, unreadable, first.epoch)


CHANGED, INACTIVE, GONE = 0, 1, 2


def remove(
    keys: Keys, epoch: str, name: str, raw: Raw, *, keep_cursor: bool, whole: bool, overrides: bool = False
) -> Call[int]:
    """Remove what `raw` shows, unless it has CHANGED since it was read.

    whole: its own row, too, if its lanes are empty (GONE); else it is only made INACTIVE. overrides: what operators set goes with it.
    """
    return Call(
        script("remove"),
        [
            keys.epoch,
            keys.tasks,
            keys.crons,
            keys.cursors,
            keys.fired,
            keys.seen,
            keys.lapsed,
            keys.limits,
            keys.gcra,
            keys.stats,
            keys.limits_set,
            keys.paused,
            keys.event(raw.event or ""),
            keys.large,
            keys.groups,
            keys.group_ids,
            keys.done(name),
            keys.series_last(series.FINE),
            keys.series_last(series.COARSE),
            *keys.streams(name),
        ],
        [
            epoch,
            name,
            raw.definition,
            raw.cron,
            raw.seen,
            raw.subscribed,
            int(keep_cursor),
            int(whole),
            int(overrides),
            keys.bell,
        ],
        int,
    )


def set_limits(
    keys: Keys, task: str, limits: Mapping[str, Any] | bytes | None, *, declared: bool = False
) -> Call[bool]:
    """Set a task's limits over the declared ones (None: none at all; bytes: as they are stored); `declared` takes those again.

    -> whether the task is known.
    """
    wanted = b"" if declared else limits if isinstance(limits, bytes) else orjson.dumps(limits)
    return Call(
        script("set_limits"), [keys.tasks, keys.limits_set, keys.limits], [task, wanted, keys.bell], lambda it: it == 1
    )


# -- rows, each by itself


def _name(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _number(raw: Any) -> int:
    try:
        return int(float(raw))
    except (TypeError, ValueError, OverflowError):
        return 0


def _definition(
    name: str, row: dict[str, Any], cron: dict[str, Any] | None, seen: bytes | None, by_event: bytes | None
) -> Definition:
    try:
        kind = TaskKind.CRON if cron is not None else TaskKind(row.get("kind"))
    except ValueError:
        kind = TaskKind.TASK
    daemon = row.get("daemon", "")
    return Definition(
        name=name,
        kind=kind,
        service=owner_of(row),
        generation_ms=max(_number(row.get("generation_ms")), _number(cron.get("generation_ms")) if cron else 0),
        seen_ms=max(_number(seen), _number(by_event), _number(cron.get("last_seen_ms")) if cron else 0),
        daemon=daemon if isinstance(daemon, str) else None,
        passing=row.get("passing") is True,
        active=cron is not None or by_event is not None,
    )


def _announcer(name: str, row: dict[str, Any], until_ms: int) -> Announcer:
    declares = cast("object", row.get("declares"))
    serves = cast("object", row.get("serves"))
    file = row.get("file")
    return Announcer(
        id=name,
        service=str(row.get("service", "")),
        generation_ms=_number(row.get("generation_ms")),
        until_ms=until_ms,
        declares={str(k): str(v) for k, v in cast("dict[object, object]", declares).items()}
        if isinstance(declares, dict)
        else {},
        serves=frozenset(str(one) for one in cast("list[object]", serves)) if isinstance(serves, list) else frozenset(),
        host=str(row.get("host", "")),
        file=file if isinstance(file, str) else None,
    )
