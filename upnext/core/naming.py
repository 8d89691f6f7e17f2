"""The name of a service: what its crons, handlers and tasks belong to in Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass

from upnext.errors import UsageError

COMMON_STEMS = frozenset({"service", "worker", "workers", "tasks", "jobs", "main", "app"})
"""File names that say nothing about the service: the name of a folder goes before them."""
COMMON_FOLDERS = frozenset({"app", "src", "code", "srv", "opt", "current", "release", "releases"})
"""Folder names that say nothing about the service either: the folder above is taken."""
_RELEASES = "releases"
_GIVEN = re.compile(r"[\w][\w./@+-]{0,199}\Z")


@dataclass(frozen=True, slots=True)
class ServiceName:
    """`vague`: it is a common stem alone, which a second service is likely to have, too."""

    name: str
    vague: bool = False


def checked_service_name(name: str, source: str) -> str:
    """Return a name that the user gave. Raises UsageError, which names `source`, for one that can't be used."""
    if _GIVEN.match(name) is None:
        raise UsageError(
            f"{source} {name!r}: up to 200 letters, digits and any of _ . / @ + -, the first a letter, digit or _"
        )
    return name


def service_name(path: str | None, module: str | None) -> ServiceName:
    """Derive the name from the absolute path of the service's file, as given, and the module's dotted name.

    A module in a package has its dotted name; any other file its stem, with a folder before it where the stem is a common one. One of
    the two must be known.
    """
    if module is not None and "." in module:
        return ServiceName(module)
    if path is None:
        stem = module or ""
        return ServiceName(stem, stem in COMMON_STEMS)
    *folders, file = [part for part in path.split("/") if part]
    stem = file.removesuffix(".py")
    if stem == "__init__" and module:
        stem = module
    if stem not in COMMON_STEMS:
        return ServiceName(stem)
    folder = _telling(folders)
    return ServiceName(stem, vague=True) if folder is None else ServiceName(f"{folder}/{stem}")


def stem_of(name: str) -> str:
    """The file's stem that a service's name ends with: `shop/worker` and `shop.worker` -> `worker`."""
    return re.split(r"[/.]", name)[-1]


def _telling(folders: list[str]) -> str | None:
    """The nearest folder whose name tells something about the service."""
    for at in range(len(folders) - 1, -1, -1):
        name = folders[at]
        below_releases = at > 0 and folders[at - 1] == _RELEASES
        if name not in COMMON_FOLDERS and not below_releases and not name[0].isdigit():
            return name
    return None
