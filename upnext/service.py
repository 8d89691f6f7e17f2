"""Loading a service: a Python file or module whose Workers and Apis are to be run.

A file inside a package (a folder with `__init__.py`) is imported as `pkg.mod`, any other by its stem with its folder first on sys.path;
never as
`__main__`. The service's own module is always compiled from its source: a .pyc of the same second could be of the code before the last
edit.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, TypeVar

from upnext.address import Address
from upnext.api import Api
from upnext.core.binding import Signature
from upnext.core.naming import ServiceName, service_name
from upnext.core.spec import ApiSpec, ServiceSpec, WorkerSpec
from upnext.errors import ConflictError, ServiceError, UpNextError
from upnext.worker import Worker

_T = TypeVar("_T")
_LOADING = (__file__, importlib.__file__, "<frozen importlib")
"""Files, or how they begin, of the frames between the start of an import and the code that is imported."""
LOADER = "upnext.service:load"
"""What pool processes import a service with, by name: the engine doesn't know the SDK."""


@dataclass(frozen=True, slots=True)
class Service:
    """A loaded service: `spec` is what to run, `workers` the objects it was made of, `module` where they were found.

    `warnings` are lines to show at start.
    """

    spec: ServiceSpec
    workers: tuple[Worker, ...]
    module: ModuleType
    warnings: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Does now what the first job of each task would do: looks up annotations, makes converters. Before forking: children share it."""
        for worker in self.spec.workers:
            for task in worker.tasks.values():
                if isinstance(task.arguments, Signature):
                    task.arguments.prepare()


def load(path_or_module: str, *, only: Sequence[str] = (), name: str | None = None) -> Service:
    """Imports a service (`service.py`, `folder/service.py` or `pkg.mod`), collects its Workers and Apis; `only` keeps those of these names.

    `name` is the service's; None: it follows from where the file is (`upnext.core.naming`).

    Raises ServiceError with one clear line: no such file or module, not Python, an error at import (its `__cause__` is that error),
    neither Worker nor Api, a name of `only` that isn't there, two Apis of one name; ConflictError for two tasks of one name.
    """
    path = _as_path(path_or_module)
    if path is not None:
        module, source = _import_file(path), str(path)
    else:
        module, source = _import_name(path_or_module), path_or_module
    file = _as_given(path_or_module) if path is not None else getattr(module, "__file__", None)
    named = ServiceName(name) if name else service_name(file, module.__name__)
    workers, apis = _found(module, Worker), apis_apart(_found(module, Api))
    if not workers and not apis:
        raise ServiceError(
            f"{path_or_module}: has no Worker; a service makes one at module level: worker = upnext.Worker()"
        )
    declared = specs = named_apart(workers)
    if only:
        names = [spec.name for spec in (*specs, *apis)]
        for unknown in (one for one in only if one not in names):
            kinds = "worker or api" if apis else "worker"
            raise ServiceError(f"{path_or_module}: has no {kinds} {unknown!r}; there are: {', '.join(names)}")
        workers = tuple(worker for worker, spec in zip(workers, specs, strict=True) if spec.name in only)
        specs = tuple(spec for spec in specs if spec.name in only)
        apis = tuple(api for api in apis if api.name in only)
    try:
        check_task_names(specs)
    except ConflictError as error:
        raise ConflictError(f"{path_or_module}: {error}") from None
    spec = ServiceSpec(
        name=named.name, workers=specs, path=source, loader=LOADER, file=file, declared=declared, apis=apis
    )
    return Service(spec, workers, module, (*vague_name_warning(named, file), *unresolved(spec)))


def unresolved(spec: ServiceSpec) -> list[str]:
    """A line for each annotation that can't be looked up. Raises ServiceError for one whose values would not come back from JSON."""
    signatures = [task.arguments for task in spec.served_tasks if isinstance(task.arguments, Signature)]
    return [line for signature in signatures for line in signature.check()]


def vague_name_warning(named: ServiceName, file: str | None) -> tuple[str, ...]:
    """A line for a service that has only a common name."""
    if not named.vague:
        return ()
    where = f"{file}: " if file else ""
    cure = "name it with --service-name (UPNEXT_SERVICE)"
    return (
        f"{where}the service is named {named.name!r}, as others may be, which would then share its crons and tasks; {cure}",
    )


def named_apart(workers: Sequence[Worker]) -> tuple[WorkerSpec, ...]:
    """The workers' specs; those without a name of their own are numbered apart. Raises ConflictError for two of one given name."""
    taken = [worker.name for worker in workers if not worker.auto_named]
    for name in {name for name in taken if taken.count(name) > 1}:
        raise ConflictError(f"two workers are named {name!r}")
    specs: list[WorkerSpec] = []
    for worker in workers:
        spec = worker.spec()
        if worker.auto_named:
            name, number = spec.name, 1
            while name in taken:
                number += 1
                name = f"{spec.name}-{number}"
            taken.append(name)
            spec = replace(spec, name=name)
        specs.append(spec)
    return tuple(specs)


def check_task_names(specs: Sequence[WorkerSpec]) -> None:
    """Raises ConflictError when two workers have a task of one name."""
    owners: dict[str, str] = {}
    for spec in specs:
        for task in spec.tasks:
            other = owners.setdefault(task, spec.name)
            if other != spec.name:
                raise ConflictError(f"workers {other!r} and {spec.name!r} both have a task named {task!r}")


def apis_apart(apis: Sequence[Api]) -> tuple[ApiSpec, ...]:
    """The Apis' specs. Raises ConflictError for two of one name."""
    names: set[str] = set()
    for api in apis:
        if api.name in names:
            raise ConflictError(f"two apis are named {api.name!r}")
        names.add(api.name)
    return tuple(api.spec() for api in apis)


def apis_placed(apis: Sequence[ApiSpec], given: Mapping[str, Address]) -> tuple[ApiSpec, ...]:
    """The Apis with the addresses that were given for some of them. Raises ConflictError for two on one address."""
    placed = tuple(replace(api, address=given.get(api.name, api.address)) for api in apis)
    owners: dict[Address, str] = {}
    for api in placed:
        is_fixed = api.address.port or api.address.path
        other = owners.setdefault(api.address, api.name) if is_fixed else api.name
        if other != api.name:
            raise ConflictError(f"apis {other!r} and {api.name!r} both listen on {api.address}")
    return placed


def _found(module: ModuleType, kind: type[_T]) -> tuple[_T, ...]:
    """Each of these among the module's globals, once, in the order of definition."""
    return tuple({id(value): value for value in vars(module).values() if isinstance(value, kind)}.values())


# -- finding ------------------------------------------------------------------------------------------------------------


def _as_path(given: str) -> Path | None:
    """The file that is meant; None for a module's name."""
    path = Path(given)
    if path.is_dir():
        inside = path / "__init__.py"
        if inside.is_file():
            return inside.resolve()
        raise ServiceError(f"{given}: is a folder; name the service's file in it")
    looks_like_file = path.suffix == ".py" or os.sep in given
    if path.is_file():
        if path.suffix != ".py":
            raise ServiceError(f"{given}: is not a Python file (its name doesn't end in .py)")
        return path.resolve()
    if looks_like_file:
        raise ServiceError(f"{given}: {'is not a file' if path.exists() else 'there is no such file'}")
    if not all(part.isidentifier() for part in given.split(".")):
        raise ServiceError(f"{given!r}: is neither a file nor the name of a module")
    return None


def _as_given(given: str) -> str:
    """The absolute path of a service's file, symlinks not resolved: `current/worker.py` is the same service in every release."""
    path = Path(os.path.abspath(given))
    return str(path / "__init__.py" if path.is_dir() else path)


def _import_file(path: Path) -> ModuleType:
    root, parts = path.parent, [] if path.stem == "__init__" else [path.stem.replace(".", "_")]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    _first_on_path(str(root))
    name = ".".join(parts)
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == path:
            return known
        where = getattr(known, "__file__", None) or "built into Python"
        raise ServiceError(f"{path}: another module is named {name!r} already ({where}); rename the file")
    parent = name.rpartition(".")[0]
    if parent:
        _guarded(str(path), lambda: importlib.import_module(parent))
    is_package = path.stem == "__init__"
    spec = importlib.util.spec_from_file_location(
        name,
        path,
        loader=_FromSource(name, str(path)),
        submodule_search_locations=[str(path.parent)] if is_package else None,
    )
    return _execute(spec, str(path))


def _import_name(name: str) -> ModuleType:
    _first_on_path(os.getcwd())
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = _guarded(name, lambda: _find(name))
    if spec is None:
        raise ServiceError(f"{name}: there is no such module, and no file of that name")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _FromSource(spec.loader.name, spec.loader.path)
    return _execute(spec, name)


def _find(name: str) -> ModuleSpec | None:
    """Imports the packages around it, as find_spec does, whose own errors are not a missing module."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _first_on_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


# -- importing ----------------------------------------------------------------------------------------------------------


class _FromSource(SourceFileLoader):
    """Never reads or writes a .pyc."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _execute(spec: ModuleSpec | None, given: str) -> ModuleType:
    if spec is None or spec.loader is None:
        raise ServiceError(f"{given}: can't be imported")
    loader = spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        _guarded(given, lambda: loader.exec_module(module))
    except ServiceError:
        sys.modules.pop(spec.name, None)
        raise
    parent, _, last = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return sys.modules[spec.name]


def _guarded(given: str, do: Any) -> Any:
    try:
        return do()
    except UpNextError as error:  # a declaration that is refused: its own line says all
        kind = type(error) if isinstance(error, ServiceError) else ServiceError
        raise kind(f"{_place(error) or given}: {error}") from error
    except (Exception, SystemExit) as error:  # the service's own code may raise anything
        line = traceback.format_exception_only(error)[-1].strip()
        where = given
        if isinstance(error, SyntaxError) and error.filename is not None:
            where = f"{error.filename}:{error.lineno}"
        error.__traceback__ = _from_service_on(error)
        raise ServiceError(f"{where}: {line}") from error


def _from_service_on(error: BaseException) -> TracebackType | None:
    """Its frames without those before the service's own code, which are ours and the import system's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_LOADING):
        frames = frames.tb_next
    return frames


def _place(error: BaseException) -> str | None:
    """FILE:LINE of the declaration that raised: the last frame that isn't ours."""
    ours = os.path.dirname(__file__) + os.sep
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<"))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
