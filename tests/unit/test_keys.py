"""The map of keys against the Lua scripts: what their headers name, and what they write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from upnext.core.keys import ROWS, Keys

LUA = Path(__file__).parents[2] / "upnext" / "engine" / "lua"
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua"))

PHRASES = {
    "result": ["result_prefix"],
    "its result": ["result_prefix"],
    "rate bucket": ["rate_prefix"],
    "rate buckets": ["rate_prefix"],
    "event": ["event_prefix"],
    **{
        label: list(ROWS)
        for label in (
            "the key",
            "the key to look at",
            "the key that has a row for each of its rows, or the same again",
            "the keys to look at, at most 1,000",
        )
    },
    "delayed or dead": ["delayed", "dead"],
    "its jobs": ["delayed_jobs", "dead_jobs"],
    "crons or schedules": ["crons", "schedules"],
    "cursors or their state": ["cursors", "schedules_state"],
    "fired or their state": ["fired", "schedules_state"],
    "stats or their state": ["stats", "schedules_state"],
    "its successes": ["done_prefix"],
    "successes of each task": ["done_prefix"],
    "results": ["result_prefix"],
    "the flow": ["flow_prefix"],
    "series of each moment and its times": ["series_prefix", "times_prefix"],
}
"""Labels of a header besides the names of keys."""

PREFIXES = {
    "result prefix": "result_prefix",
    "idempotency prefix": "idem_prefix",
    "idempotency key prefix": "idem_prefix",
    "cache prefix": "cache_prefix",
    "stream prefix": "stream_prefix",
    "bell channel": "bell",
    "reply prefix": "reply_prefix",
    "done prefix": "done_prefix",
    "key that remembers this very send": "sent_prefix",
}
"""Labels of arguments that keys are made of."""

SPELLED = {
    ("announce", "handler[1]"): "event_prefix",
    ("finish", "prefix .. ids[job]"): "result_prefix",
    ("send", "key"): "idem_prefix",
    ("set_aside", "key"): "aside_prefix",
    ("replace", "wish.sent"): "sent_prefix",
    ("submit", "wish.sent"): "sent_prefix",
}
"""Expressions that are not resolved by the rules of `Header.of`, by script."""

OF_ANY_KEY = {"remove_bad"}
"""Scripts that write whatever key they are given: `Key.besides` of P:aside says so."""

CALL = re.compile(r"redis\.p?call\('(\w+)', (?:'(?:CREATE|DELCONSUMER|GROUP)', )?")
WRITES = {
    **dict.fromkeys(["XADD", "XACK", "XDEL", "XTRIM", "XGROUP", "XREADGROUP"], "stream"),
    **dict.fromkeys(["HSET", "HDEL", "HINCRBY", "EXPIRE"], "hash"),
    **dict.fromkeys(["ZADD", "ZREM"], "zset"),
    **dict.fromkeys(["SADD", "SREM"], "set"),
    **dict.fromkeys(["SET", "DEL", "INCR"], "string"),
    "UNLINK": "stream",
    **dict.fromkeys(["LPUSH", "LTRIM"], "list"),
    "SPUBLISH": "channel",
    "RENAMENX": "any",
}
READS = {
    *(
        "EXISTS",
        "GET",
        "HEXISTS",
        "HGET",
        "HGETALL",
        "HKEYS",
        "HLEN",
        "HSCAN",
        "LRANGE",
        "HSTRLEN",
        "HMGET",
        "SCARD",
        "SISMEMBER",
        "SMEMBERS",
        "SMISMEMBER",
        "STRLEN",
        "TIME",
        "TYPE",
    ),
    *(
        "XINFO",
        "XLEN",
        "XPENDING",
        "XRANGE",
        "XREVRANGE",
        "ZCARD",
        "ZRANGE",
        "ZRANGEBYSCORE",
        "ZREVRANGE",
        "ZSCAN",
        "ZSCORE",
    ),
}


def labels(text: str, word: str) -> dict[int, str]:
    """Number -> label, of the line `-- KEYS:` or `-- ARGV:` of a header with the lines that go on with it."""
    block = re.search(rf"^-- {word}: (.*(?:\n--  .*)*)", text, re.MULTILINE)
    assert block, f"no {word} line"
    line = re.sub(r"\n--\s+", " ", block[1])
    pieces = re.split(r"(?:^|, |; |then )(\d+)(?:\.\.\.)? (?=\D)", line)
    return {int(number): label.strip(" ,") for number, label in zip(pieces[1::2], pieces[2::2], strict=True)}


def rows_of(label: str) -> list[str]:
    """The rows that a label of KEYS means."""
    by_name = {row.name: attribute for attribute, row in ROWS.items()}
    if label in by_name:
        return [by_name[label]]
    if label in PHRASES:
        return PHRASES[label]
    found = ["event_prefix"] * ("event" in label) + ["stream_prefix"] * bool(re.search("lane|stream|back", label))
    assert found, f"no key is called {label!r}"
    return found


@dataclass
class Header:
    """What a script's header and its assignments say about the names that it uses."""

    name: str
    text: str

    def __post_init__(self) -> None:
        self.keys = labels(self.text, "KEYS")
        self.arguments = labels(self.text, "ARGV") if "ARGV: none" not in self.text else {}
        self.aliases: dict[str, str] = {}
        for names, values in re.findall(r"^ *local ([\w, ]+) = ((?:KEYS|ARGV)\[.*)$", self.text, re.MULTILINE):
            for alias, value in zip(names.split(", "), values.split(", "), strict=False):
                self.aliases.setdefault(alias, value)

    def of(self, expression: str, kind: str) -> list[str]:
        """The rows that an expression may mean as the key of a command on this type."""
        if (self.name, expression) in SPELLED:
            return [SPELLED[self.name, expression]]
        if field := re.match(r"keys\.(\w+)", expression):
            return [field[1] if field[1] in ROWS else f"{field[1]}_prefix"]
        if kind == "stream" and not re.fullmatch(r"KEYS\[\d+\]", expression):
            return ["stream_prefix"]
        first = expression.split(" .. ", maxsplit=1)[0]
        expression = self.aliases.get(first, first)
        if argument := re.match(r"ARGV\[(\d+)\]", expression):
            label = self.arguments[int(argument[1])]
            return [row for phrase, row in PREFIXES.items() if label.startswith(phrase)]
        assert expression.startswith(("KEYS", "unpack(KEYS")), f"{self.name}: {expression!r} is not a key"
        number = re.fullmatch(r"KEYS\[(\d+)\]", expression)
        label = self.keys.get(int(number[1])) if number else None
        return rows_of(label or self.keys[max(self.keys)])


def expanded(name: str) -> str:
    text = (LUA / f"{name}.lua").read_text()
    include = lambda match: (LUA / "include" / f"{match[1]}.lua").read_text()  # noqa: E731
    return re.sub(r"^-- include: (\w+)$", include, text, flags=re.MULTILINE)


def arguments(text: str, start: int) -> list[str]:
    """The arguments of a call, from the place after its opening parenthesis."""
    found, depth, begin = list[str](), 0, start
    for at in range(start, len(text)):
        if not depth and text[at] in ",)":
            found.append(text[begin:at].strip())
            begin = at + 1
            if text[at] == ")":
                return found
        else:
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
    raise AssertionError("a call without an end")


def left_alone(text: str) -> set[str]:
    """Keys that end_job does not write with the arguments that this script gives it."""
    ends = [arguments(text, call.end()) for call in re.finditer(r"(?<!function )end_job\(", text)]
    by_argument = {
        "keys.result": (4, "0"),
        "keys.dead": (6, "nil"),
        "keys.dead_jobs": (6, "nil"),
        "keys.dead_bytes": (6, "nil"),
        "keys.where": (7, "false"),
    }
    return {key for key, (at, nothing) in by_argument.items() if ends and all(end[at] == nothing for end in ends)}


def written(name: str) -> Iterator[str]:
    """The rows that a script writes."""
    text = expanded(name)
    header = Header(name, text)
    unwritten = left_alone(text)
    for call in CALL.finditer(text):
        command = call[1]
        assert command in WRITES or command in READS, f"{name}: is {command} a write?"
        if command not in WRITES or text[call.end() :].startswith("stream, '*', unpack(fields)"):
            continue
        kind = WRITES[command]
        expression = "KEYS[x]" if command == "XREADGROUP" else arguments(text, call.end())[0]
        if expression.split(" .. ")[0] in unwritten:
            continue
        rows = [row for row in header.of(expression, kind) if ROWS[row].type == kind]
        assert rows, f"{name}: {command} {expression} fits no key of its header"
        yield from rows
    for call in re.finditer(r"(?<!function )put_entry\(", text):
        yield from header.of(arguments(text, call.end())[0], "stream")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_names_keys_of_the_map(name: str) -> None:
    numbers = labels((LUA / f"{name}.lua").read_text(), "KEYS")
    assert list(numbers) == list(range(1, len(numbers) + 1)), "its numbers have a gap"
    for label in numbers.values():
        assert rows_of(label)


def test_the_map_names_the_scripts_that_write_each_key() -> None:
    found: dict[str, set[str]] = {attribute: set() for attribute in ROWS}
    for name in SCRIPTS:
        for row in written(name) if name not in OF_ANY_KEY else ():
            found[row].add(name)
    assert {attribute: set(row.writers.split()) for attribute, row in ROWS.items()} == found


def test_every_key_has_a_writer_and_a_life() -> None:
    for attribute, row in ROWS.items():
        assert row.writers or row.besides, attribute
        assert row.life, attribute


def test_attributes_are_names_in_the_namespace() -> None:
    keys = Keys("shop")
    assert keys.dead_jobs == "upnext:{shop}:dead:jobs"
    assert keys.stream("t", "n") == keys.stream_prefix + "t:n"
    assert all(getattr(keys, attribute) == keys.prefix + row.name for attribute, row in ROWS.items())


@pytest.mark.parametrize("name", [one for one in SCRIPTS if "-- include: end_job" in (LUA / f"{one}.lua").read_text()])
def test_an_end_is_given_each_of_its_keys(name: str) -> None:
    """None is made of another: names of keys come from here alone."""
    expected = re.search(r"`keys` = \{([\w, ]+)\}", (LUA / "include" / "end_job.lua").read_text())
    assert expected
    assert not re.search(r"keys\.\w+ = ", expanded(name))
    text = (LUA / f"{name}.lua").read_text()
    header = Header(name, text)
    given = dict(re.findall(r"\b(\w+) = ((?:KEYS|ARGV)\[\d+\])", text))
    aliases = {
        alias: header.aliases[of] for alias, of in re.findall(r"\b(\w+) = (\w+)\b", text) if of in header.aliases
    }
    for key in expected[1].split(", "):
        row = key if key in ROWS else f"{key}_prefix"
        assert row in header.of({**aliases, **given}[key], ROWS[row].type), f"{name} gives another key as {key}"
