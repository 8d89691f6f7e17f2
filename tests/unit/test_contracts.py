"""The import contracts of pyproject.toml: an import that breaks one is reported, in whichever module it is planted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import grimp
import pytest
from importlinter.application import use_cases
from importlinter.configuration import configure
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.domain.contract import Contract

ROOT = Path(__file__).parents[2]
FORBIDDEN = "The supervisor's process knows no user code, no Redis, no threads"

KINDS = {"layers": LayersContract, "forbidden": ForbiddenContract, "acyclic_siblings": AcyclicSiblingsContract}
SUPERVISORS_PROCESS = ("upnextd.supervisor", "upnextd.control", "upnextd.rules")
ABOVE = {
    "upnextd.shared": "upnextd.rules.plan",
    "upnextd.rules": "upnextd.supervisor.supervisor",
    "upnextd.metrics": "upnextd.supervisor.supervisor",
    "upnextd.broker": "upnextd.settings",
    "upnextd.forked": "upnextd.supervisor.children",
    "upnextd.supervisor": "upnextd.control.commands",
    "upnextd.control": "upnextd.main",
    "upnext.engine.redis": "upnext.engine.calls.lease",
    "upnext.engine.calls": "upnext.engine.client.queue_client",
    "upnext.engine.views": "upnext.engine.worker.fetcher",
    "upnext.engine.client": "upnext.engine.worker.fetcher",
    "upnext.engine.worker": "upnext.engine.scheduler.scheduler",
    "upnext.engine.scheduler": "upnext.engine.local",
    "upnext.core": "upnext.engine.calls.lease",
}
"""A room -> a module above it."""


def modules(*rooms: str) -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), path.relative_to(ROOT))
        for room in rooms
        for path in sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
        if path.name != "__init__.py"
    ]


def plain(target: str) -> str:
    return f"import {target}\n"


def lazy(target: str) -> str:
    return f"def _planted() -> None:\n    import {target}\n"


def annotation(target: str) -> str:
    return f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {target}\n"


def copied(tree: Path) -> Path:
    for package in ("upnext", "upnextd"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def lint(tree: Path) -> str:
    shutil.copy(ROOT / "pyproject.toml", tree)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(
        command, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.stdout


def imports_of(tree: Path) -> dict[str, list[str]]:
    """What the linter sees: module -> what it imports, of a tree in a process of its own."""
    program = (
        "import grimp, json; graph = grimp.build_graph('upnext', 'upnextd', include_external_packages=True, cache_dir=None); "
        "print(json.dumps({module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env={"PYTHONPATH": str(tree)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@cache
def contracts() -> list[Contract]:
    configure()
    options = use_cases.read_user_options(config_filename=str(ROOT / "pyproject.toml"))
    return [KINDS[each["type"]](each["name"], options.session_options, each) for each in options.contracts_options]


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("upnext", "upnextd", include_external_packages=True, cache_dir=None)


def broken_by(module: str, target: str) -> list[str]:
    """The contracts that this one import more breaks."""
    changed = deepcopy(graph())
    changed.add_import(importer=module, imported=target)
    return [each.name for each in contracts() if not each.check(deepcopy(changed), verbose=False).kept]


def test_the_tree_as_it_is_keeps_them(tmp_path: Path) -> None:
    assert "0 broken" in lint(copied(tmp_path))


@pytest.mark.parametrize("write", [plain, lazy, annotation])
def test_the_linter_sees_an_import_wherever_it_stands(write: Callable[[str], str], tmp_path: Path) -> None:
    tree = copied(tmp_path)
    planted = modules("upnext", "upnextd")
    for _, path in planted:
        with (tree / path).open("a") as file:
            file.write(write("redis") + write("threading") + write("upnextd.main"))
    seen = imports_of(tree)
    assert [m for m, _ in planted if not {"redis", "threading", "upnextd.main"} - {m} <= set(seen[m])] == []
    report = lint(tree)
    assert "The supervisor's process knows no user code, no Redis, no threads BROKEN" in report


@pytest.mark.parametrize("target", ["redis", "threading", "upnext.engine.local", "upnext.task"])
@pytest.mark.parametrize("room", SUPERVISORS_PROCESS)
def test_no_module_of_the_supervisors_process_may_import(room: str, target: str) -> None:
    allowed = [module for module, _ in modules(room) if FORBIDDEN not in broken_by(module, target)]
    assert allowed == []


@pytest.mark.parametrize("room", ABOVE)
def test_no_module_may_import_what_is_above_its_room(room: str) -> None:
    allowed = [module for module, _ in modules(room) if not broken_by(module, ABOVE[room])]
    assert allowed == []
