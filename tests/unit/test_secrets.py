"""Secrets: where they are found, what is hidden, and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import upnext
from upnext.core import secret_names
from upnext.engine import secrets
from upnext.engine.secrets import Secret, Source, Sources

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _none_before_or_after() -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    secrets.forget()
    yield
    secrets.forget()
    logging.setLogRecordFactory(factory)


def program(folder: Path, body: str) -> str:
    path = folder / "give"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_first_source_that_has_it_is_taken(tmp_path: Path) -> None:
    credentials, directory = tmp_path / "credentials", tmp_path / "directory"
    credentials.mkdir()
    directory.mkdir()
    sources = Sources(
        credentials, directory, {"UPNEXT_SECRET_KEY": "of the environment"}, program(tmp_path, "echo of a program")
    )
    assert (secrets.read("key", sources).value, secrets.read("other", sources).value) == (
        "of the environment",
        "of a program",
    )
    (directory / "key").write_text("of the directory\n")
    assert (secrets.read("key", sources).value, secrets.read("key", sources).source) == (
        "of the directory",
        Source.DIRECTORY,
    )
    (credentials / "key").write_text("of the credentials")
    assert secrets.read("key", sources).source is Source.CREDENTIALS


def test_values_come_as_they_are_asked_for(tmp_path: Path) -> None:
    found = Secret("key", b'{"user": "u", "n": 1}\n', Source.DIRECTORY)
    assert (found.bytes, found.value, found.json()) == (
        b'{"user": "u", "n": 1}\n',
        '{"user": "u", "n": 1}',
        {"user": "u", "n": 1},
    )
    with pytest.raises(upnext.SecretError, match="not UTF-8 text: use its .bytes"):
        _ = Secret("key", b"\xff\xfe\xfd", Source.DIRECTORY).value
    with pytest.raises(upnext.SecretError, match="is not JSON"):
        Secret("key", b"plain", Source.DIRECTORY).json()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'vault is sealed' >&2; exit 2", "ended with 2: vault is sealed"),
        ("true", "is empty"),
        ("head -c 70000 /dev/zero | tr '\\0' x", "larger than 64 KiB"),
    ],
)
def test_a_program_that_gives_none_is_named(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(upnext.SecretError, match=words):
        secrets.read("key", Sources(None, None, {}, program(tmp_path, body)))


def test_what_is_missing_or_unreadable_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(upnext.SecretError, match=re.escape(f"is not in {tmp_path}/key, $UPNEXT_SECRET_KEY")):
        secrets.read("key", Sources(None, tmp_path, {}, None))
    (tmp_path / "folder").mkdir()
    with pytest.raises(upnext.SecretError, match="can't read .*/folder: Is a directory"):
        secrets.read("folder", Sources(None, tmp_path, {}, None))
    with pytest.raises(upnext.SecretError, match="can't run /none/give: No such file"):
        secrets.read("key", Sources(None, None, {}, "/none/give"))


def test_it_is_printed_and_carried_nowhere() -> None:
    found = Secret("key", b"s3cr3t-value", Source.EXEC)
    for text in (
        repr(found),
        str(found),
        f"{found}",
        f"{found!r:>40}",
        repr([found]),
        repr(vars_of(found)),
    ):
        assert "s3cr3t" not in text
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(found)
    with pytest.raises(TypeError):
        copy.deepcopy(found)
    worker = upnext.Worker("w")

    @worker.task
    async def pay(key: object) -> object: ...

    with pytest.raises(upnext.EncodingError):
        pay.spec.arguments.encode((found,), {})
    with pytest.raises(upnext.EncodingError):
        pay.spec.arguments.encode_result(found)


def vars_of(found: Secret) -> list[str]:
    return [type(found).__name__, *dir(found)]


def test_one_that_was_not_read_says_why() -> None:
    with pytest.raises(upnext.SecretError, match="ask for them in a task or a lifespan, not at import"):
        upnext.secret("key")
    secrets.open_all(["key"], Sources(None, None, {"UPNEXT_SECRET_KEY": "a-long-value"}, None))
    assert upnext.secret("key").value == "a-long-value"
    assert secrets.shown() == [("key", "environment")]
    with pytest.raises(
        upnext.SecretError, match=re.escape("'other' is not declared: Worker(secrets=['other']); declared here: key")
    ):
        upnext.secret("other")


def test_values_are_hidden_in_texts_and_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pem").write_text(PEM)
    (tmp_path / "json").write_text('{"password": "correct horse", "short": "abc", "list": ["battery staple"]}')
    (tmp_path / "key").write_text("sk_live_0123456789\n")
    (tmp_path / "tiny").write_text("ab")
    secrets.open_all(["pem", "json", "key", "tiny"], Sources(None, tmp_path, {}, None))
    assert secrets.masked("key sk_live_0123456789!") == "key [secret key]!"
    assert secrets.masked("x correct horse y battery staple") == "x [secret json] y [secret json]"
    assert "MIIEvQ" not in secrets.masked(PEM)
    assert "EFAASC" not in secrets.masked("one line: EFAASCBKcwggSjAgEAAoIBAQC7")
    assert "MIIEvQ" not in secrets.masked(repr(PEM))
    assert secrets.masked("about abc") == "about abc", "what is shorter than 8 characters is in too many texts"
    log = logging.getLogger("tests.secrets")
    with caplog.at_level(logging.INFO, "tests.secrets"):
        log.info("charged with %s", "sk_live_0123456789")
        try:
            raise ValueError("no such key: sk_live_0123456789")
        except ValueError:
            log.exception("failed")
    assert "sk_live" not in caplog.text
    assert caplog.text.count("[secret key]") == 3, (
        "in the first line, in the source line of the traceback, in the error"
    )


def test_names_are_checked_where_they_are_declared() -> None:
    assert upnext.Worker("w", secrets=["stripe_key", "db.password", "stripe_key"]).secrets == (
        "stripe_key",
        "db.password",
    )
    for names, words in (
        ("stripe_key", "is a list of names"),
        (["../key"], "a secret's name is"),
        ([7], "a secret's name is"),
    ):
        with pytest.raises(upnext.ServiceError, match=words):
            upnext.Worker("w", secrets=names)  # type: ignore[arg-type]


def test_other_processes_get_neither_values_nor_ways() -> None:
    env = {
        "PATH": "/bin",
        "UPNEXT_SECRET_A": "1",
        "CREDENTIALS_DIRECTORY": "/c",
        "UPNEXT_SECRETS_DIR": "/d",
        "UPNEXT_SECRETS_EXEC": "/e",
    }
    assert secret_names.without(env) == {"PATH": "/bin"}
