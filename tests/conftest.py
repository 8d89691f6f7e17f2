"""Fixtures of all suites, and how an `async def` test is run."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import signal
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop

from tests.support.daemon import Daemon
from tests.support.servers import NoServerError, Server

# What is slow is the machine, at moments.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("patient")

LONGEST_TMPDIR = 30
"""Tests make Unix sockets some 60 bytes below, and the path of one may have 107."""

SUITES = ("unit", "sim", "integration", "conformance", "e2e", "chaos")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        help="tests/conformance: redis7, valkey, unix, tls, acl, sentinel, cluster (several: by commas), or all",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts what it puts in the background with SIGINT ignored, and every child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A developer's own daemons and settings must not be seen by a test, nor touched by one.
    for name in list(os.environ):
        if name.startswith(("UPNEXT_", "UPNEXTD_")) and not name.startswith("UPNEXT_TEST_"):
            del os.environ[name]
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        os.environ.pop(name, None)
    if len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    home = tempfile.mkdtemp(prefix="upnext-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["XDG_STATE_HOME"] = f"{home}/state"
    os.environ["XDG_RUNTIME_DIR"] = f"{home}/run"
    os.mkdir(f"{home}/state", 0o700)
    os.mkdir(f"{home}/run", 0o700)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder under tests/ is the suite, and its marker."""
    here = Path(__file__).parent
    for item in items:
        suite = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        if suite in SUITES:
            item.add_marker(getattr(pytest.mark, suite))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def test_…` on a fresh uvloop, in debug mode off, all its fixtures being plain."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with warnings.catch_warnings(record=True) as left_open:
        # Where a failed test leaves a connection open, the loop would wait for its end for ever, were the warning about it an error.
        warnings.simplefilter("always", ResourceWarning)
        try:
            runner.run(pyfuncitem.obj(**arguments))
        finally:
            runner.close()
    for one in left_open:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return True


def _server(**options: str) -> Server:
    kind = os.environ.get("UPNEXT_TEST_BROKER", "valkey")
    try:
        return Server(kind, **options).start()
    except NoServerError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The broker that all tests share: each keeps to its own namespace and doesn't break it."""
    server = _server()
    yield server
    server.close()


@pytest.fixture
def redis_url(server: Server) -> str:
    return server.url


@pytest.fixture
def namespace() -> str:
    """A name that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A broker for this test alone, with AOF, to be killed, frozen and restarted."""
    server = _server(appendonly="yes")
    yield server
    server.close()


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[Callable[..., Daemon]]:
    """daemon(SERVICE, **options) -> a started Daemon. At the end each is stopped, and nothing of it may be left."""
    daemons: list[Daemon] = []

    def start(service: Path | str, *, wait: bool = True, **options: Any) -> Daemon:
        one = Daemon(service, **options)
        daemons.append(one)
        return one.start() if wait else one.launch()

    yield start
    try:
        for one in daemons:
            if one.exit_code is None:
                one.stop()
            one.assert_nothing_left()
    finally:
        for one in daemons:
            one.close()
