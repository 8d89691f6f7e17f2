"""`pytest tests/conformance --broker redis7,tls` (or `all`): which brokers the suite runs on. Without it: those whose server is here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.topologies import TOPOLOGIES, Topology, why_not


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "topology" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("broker")
    asked = metafunc.config.getoption("--broker")
    names = list(TOPOLOGIES) if asked in (None, "all") else asked.split(",")
    unknown = [name for name in names if name not in TOPOLOGIES]
    if unknown:
        raise pytest.UsageError(f"--broker: no {', '.join(unknown)}; there are {', '.join(TOPOLOGIES)}, or all")
    kinds = [
        # a broker that was asked for and isn't here is an error, not a skip
        pytest.param(
            name,
            marks=[pytest.mark.skip(reason=f"{name}: {missing}")]
            if (missing := why_not(name)) and asked is None
            else [],
        )
        for name in names
        if only is None or name in only.args
    ]
    metafunc.parametrize("topology", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that is for none of the brokers asked for isn't one of this run."""
    items[:] = [item for item in items if "[NOTSET]" not in item.name]


@pytest.fixture(scope="session")
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    made = TOPOLOGIES[request.param]()
    try:
        yield made.start()
    finally:
        made.close()
