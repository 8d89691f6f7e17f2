"""The name that a loaded service has: given, of its package, or of its place."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from upnext import Worker, service
from upnext.running import service_of

SOURCE = "import upnext\nworker = upnext.Worker()\n@worker.task\ndef one_of_its_tasks(): ...\n"
URL = {"UPNEXT_REDIS_URL": "redis://127.0.0.1:1"}


def write(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE)
    return str(path)


@pytest.fixture(autouse=True)
def modules_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("worker", "shop_t9", "shop_t9.worker"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_two_files_named_worker_are_two_services(tmp_path: Path) -> None:
    shop = service.load(write(tmp_path / "shop" / "worker.py"))
    del sys.modules["worker"]
    mail = service.load(write(tmp_path / "mail" / "worker.py"))
    assert (shop.spec.name, mail.spec.name) == ("shop/worker", "mail/worker")
    assert shop.warnings == ()


def test_the_path_counts_as_it_was_given(tmp_path: Path) -> None:
    write(tmp_path / "shop" / "releases" / "7" / "worker.py")
    os.symlink(tmp_path / "shop" / "releases" / "7", tmp_path / "live")
    loaded = service.load(str(tmp_path / "live" / "worker.py"))
    assert loaded.spec.name == "live/worker"
    assert loaded.spec.file == str(tmp_path / "live" / "worker.py")


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shop" / "worker.py")
    monkeypatch.chdir(tmp_path / "shop")
    assert service.load("worker.py").spec.name == "shop/worker"


def test_a_module_of_a_package_has_its_dotted_name(tmp_path: Path) -> None:
    write(tmp_path / "shop_t9" / "__init__.py")
    assert service.load(write(tmp_path / "shop_t9" / "worker.py")).spec.name == "shop_t9.worker"


def test_a_given_name_goes_first(tmp_path: Path) -> None:
    assert service.load(write(tmp_path / "shop" / "worker.py"), name="orders").spec.name == "orders"


def test_a_name_that_many_have_is_told(tmp_path: Path) -> None:
    [line] = service.vague_name_warning(service.ServiceName("worker", vague=True), "/app/worker.py")
    assert "'worker'" in line
    assert "--service-name" in line


def test_only_keeps_what_the_module_declares(tmp_path: Path) -> None:
    path = tmp_path / "two_workers_t9.py"
    path.write_text(
        'import upnext\na, b = upnext.Worker("a"), upnext.Worker("b")\n@a.task\ndef of_a(): ...\n@b.task\ndef of_b(): ...\n'
    )
    spec = service.load(str(path), only=["a"]).spec
    assert [task.name for task in spec.served_tasks] == ["of_a"]
    assert [task.name for task in spec.declared_tasks] == ["of_a", "of_b"]


def named_worker() -> Worker:
    worker = Worker("orders")

    @worker.task
    def of_a_script() -> None: ...

    return worker


def test_run_is_named_by_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="/srv/shop/main.py", __spec__=None))
    assert service_of([named_worker()], URL, main=True).name == "shop/main"
    monkeypatch.setitem(
        sys.modules,
        "__main__",
        SimpleNamespace(__file__="/x/__main__.py", __spec__=SimpleNamespace(name="shop.cli.__main__")),
    )
    assert service_of([named_worker()], URL, main=True).name == "shop.cli"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    assert service_of([named_worker()], URL, main=True).name == "orders"
    assert service_of([named_worker()], {**URL, "UPNEXT_SERVICE": "fulfilment"}, main=True).name == "fulfilment"


def test_start_is_named_by_the_file_that_declares() -> None:
    assert service_of([named_worker()], URL).name == __name__
