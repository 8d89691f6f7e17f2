"""The package itself: what importing it costs, and what it names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import upnext
from upnext import errors

ROOT = Path(__file__).parents[3]
HEAVY = ("redis", "hiredis", "uvloop", "pydantic", "croniter", "orjson", "asyncio", "upnext.engine", "upnext.core")

NAMES_TO_KEEP = [
    "Worker",
    "Api",
    "Context",
    "ArtifactType",
    "FailureReason",
    "JobStatus",
    "MissedRunPolicy",
    "SyncExecutor",
    "Future",
    "TaskResult",
    "TaskExecutionError",
    "TaskTimeoutError",
    "QueueError",
    "DuplicateJobError",
    "JobNotFoundError",
    "create_artifact",
    "create_artifact_sync",
    "get_current_context",
    "gather",
    "map_tasks",
    "first_completed",
    "submit_many",
    "submit_many_sync",
    "run",
    "aclose",
    "Retry",
    "SubmitUncertain",
    "__version__",
]


def loaded_after(code: str) -> list[str]:
    probe = f"{code}\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import upnext; upnext.__version__; dir(upnext)") == []


def test_an_error_type_costs_no_engine() -> None:
    assert loaded_after("from upnext import ServiceError, QueueError") == []


def test_declaring_tasks_needs_no_redis_client_and_no_croniter() -> None:
    loaded = loaded_after("import upnext\nw = upnext.Worker()\n@w.task\ndef f(a: int): ...")
    assert not {"redis", "uvloop", "pydantic", "croniter"} & set(loaded)


@pytest.mark.parametrize("name", NAMES_TO_KEEP)
def test_every_promised_name_is_there(name: str) -> None:
    assert getattr(upnext, name) is not None
    assert name in upnext.__all__
    assert name in dir(upnext)


def test_every_error_is_exported_but_those_of_the_daemons_socket() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and "Daemon" not in name and name != "ControlError"
    }
    assert kinds <= set(upnext.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        upnext.Wroker  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert upnext.__version__ == project["version"]


def test_later_names_say_so_in_one_line() -> None:
    with pytest.raises(upnext.UsageError, match="artifacts are not available yet"):
        upnext.create_artifact_sync("a", b"", upnext.ArtifactType.PNG)


async def test_create_artifact_says_so_too() -> None:
    with pytest.raises(upnext.UsageError, match="artifacts are not available yet"):
        await upnext.create_artifact("a", b"")
