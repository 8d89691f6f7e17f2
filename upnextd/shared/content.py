"""What a template has loaded of its service's tree: a digest of the source files, each read right before it is imported.

Two templates of one generation must have loaded the same. Files of installed packages don't count, nor what a service opens by itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Recorder(MetaPathFinder):
    """Finds nothing itself: it sees each import before the finders do, and hashes the file that they will find."""

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._hashes: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.has_location and spec.origin is not None:
            self.add(spec.origin)
        return None

    def add(self, file: str) -> None:
        """Hash a file of the tree, the first time that it is named."""
        inner = os.path.relpath(os.path.realpath(file), self._root)
        parts = inner.split(os.sep)
        if inner in self._hashes or parts[0] == os.pardir or not _INSTALLED.isdisjoint(parts):
            return
        try:
            with open(file, "rb") as opened:
                self._hashes[inner] = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            # The import says what is wrong with it.
            return

    def digest(self) -> str:
        """Of all names and contents so far, wherever the tree is."""
        lines = "\n".join(f"{inner} {content}" for inner, content in sorted(self._hashes.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def recording(service: str) -> Generator[Recorder]:
    """Record what is imported inside the block; `service` is a file or a module's name."""
    file = _file_of(service)
    recorder = Recorder(_root_of(file))
    if file:
        recorder.add(file)
    sys.meta_path.insert(0, recorder)
    try:
        yield recorder
    finally:
        sys.meta_path.remove(recorder)


def _file_of(service: str) -> str:
    """The file that a service begins with; "" when there is none, which its import will say."""
    if os.path.isdir(service):
        return os.path.join(service, "__init__.py")
    if os.path.isfile(service):
        return service
    top = service.partition(".")[0]
    spec = PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if spec is None:
        return ""
    return spec.origin or next((os.path.join(one, "__init__.py") for one in spec.submodule_search_locations or ()), "")


def _root_of(file: str) -> str:
    """The folder from which its modules are imported: the first that is not a package."""
    folder = os.path.dirname(os.path.realpath(file)) if file else os.getcwd()
    while os.path.isfile(os.path.join(folder, "__init__.py")) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder
