"""Flags and variables become frozen settings; what can't be meant is refused with one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from upnext.errors import UsageError
from upnextd.settings import Flags, build, size_bytes

ENV = {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1", "PATH": "/bin"}


def test_defaults() -> None:
    built = build(Flags("/srv/shop.py"), ENV)
    assert (built.name, built.service, built.redis_url, built.namespace) == ("shop", "/srv/shop.py", None, "default")
    assert built.socket == Path("/run/user/1/upnextd/shop.sock")
    assert built.state_dir == Path("/home/u/.local/state/upnext/shop")
    assert (built.stop_timeout_s, built.hang_timeout_s, built.reload_timeout_s) == (30.0, 60.0, 3600.0)
    assert built.workers >= 1


def test_a_module_keeps_its_name() -> None:
    built = build(Flags("pkg.jobs"), ENV)
    assert (built.name, built.service) == ("jobs", "pkg.jobs")


def test_children_get_the_environment_less_what_is_ours() -> None:
    env = ENV | {
        "NOTIFY_SOCKET": "/n",
        "WATCHDOG_USEC": "1",
        "LISTEN_FDS": "1",
        "PYTHONPATH": "x",
        "UPNEXTD_NAME": "shop",
    }
    built = build(Flags("shop.py"), env)
    assert dict(built.child_env) == ENV | {"PYTHONPATH": "x", "UPNEXTD_NAME": "shop"}


def test_the_daemon_s_own_url_counts_first() -> None:
    env = ENV | {"UPNEXT_REDIS_URL": "redis://a", "UPNEXTD_REDIS_URL": "redis://b"}
    assert build(Flags("shop.py"), env).redis_url == "redis://b"
    assert build(Flags("shop.py", redis_url="redis://c"), env).redis_url == "redis://c"


def test_a_variable_that_nothing_reads_is_named_with_the_nearest() -> None:
    env = ENV | {"UPNEXTD_WORKER": "2", "UPNEXTD_STOP_TIMEOUT": "3", "UPNEXTD_XQ": "1", "UPNEXT_REDIS_URL": "redis://a"}
    assert build(Flags("shop.py"), env).warnings == (
        "UPNEXTD_WORKER is set, and no setting has that name; did you mean UPNEXTD_WORKERS?",
        "UPNEXTD_XQ is set, and no setting has that name",
    )


def test_only_takes_lists() -> None:
    assert build(Flags("shop.py", only=("a,b", "c")), ENV).only == ("a", "b", "c")


@pytest.mark.parametrize(
    "flags",
    [
        {"workers": -1},
        {"workers": 1001},
        {"stop_timeout": -1.0},
        {"stop_timeout": float("nan")},
        {"hang_timeout": 0.1},
        {"max_jobs": 0},
        {"max_rss": "0"},
        {"max_rss": "0M"},
        {"metrics": "[::1:9100"},
        {"metrics": "::1:9100"},
        {"metrics": "[[::1]]:9100"},
        {"metrics": ":²"},
        {"max_rss": "much"},
        {"dashboard": "8300"},
        {"dashboard": "0.0.0.0:8300"},
        {"dashboard": "127.0.0.1:8300", "dashboard_proxy_header": "X-User"},
        {"dashboard": "0.0.0.0:8300", "dashboard_users": "/no/such/file"},
        {"dashboard_users": "/no/such/file"},
        {"dashboard_host": ("queue.example.org",)},
        {"dashboard": "127.0.0.1:8300", "dashboard_host": ("\udcff",)},
        {"hang_timeout": float("inf")},
        {"reload_timeout": -0.5},
        {"import_timeout": 0.0},
        {"name": "a/b"},
        {"redis_url": "http://x"},
        {"namespace": "a b"},
        {"service": "/srv/\udcff.py"},
        {"only": ("a", "\udcff")},
        {"state_dir": "/\udcff"},
    ],
)
def test_what_cannot_be_meant_is_refused(flags: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        build(replace(Flags("shop.py"), **flags), ENV)
    assert "\n" not in str(refused.value)


def test_recycling_and_preload() -> None:
    built = build(Flags("shop.py", max_jobs=5, max_rss="512M", no_preload=True), ENV)
    assert (built.max_jobs, built.max_rss_bytes, built.preload) == (5, 512 << 20, False)
    plain = build(Flags("shop.py"), ENV)
    assert (plain.max_jobs, plain.max_rss_bytes, plain.preload) == (None, None, True)


def test_the_hidden_variables_of_tests() -> None:
    built = build(Flags("shop.py"), ENV | {"UPNEXTD_CANARY_S": "0.5", "UPNEXTD_START_TIMEOUT_S": "3"})
    assert (built.canary_s, built.start_timeout_s) == (0.5, 3.0)
    assert (build(Flags("shop.py"), ENV).canary_s, build(Flags("shop.py"), ENV).start_timeout_s) == (5.0, 60.0)
    with pytest.raises(UsageError, match="UPNEXTD_CANARY_S"):
        build(Flags("shop.py"), ENV | {"UPNEXTD_CANARY_S": "soon"})


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2g", 2 << 30), ("1024", 1024), ("1 KiB", 1024)])
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "many"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        size_bytes(text)


@pytest.mark.parametrize(
    ("given", "listens_on"),
    [
        ("127.0.0.1:9100", "127.0.0.1:9100"),
        (":9100", "127.0.0.1:9100"),
        ("[::1]:9100", "[::1]:9100"),
        ("/run/metrics.sock", "/run/metrics.sock"),
        ("unix:///run/metrics.sock", "/run/metrics.sock"),
    ],
)
def test_where_metrics_are_served(given: str, listens_on: str) -> None:
    assert build(Flags("shop.py", metrics=given), ENV).metrics == listens_on


@pytest.mark.parametrize("given", ["nowhere", "host:", "host:x", "host:0", "host:99999", "::1:9100"])
def test_where_metrics_can_not_be_served(given: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        build(Flags("shop.py", metrics=given), ENV)


def test_a_metrics_socket_is_not_taken_for_a_daemon_s() -> None:
    env = {**ENV, "RUNTIME_DIRECTORY": "/run/shop"}
    with pytest.raises(UsageError, match="give it another ending"):
        build(Flags("shop.py", metrics="/run/shop/metrics.sock"), env)
    assert build(Flags("shop.py", metrics="/run/shop/metrics"), env).metrics == "/run/shop/metrics"


def test_a_path_behind_a_port_is_no_socket() -> None:
    with pytest.raises(UsageError, match=r"write 127\.0\.0\.1:9100 alone"):
        build(Flags("shop.py", metrics="127.0.0.1:9100/metrics"), ENV)


def test_where_the_dashboard_is_served(tmp_path: Path) -> None:
    assert build(Flags("shop.py"), ENV).dashboard is None
    users = tmp_path / "users"
    users.write_text("")
    flags = Flags("shop.py", dashboard="0.0.0.0:8300", dashboard_users=str(users), dashboard_host=("q.example.org",))
    found = build(flags, ENV).dashboard
    assert found is not None
    assert (str(found.listen), found.hosts, found.users) == ("0.0.0.0:8300", ("q.example.org",), users)
    proxied = build(Flags("shop.py", dashboard="/run/d.sock", dashboard_proxy_header="X-User"), ENV).dashboard
    assert proxied is not None
    assert (str(proxied.listen), proxied.proxy_header) == ("/run/d.sock", "X-User")
