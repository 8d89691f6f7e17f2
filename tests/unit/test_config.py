"""Where things are found, in which order, and the message when they aren't."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from upnext import config
from upnext.config import ResolvedUrl, UrlSource
from upnext.errors import NoBrokerError, UsageError


@pytest.fixture
def home() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="un-") as folder:
        yield Path(folder)


@pytest.fixture
def env(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", home / "no-units")
    monkeypatch.setattr(config, "UNITS_STATE_DIR", home / "no-units")
    return {"HOME": str(home), "XDG_STATE_HOME": f"{home}/state", "XDG_RUNTIME_DIR": f"{home}/run", "TMPDIR": f"{home}"}


@pytest.fixture
def listen() -> Iterator[Listen]:
    listeners = Listen()
    yield listeners
    for listener in listeners.open:
        listener.close()


class Listen:
    """Makes sockets that answer a connect."""

    def __init__(self) -> None:
        self.open: list[socket.socket] = []

    def __call__(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.open.append(listener)
        return path

    def broker(self, home: Path, name: str) -> str:
        url = f"unix://{self(home / 'state/upnext' / name / 'broker.sock')}"
        (home / "state/upnext" / name / "broker.url").write_text(url + "\n")
        return url


def stale(path: Path) -> Path:
    """A socket file that nobody listens on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


# ---- Redis


def test_order_of_places(env: dict[str, str], home: Path, listen: Listen) -> None:
    embedded = listen.broker(home, "shop")
    full = env | {"UPNEXTD_REDIS_URL": "redis://daemon", "UPNEXT_REDIS_URL": "redis://env"}
    assert config.redis_url("redis://flag", full, "redis://worker", daemon=True) == ResolvedUrl(
        "redis://flag", UrlSource.FLAG
    )
    assert config.redis_url(None, full, "redis://worker", daemon=True) == ResolvedUrl(
        "redis://daemon", UrlSource.DAEMON_ENV
    )
    assert config.redis_url(None, full, "redis://worker") == ResolvedUrl("redis://env", UrlSource.ENV)
    blank = env | {"UPNEXT_REDIS_URL": ""}
    assert config.redis_url(None, blank, "redis://worker") == ResolvedUrl("redis://worker", UrlSource.WORKER)
    assert config.redis_url(None, blank) == ResolvedUrl(embedded, UrlSource.EMBEDDED)
    assert config.configured_url(None, blank) is None


def test_a_credential_counts_like_the_variable_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "redis-url").write_text("redis://:secret@kept\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "UPNEXT_REDIS_URL": "redis://env"}
    kept = ResolvedUrl("redis://:secret@kept", UrlSource.CREDENTIAL)
    assert config.configured_url(None, env, "redis://worker", daemon=True) == kept
    assert config.configured_url(None, env | {"UPNEXTD_REDIS_URL": ""}, daemon=True) == kept
    flag = config.configured_url("redis://flag", env, daemon=True)
    other = config.configured_url(None, env | {"UPNEXTD_REDIS_URL": "redis://daemon"}, daemon=True)
    assert [url.source if url else None for url in (flag, other)] == [UrlSource.FLAG, UrlSource.DAEMON_ENV]
    client = config.configured_url(None, env)
    assert client is not None
    assert client.source is UrlSource.ENV, "clients read no credential of the daemon"


def test_a_credential_that_is_not_there_or_empty_is_not_set(tmp_path: Path) -> None:
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert config.configured_url(None, env, daemon=True) is None
    (tmp_path / "redis-url").write_text(" \n")
    assert config.configured_url(None, env, daemon=True) is None


def test_a_credential_that_is_no_url_is_named_and_not_shown(tmp_path: Path) -> None:
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "redis-url").write_text("http://:secret@x")
    with pytest.raises(UsageError, match="^the credential redis-url: ") as caught:
        config.configured_url(None, env, daemon=True)
    assert "secret" not in str(caught.value)
    (tmp_path / "redis-url").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="^the credential redis-url can't be read: "):
        config.configured_url(None, env, daemon=True)
    (tmp_path / "redis-url").unlink()
    (tmp_path / "redis-url").mkdir()
    with pytest.raises(UsageError, match="^the credential redis-url can't be read: Is a directory"):
        config.configured_url(None, env, daemon=True)


def test_no_broker_is_one_line_with_two_ways_out(env: dict[str, str]) -> None:
    with pytest.raises(NoBrokerError) as caught:
        config.redis_url(None, env)
    assert str(caught.value) == (
        "no Redis is configured and no daemon with an embedded broker is running: "
        "set UPNEXT_REDIS_URL, or start one with `upnextd start service.py`"
    )
    with pytest.raises(NoBrokerError, match="no daemon named 'shop' with an embedded broker is running"):
        config.redis_url(None, env, name="shop")


def test_several_brokers_are_listed_and_a_name_chooses(env: dict[str, str], home: Path, listen: Listen) -> None:
    shop, mail = listen.broker(home, "shop"), listen.broker(home, "mail")
    with pytest.raises(UsageError) as caught:
        config.redis_url(None, env)
    assert str(caught.value) == "several daemons are running: mail, shop; choose one with --name or UPNEXT_REDIS_URL"
    assert config.redis_url(None, env, name="shop").url == shop
    assert config.redis_url(None, env | {"UPNEXTD_NAME": "mail"}).url == mail
    assert config.redis_url(None, env | {"UPNEXTD_STATE_DIR": f"{home}/state/upnext/mail"}).url == mail


def test_what_a_dead_daemon_left_is_no_broker(env: dict[str, str], home: Path, listen: Listen) -> None:
    sock = stale(home / "state/upnext/dead/broker.sock")
    (sock.parent / "broker.url").write_text(f"unix://{sock}")
    for name, text in (
        ("empty", ""),
        ("odd", "http://x"),
        ("tcp", "redis://localhost"),
        ("gone", "unix:///nowhere/b.sock"),
    ):
        folder = home / "state/upnext" / name
        folder.mkdir()
        (folder / "broker.url").write_text(text)
    (home / "state/upnext/binary").mkdir()
    (home / "state/upnext/binary/broker.url").write_bytes(b"\xff\xfe")
    assert config.find_brokers(env) == []
    live = listen.broker(home, "live")
    assert config.find_brokers(env) == [("live", live)]


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost", "redis://:secret@localhost:6379/0", "rediss://user:secret@10.0.0.1/2?ssl_cert_reqs=none", "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=1", "redis+sentinel://a:26379,b:26379/main", "redis+sentinel://a/main", "redis+cluster://a:7000,b:7000",
        "redis://[::1]:6379", " redis://padded ",
    ],
)  # fmt: skip
def test_good_urls(url: str) -> None:
    assert config.validate_url(url) == url.strip()


HINT = "redis://HOST:6379/0, rediss://…, unix:///PATH, redis+sentinel://H1,H2/NAME or redis+cluster://HOST"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", f"'' is not a Redis URL; use {HINT}"),
        ("localhost:6379", f"'localhost:6379' is not a Redis URL; use {HINT}"),
        ("http://u:hunter2@x", f"'http://u:***@x' is not a Redis URL; use {HINT}"),
        ("redis://", f"'redis://' names no host; use {HINT}"),
        ("redis://:hunter2@", f"'redis://:***@' names no host; use {HINT}"),
        ("unix://run/redis.sock", "'unix://run/redis.sock' names no socket; write unix:///PATH with three slashes"),
        ("unix:///", "'unix:///' names no socket; write unix:///PATH with three slashes"),
        ("redis+sentinel://a,b", "'redis+sentinel://a,b' names no master; write redis+sentinel://H1,H2/NAME"),
        (
            "redis://u:hunter2@a/jobs",
            "'redis://u:***@a/jobs': after the host comes the number of a database, as in redis://HOST:6379/0",
        ),
        ("redis://a,b/0", "'redis://a,b/0' names several hosts; only redis+sentinel:// and redis+cluster:// do"),
        ("redis://a:port", "'redis://a:port': a port is a number from 0 to 65535"),
        ("redis://[::1", "'redis://[::1' is not a Redis URL: the brackets of its IPv6 address don't match"),
    ],
)
def test_bad_urls_are_refused_without_their_password(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.validate_url(url)
    assert str(caught.value) == message


def test_a_bad_url_is_told_with_its_place(env: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^UPNEXT_REDIS_URL: 'ftp://x' is not a Redis URL; use "):
        config.redis_url(None, env | {"UPNEXT_REDIS_URL": "ftp://x"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h/0", "redis://h/0"),
        ("redis://user@h", "redis://user@h"),
        ("redis://:s3cret@h:1/0", "redis://:***@h:1/0"),
        ("rediss://user:p@ss:w@h/0?a=1", "rediss://user:***@h/0?a=1"),
        ("unix:///run/r.sock?db=1&password=s3cret&x=1", "unix:///run/r.sock?db=1&password=***&x=1"),
        ("unix://user:s3cret@/run/r.sock", "unix://user:***@/run/r.sock"),
        ("redis+sentinel://:a@h1,h2/m?sentinel_password=b", "redis+sentinel://:***@h1,h2/m?sentinel_password=***"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert config.redact(url) == shown
    assert "s3cret" not in repr(ResolvedUrl(url, UrlSource.FLAG))


def test_what_is_no_text_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is not a Redis URL"):
        config.configured_url("redis://h\udcff", env)
    with pytest.raises(UsageError, match="namespace"):
        config.namespace("a\udcff", env)


def test_namespace(env: dict[str, str]) -> None:
    assert config.namespace(None, env) == "default"
    assert config.namespace(None, env | {"UPNEXT_NAMESPACE": "blue"}) == "blue"
    assert config.namespace("green", env | {"UPNEXT_NAMESPACE": "blue"}) == "green"
    with pytest.raises(UsageError) as caught:
        config.namespace("a{b}", env)
    assert str(caught.value) == "namespace 'a{b}': use 1 to 100 characters without spaces, control characters or braces"


# ---- names, folders and sockets


@pytest.mark.parametrize(
    ("flag", "variable", "service", "name"),
    [
        (None, "", "/srv/shop.py", "shop"),
        (None, "", "pkg.shop", "shop"),
        (None, "", "shop", "shop"),
        (None, "b", "shop.py", "b"),
        ("a", "b", "s.py", "a"),
    ],
)
def test_daemon_name(flag: str | None, variable: str, service: str, name: str) -> None:
    assert config.daemon_name(flag, {"UPNEXTD_NAME": variable}, service) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 101])
def test_a_daemon_name_is_part_of_a_path(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.check_daemon_name(name)
    assert (
        str(caught.value)
        == f"daemon name {name!r}: use 1 to 100 letters, digits and _ . @ + -, not starting with a dot or dash"
    )


def test_state_dir() -> None:
    env = {"UPNEXTD_STATE_DIR": "/a", "STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/d", "HOME": "/e"}
    assert config.state_dir("n", "/flag", env) == Path("/flag")
    assert config.state_dir("n", "here", env) == Path.cwd() / "here"
    for variable, expected in [
        ("UPNEXTD_STATE_DIR", "/a"),
        ("STATE_DIRECTORY", "/b"),
        ("XDG_STATE_HOME", "/d/upnext/n"),
    ]:
        assert config.state_dir("n", None, env) == Path(expected)
        del env[variable]
    assert config.state_dir("n", None, env) == Path("/e/.local/state/upnext/n")
    assert config.state_dir("n", None, env | {"XDG_STATE_HOME": "relative"}) == Path("/e/.local/state/upnext/n")


def test_control_socket() -> None:
    env = {"UPNEXTD_SOCKET": "/a.sock", "RUNTIME_DIRECTORY": "/b:/c", "XDG_RUNTIME_DIR": "/d", "TMPDIR": "/e"}
    assert config.control_socket("n", "/flag.sock", env) == Path("/flag.sock")
    for variable, expected in [
        ("UPNEXTD_SOCKET", "/a.sock"),
        ("RUNTIME_DIRECTORY", "/b/n.sock"),
        ("XDG_RUNTIME_DIR", "/d/upnextd/n.sock"),
    ]:
        assert config.control_socket("n", None, env) == Path(expected)
        del env[variable]
    assert config.control_socket("n", None, env) == Path(f"/e/upnextd-{os.getuid()}/n.sock")


def test_a_socket_path_has_a_length() -> None:
    path = f"/{'x' * 100}"
    with pytest.raises(UsageError) as caught:
        config.control_socket("n", path, {})
    assert (
        str(caught.value) == f"the socket path {path} has 101 bytes, at most 100 are possible; give a shorter --socket"
    )
    assert config.control_socket("n", path[:100], {}) == Path(path[:100])


def test_broker_socket_moves_to_the_runtime_directory_when_its_path_is_long() -> None:
    runtime = Path("/run/u")
    fits = Path("/" + "x" * 87)  # with /broker.sock: 100 bytes
    assert config.broker_socket_path(fits, runtime) == fits / "broker.sock"
    long = Path("/" + "x" * 88 + "/shop")
    assert config.broker_socket_path(long, runtime) == Path("/run/u/shop-broker.sock")
    assert config.broker_socket_path(long, runtime, "mail") == Path("/run/u/mail-broker.sock")
    with pytest.raises(
        UsageError,
        match=r"^the socket path /run/u/y+-broker\.sock has 111 bytes, at most 100 are possible; give a shorter --name$",
    ):
        config.broker_socket_path(long, runtime, "y" * 92)


def test_only_live_control_sockets_are_found(env: dict[str, str], home: Path, listen: Listen) -> None:
    shop = listen(home / "run/upnextd/shop.sock")
    mail = listen(home / f"upnextd-{os.getuid()}/mail.sock")
    unit = listen(home / "unit/web.sock")
    stale(home / "run/upnextd/dead.sock")
    listen(home / "run/upnextd/shop-broker.sock")
    (home / "run/upnextd/file.sock").touch()
    assert config.find_control_sockets(env) == [("mail", mail), ("shop", shop)]
    assert config.find_control_sockets(env | {"RUNTIME_DIRECTORY": f"{home}/unit"}) == [
        ("mail", mail),
        ("shop", shop),
        ("web", unit),
    ]
    assert config.find_control_sockets(env | {"UPNEXTD_NAME": "shop"}) == [("shop", shop)]
    assert config.find_control_sockets(env | {"UPNEXTD_SOCKET": str(unit)}) == [("web", unit)]
    assert config.find_control_sockets(env | {"UPNEXTD_SOCKET": f"{home}/none.sock"}) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="what the units make must be root's")
def test_root_finds_the_daemons_of_the_units_too(
    env: dict[str, str], home: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = home / "system"
    web = listen(units / "web/web.sock")
    listen(units / "web/web-broker.sock")
    listen(units / "web/other.sock")
    stale(units / "dead/dead.sock")
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", units)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.find_control_sockets(env) == [("web", web)]
    assert config.find_control_sockets(env | {"UPNEXTD_NAME": "web"}) == [("web", web)]
    assert config.find_control_sockets(env | {"UPNEXTD_NAME": "other"}) == []
    mine = listen(home / "run/upnextd/web.sock")
    assert config.find_control_sockets(env) == [("web", mine)], "the user's own comes first"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config.find_control_sockets(env | {"XDG_RUNTIME_DIR": "/nowhere"}) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="what the units make must be root's")
def test_root_finds_the_brokers_of_the_units_too(
    env: dict[str, str], home: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, run = home / "lib", home / "system"
    monkeypatch.setattr(config, "UNITS_STATE_DIR", states)
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", run)

    def unit(name: str, socket_path: Path) -> str:
        """Its state as systemd makes it with DynamicUser=: a link to a folder that root alone can go into."""
        kept = home / "private" / name
        kept.mkdir(parents=True)
        states.mkdir(exist_ok=True)
        (states / name).symlink_to(kept)
        (kept / "broker.url").write_text(f"unix://{socket_path}\n")
        listen(socket_path)
        return f"unix://{socket_path}"

    web = unit("web", states / "web" / "broker.sock")
    mail = unit("mail", run / "mail" / "mail-broker.sock")
    unit("evil", home / "elsewhere.sock")
    assert config.find_brokers(env) == [("mail", mail), ("web", web)], "not what a unit's user says of other places"
    assert config.redis_url(None, env, name="web") == config.ResolvedUrl(web, config.UrlSource.EMBEDDED)
    own = listen.broker(home, "web")
    assert config.find_brokers(env, "web") == [("web", own)], "the user's own comes first"
    assert config.find_brokers(env | {"UPNEXTD_STATE_DIR": str(home / "none")}) == []
    with pytest.raises(UsageError, match="daemon name"):
        config.find_brokers(env, "../evil")
    os.chown(states, 4711, 4711)
    assert config.find_brokers(env, "mail") == [], "that folder could have been made by another user"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is another user's")
def test_who_can_not_read_a_unit_s_folders_is_told(
    env: dict[str, str], home: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home / "system"
    listen(run / "web/web.sock")
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", run)
    assert config.closed_units() == []
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (config.closed_units(), config.closed_units("web"), config.closed_units("mail")) == (["web"], ["web"], [])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in (None, "web"):
        with pytest.raises(
            NoBrokerError, match=r"; not readable as this user are the units web \(use sudo\): set UPNEXT"
        ):
            config.redis_url(None, env, name=name)
    with pytest.raises(NoBrokerError) as caught:
        config.redis_url(None, env, name="mail")
    assert "units" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is another user's")
def test_another_user_s_link_to_a_folder_is_not_followed(env: dict[str, str], home: Path, listen: Listen) -> None:
    listen(home / "elsewhere/web.sock")
    folder = home / "run/upnextd"
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(home / "elsewhere")
    assert config.find_control_sockets(env) == [("web", folder / "web.sock")], "root's own link will do"
    os.chown(folder, 65534, 65534, follow_symlinks=False)
    assert config.find_control_sockets(env) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="what the units make must be root's")
def test_a_unit_s_socket_may_be_served_by_the_unit_s_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = home / "system"
    (units / "web").mkdir(parents=True)
    os.chown(units / "web", 4711, 4711)
    monkeypatch.setattr(config, "UNITS_RUNTIME_DIR", units)
    assert config.unit_users(units / "web/web.sock") == {4711}
    assert config.unit_users(units / "gone/gone.sock") == frozenset()
    assert config.unit_users(home / "web/web.sock") == frozenset()
    os.chown(units, 4711, 4711)
    assert config.unit_users(units / "web/web.sock") == frozenset(), "that folder could have been made by its user"


def test_the_working_directory_keeps_the_name_that_it_was_entered_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "current").symlink_to("one")
    monkeypatch.chdir(tmp_path / "current")
    here = str((tmp_path / "one").resolve())
    for named in (f"{tmp_path}/current", f"{tmp_path}/one"):
        assert config.working_directory({"PWD": named}) == named
    for named in ("", "current", ".", "/", f"{tmp_path}/gone"):
        assert config.working_directory({"PWD": named}) == here


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """As in a container under a uid that its user database has not."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(config, "UNITS_STATE_DIR", home / "none")
    with pytest.raises(UsageError) as caught:
        config.state_dir("shop", None, {})
    assert str(caught.value) == (
        f"no folder for the state: HOME is not set, and the user database has no uid {os.getuid()};"
        " give --state-dir (UPNEXTD_STATE_DIR), or set HOME or XDG_STATE_HOME"
    )
    assert config.state_dir("shop", None, {"XDG_STATE_HOME": "/s"}) == Path("/s/upnext/shop")
    with pytest.raises(NoBrokerError):
        config.redis_url(None, {})
    with pytest.raises(NoBrokerError):
        config.redis_url(None, {}, name="shop")
    with pytest.raises(UsageError, match="that user's home is not known; write the whole path"):
        config.state_dir("shop", "~no-such-user/x", {})


def test_without_a_temporary_folder_only_what_needs_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert config.control_socket("shop", "/run/s", {}) == Path("/run/s")
    assert config.runtime_dir({"XDG_RUNTIME_DIR": "/run/u"}) == Path("/run/u/upnextd")
    assert config.runtime_dir({}) == Path(f"/tmp/upnextd-{os.getuid()}")


def test_nothing_runs(env: dict[str, str]) -> None:
    assert config.find_control_sockets(env) == []
    assert not config.is_listening(Path("/" + "x" * 300))


def test_private_dir(home: Path) -> None:
    made = config.private_dir(home / "a/b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert config.private_dir(made) == made
    made.chmod(0o777)
    with pytest.raises(UsageError) as caught:
        config.private_dir(made)
    assert str(caught.value) == f"{made} can be written by others; run chmod 700 {made}"
    made.chmod(0o1777)  # as /tmp is: 0700 would lock everybody else out
    with pytest.raises(UsageError, match="choose a folder of its own"):
        config.private_dir(made)


def test_a_folder_that_can_not_be_made_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        config.private_dir(Path("/proc/upnext/x"))
    assert str(caught.value) == "/proc/upnext: No such file or directory"


def test_a_folder_that_can_not_be_written_to_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config.private_dir(home / "a")
    monkeypatch.setattr(os, "access", lambda path, _mode: path != made)  # root may write everywhere
    with pytest.raises(UsageError) as caught:
        config.private_dir(made)
    assert str(caught.value) == f"{made} can't be written to"


def test_private_dir_follows_a_link_to_a_folder_of_ours(home: Path) -> None:
    """As systemd makes one for StateDirectory= with DynamicUser=."""
    made = config.private_dir(home / "private/shop")
    link = home / "shop"
    link.symlink_to("private/shop")
    assert config.private_dir(link) == link
    made.chmod(0o770)
    with pytest.raises(UsageError) as caught:
        config.private_dir(link)
    assert str(caught.value) == f"{link} can be written by others; run chmod 700 {link}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("link_owner", "folder_owner"), [(65534, 0), (0, 65534)])
def test_private_dir_refuses_a_link_that_another_user_made_or_that_leads_to_theirs(
    home: Path, link_owner: int, folder_owner: int
) -> None:
    made = config.private_dir(home / "private")
    link = home / "shop"
    link.symlink_to(made)
    os.lchown(link, link_owner, -1)
    os.chown(made, folder_owner, -1)
    with pytest.raises(UsageError) as caught:
        config.private_dir(link)
    assert str(caught.value) == f"{link} must be a directory of this user (uid 0)"


def test_private_dir_refuses_a_link_to_nothing_or_to_a_file(home: Path) -> None:
    (home / "gone").symlink_to(home / "nowhere")
    (home / "file").touch()
    (home / "filed").symlink_to(home / "file")
    for name in ("gone", "file", "filed"):
        with pytest.raises(UsageError, match="must be a directory of this user"):
            config.private_dir(home / name)
