"""naming: what a service is called in Redis, by the place of its file."""

from __future__ import annotations

import pytest

from upnext.core.naming import ServiceName, checked_service_name, service_name, stem_of
from upnext.errors import UsageError


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        ("/srv/shop/orders.py", "orders", "orders"),
        ("/srv/shop/my.orders.py", "my_orders", "my.orders"),
        ("/srv/shop/worker.py", "worker", "shop/worker"),
        ("/srv/shop/app/main.py", "main", "shop/main"),
        ("/srv/shop/src/code/tasks.py", "tasks", "shop/tasks"),
        ("/srv/shop/current/worker.py", "worker", "shop/worker"),
        ("/srv/shop/releases/20260101/worker.py", "worker", "shop/worker"),
        ("/srv/shop/releases/blue/worker.py", "worker", "shop/worker"),
        ("/x/shop/release/app.py", "app", "shop/app"),
        ("/x/shop/2/service.py", "service", "shop/service"),
        ("/x/shop/v2/service.py", "service", "v2/service"),
        ("/srv/releases/worker.py", "worker", None),
        ("/app/src/worker.py", "worker", None),
        ("/worker.py", "worker", None),
        ("/srv/shop/worker.py", "shop.worker", "shop.worker"),
        ("/srv/shop/worker.py", "a.b.worker", "a.b.worker"),
        ("/srv/shop/__init__.py", "shop", "shop"),
        (None, "shop.tasks", "shop.tasks"),
        (None, "orders", "orders"),
    ],
)
def test_the_name_follows_from_the_place(path: str | None, module: str, name: str | None) -> None:
    expected = ServiceName(module, vague=True) if name is None else ServiceName(name)
    assert service_name(path, module) == expected


def test_a_common_module_without_a_file_is_vague() -> None:
    assert service_name(None, "worker") == ServiceName("worker", vague=True)


@pytest.mark.parametrize("name", ["shop", "shop/worker", "shop.worker", "büro", "a@b", "x" * 200])
def test_names_that_may_be_given(name: str) -> None:
    assert checked_service_name(name, "--service-name") == name


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "a\x1b[0m", "x" * 201, "\udcff"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(UsageError, match="--service-name"):
        checked_service_name(name, "--service-name")


@pytest.mark.parametrize("name", ["worker", "shop/worker", "shop.worker", "a/b.worker"])
def test_the_stem_of_a_name(name: str) -> None:
    assert stem_of(name) == "worker"
