"""The house rules that a program can check. CONTRIBUTING.md has them all, with their reasons."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("upnext", "upnextd")
NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}
TEXT = {".py", ".lua", ".md", ".toml", ".service", ".env", ".yml", ".yaml", ".txt", ".json", ".cfg", ".sh", ""}

LUA = sorted((ROOT / "upnext" / "engine" / "lua").glob("*.lua"))
LUA_HEADER = ("KEYS", "ARGV", "Returns", "Errors")

# One word per thing: these say nothing, and so hide what a thing is.
VAGUE = re.compile(r"(?i)(^|_)(managers?|helpers?|utils?)(_|$)|Manager|Helper|Util(s|ity)?(?=[A-Z_]|$)")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(root|work|Users|home/(?!you\b)\w+|opt/(?!upnext\b)\w+)/\w")
KEY = re.compile(r"upnext:\{")


@cache
def tree() -> tuple[Path, ...]:
    """Files that belong to the project."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.name in NOT_OURS or path.name.endswith((".egg-info", "_cache")) or path.name == ".hypothesis":
                continue
            if path.is_dir():
                yield from walk(path)
            elif path.suffix in TEXT:
                yield path

    return tuple(walk(ROOT))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sources(*folders: str) -> list[Path]:
    return [path for path in tree() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def defined_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("script", LUA, ids=lambda path: path.stem)
class TestLua:
    def test_header_names_what_goes_in_and_out(self, script: Path) -> None:
        lines = script.read_text().splitlines()
        header = "\n".join(line for line in lines[:60] if line.startswith(("--", "#!")))
        missing = [word for word in LUA_HEADER if not re.search(rf"\b{word}\b", header, re.IGNORECASE)]
        assert not missing, f"{name(script)}: its header comment doesn't say its {', '.join(missing)}"

    def test_has_an_integration_file_of_its_own(self, script: Path) -> None:
        wanted = f"test_{script.stem}.py"
        assert list((ROOT / "tests" / "integration").rglob(wanted)), f"{name(script)}: no tests/integration/**/{wanted}"


def test_keys_are_spelled_only_in_the_map_of_keys() -> None:
    spelled = [
        f"{name(path)}:{number}"
        for path in tree()
        if path.relative_to(ROOT).parts[0] in PACKAGES and path.suffix in {".py", ".lua"} and path.name != "keys.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if KEY.search(line)
    ]
    assert not spelled


def test_no_path_of_a_private_machine() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in tree()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_no_vague_names() -> None:
    files = [name(path) for path in sources(*PACKAGES, "tests", "scripts", "examples") if VAGUE.search(path.stem)]
    names = [
        f"{name(path)}:{line}: {word}"
        for path in sources(*PACKAGES, "tests", "scripts", "examples")
        for line, word in defined_names(parsed(path))
        if VAGUE.search(word) and path != Path(__file__)
    ]
    assert not files + names


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name(path)
        for path in sources(*PACKAGES, "tests", "scripts", "examples")
        if parsed(path).body and not ast.get_docstring(parsed(path))
    ]
    assert not silent


def test_a_blind_except_gives_its_reason() -> None:
    without = [
        f"{name(path)}:{number}"
        for path in sources(*PACKAGES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"noqa:.*\b(BLE001|S110|S112)\b", line) and not re.search(r"noqa:[\sA-Z0-9,]+ - \w", line)
    ]
    assert not without


def own_calls(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """Calls in the test's own body, not in the functions that it defines (those are tasks, and may sleep)."""
    todo: list[ast.AST] = list(test.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            yield node
        todo.extend(ast.iter_child_nodes(node))


def test_tests_wait_for_something_and_not_for_a_time() -> None:
    asleep = [
        f"{name(path)}:{call.lineno}"
        for path in sources("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for call in own_calls(node)
        if ast.unparse(call.func) in {"time.sleep", "asyncio.sleep", "sleep"}
        and not (call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)
    ]
    assert not asleep


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{name(page)}: {target}"
        for page in tree()
        if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_map_in_the_architecture_tells_the_truth() -> None:
    """Every file that ARCHITECTURE.md names is there, from the root or from a package."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    places = (ROOT, ROOT / "upnext", ROOT / "upnextd", ROOT / "upnext" / "engine")
    paths = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|lua|md|toml))`", text)
    missing = {path for path in paths if not any((place / path).exists() for place in places)}
    files = {path.name for path in sources(*PACKAGES)}
    missing |= set(re.findall(r"\b([a-z_]+\.py)\b", text)) - files
    assert not missing


def test_the_architecture_names_every_module_or_its_folder() -> None:
    where = (ROOT / "ARCHITECTURE.md").read_text().partition("## Where things are")[2]
    for package in PACKAGES:
        block = where.partition(f"\n{package}/\n")[2]
        block = re.split(r"^\S", block, maxsplit=1, flags=re.MULTILINE)[0]
        for folder, depth in ((ROOT / package, 2), (ROOT / package / "engine", 4)):
            if not folder.is_dir():
                continue
            lines = [line for line in block.splitlines() if re.match(rf" {{{depth}}}\S", line)]
            named = {word for line in lines for word in re.findall(r"[\w]+(?:\.py|/(?=\s))", line)}
            there = {path.name for path in folder.glob("*.py")} | {
                f"{path.parent.name}/" for path in folder.glob("*/__init__.py")
            }
            there |= {"lua/"} if folder.name == "engine" else set()
            assert {entry for entry in there - named if entry != "__init__.py"} == set(), folder
            assert {entry for entry in named if not (folder / entry).exists()} == set(), folder
