"""The digest of what was imported of a service's tree."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from upnextd.shared.content import recording


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    (tmp_path / "service_of_content.py").write_text("import helper_of_content\n")
    (tmp_path / "helper_of_content.py").write_text("VALUE = 1\n")
    (tmp_path / "unused_of_content.py").write_text("VALUE = 1\n")
    packages = tmp_path / "venv" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_of_content.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(packages), *sys.path])
    yield tmp_path
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.endswith("_of_content")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def digest(service: Path, *names: str) -> str:
    _forget()
    with recording(str(service)) as recorder:
        for name in names or ("service_of_content",):
            importlib.import_module(name)
    assert recorder not in sys.meta_path
    return recorder.digest()


def test_what_is_imported_counts_and_nothing_else(tree: Path) -> None:
    service = tree / "service_of_content.py"
    before = digest(service)
    (tree / "unused_of_content.py").write_text("VALUE = 2\n")
    assert digest(service) == before
    (tree / "helper_of_content.py").write_text("VALUE = 2\n")
    changed = digest(service)
    assert changed != before
    (tree / "helper_of_content.py").write_text("VALUE = 1\n")
    assert digest(service) == before


def test_the_service_s_own_file_counts(tree: Path) -> None:
    service = tree / "service_of_content.py"
    before = digest(service)
    service.write_text("import helper_of_content  # changed\n")
    assert digest(service) != before


def test_installed_packages_do_not_count(tree: Path) -> None:
    service = tree / "service_of_content.py"
    names = ("service_of_content", "installed_of_content")
    before = digest(service, *names)
    (tree / "venv" / "site-packages" / "installed_of_content.py").write_text("VALUE = 2\n")
    assert digest(service, *names) == before


def test_the_same_tree_elsewhere_is_the_same(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = digest(tree / "service_of_content.py")
    other = tmp_path_factory.mktemp("release")
    for name in ("service_of_content.py", "helper_of_content.py"):
        (other / name).write_bytes((tree / name).read_bytes())
    sys.path[0] = str(other)
    assert digest(other / "service_of_content.py") == before


def test_a_service_by_its_module_s_name(tree: Path) -> None:
    package = tree / "package_of_content"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "jobs.py").write_text("import helper_of_content\n")
    with recording("package_of_content.jobs") as recorder:
        importlib.import_module("package_of_content.jobs")
    before = recorder.digest()
    for name in [name for name in sys.modules if name.startswith("package_of_content")]:
        del sys.modules[name]
    _forget()
    (package / "jobs.py").write_text("import helper_of_content  # changed\n")
    with recording("package_of_content.jobs") as recorder:
        importlib.import_module("package_of_content.jobs")
    assert recorder.digest() != before
