"""UpNext: background jobs for Python, the queue and the process supervisor built as one thing.

    import upnext

    worker = upnext.Worker("orders", concurrency=10)

    @worker.task(retries=3, timeout=30.0)
    async def process_order(order_id: str, items: list[str]) -> dict[str, int]: ...

    future = await process_order.submit("o-1", ["tea"])
    value = await future

Everything here is imported when it is first used (PEP 562): the supervisor and the command line import this package
and must not pay for Redis, event loops or validation libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from upnext.access import aclose as aclose
    from upnext.api import Api as Api
    from upnext.before_submitting import NewJob as NewJob
    from upnext.before_submitting import before_submit as before_submit
    from upnext.by_name import send as send
    from upnext.by_name import send_sync as send_sync
    from upnext.by_name import submit as submit
    from upnext.by_name import submit_sync as submit_sync
    from upnext.context import Context as Context
    from upnext.context import get_current_context as get_current_context
    from upnext.core.outcome import FailureReason as FailureReason
    from upnext.core.outcome import JobStatus as JobStatus
    from upnext.core.spec import MissedRunPolicy as MissedRunPolicy
    from upnext.core.spec import RateLimit as RateLimit
    from upnext.core.spec import SyncExecutor as SyncExecutor
    from upnext.engine.secrets import Secret as Secret
    from upnext.engine.secrets import secret as secret
    from upnext.errors import BrokerFullError as BrokerFullError
    from upnext.errors import BrokerInUseError as BrokerInUseError
    from upnext.errors import BrokerRefusedError as BrokerRefusedError
    from upnext.errors import BrokerUnavailableError as BrokerUnavailableError
    from upnext.errors import ConflictError as ConflictError
    from upnext.errors import DuplicateJobError as DuplicateJobError
    from upnext.errors import EncodingError as EncodingError
    from upnext.errors import InvalidArgumentsError as InvalidArgumentsError
    from upnext.errors import JobError as JobError
    from upnext.errors import JobNotFoundError as JobNotFoundError
    from upnext.errors import LifespanError as LifespanError
    from upnext.errors import ListenError as ListenError
    from upnext.errors import NoBrokerError as NoBrokerError
    from upnext.errors import PayloadTooLargeError as PayloadTooLargeError
    from upnext.errors import QueueError as QueueError
    from upnext.errors import Retry as Retry
    from upnext.errors import SecretError as SecretError
    from upnext.errors import ServiceError as ServiceError
    from upnext.errors import SubmitUncertain as SubmitUncertain
    from upnext.errors import TaskExecutionError as TaskExecutionError
    from upnext.errors import TaskTimeoutError as TaskTimeoutError
    from upnext.errors import UpNextError as UpNextError
    from upnext.errors import UsageError as UsageError
    from upnext.event import Event as Event
    from upnext.event import EventHandler as EventHandler
    from upnext.future import Future as Future
    from upnext.future import Progress as Progress
    from upnext.future import TaskResult as TaskResult
    from upnext.later import ArtifactType as ArtifactType
    from upnext.later import create_artifact as create_artifact
    from upnext.later import create_artifact_sync as create_artifact_sync
    from upnext.lookup import Job as Job
    from upnext.lookup import job as job
    from upnext.lookup import job_sync as job_sync
    from upnext.lookup import jobs as jobs
    from upnext.lookup import jobs_sync as jobs_sync
    from upnext.parallel import first_completed as first_completed
    from upnext.parallel import gather as gather
    from upnext.parallel import map_tasks as map_tasks
    from upnext.parallel import submit_many as submit_many
    from upnext.parallel import submit_many_sync as submit_many_sync
    from upnext.running import run as run
    from upnext.scheduling import Schedule as Schedule
    from upnext.scheduling import pause_schedule as pause_schedule
    from upnext.scheduling import pause_schedule_sync as pause_schedule_sync
    from upnext.scheduling import remove_schedule as remove_schedule
    from upnext.scheduling import remove_schedule_sync as remove_schedule_sync
    from upnext.scheduling import resume_schedule as resume_schedule
    from upnext.scheduling import resume_schedule_sync as resume_schedule_sync
    from upnext.scheduling import schedule as schedule
    from upnext.scheduling import schedule_sync as schedule_sync
    from upnext.scheduling import schedules as schedules
    from upnext.scheduling import schedules_sync as schedules_sync
    from upnext.task import Submitter as Submitter
    from upnext.task import Task as Task
    from upnext.worker import Worker as Worker

_HOMES = {
    "upnext.access": ("aclose",),
    "upnext.api": ("Api",),
    "upnext.before_submitting": ("NewJob", "before_submit"),
    "upnext.by_name": ("send", "send_sync", "submit", "submit_sync"),
    "upnext.context": ("Context", "get_current_context"),
    "upnext.core.outcome": ("FailureReason", "JobStatus"),
    "upnext.core.spec": ("MissedRunPolicy", "RateLimit", "SyncExecutor"),
    "upnext.engine.secrets": ("Secret", "secret"),
    "upnext.errors": (
        "BrokerFullError",
        "BrokerInUseError",
        "BrokerRefusedError",
        "BrokerUnavailableError",
        "ConflictError",
        "DuplicateJobError",
        "EncodingError",
        "InvalidArgumentsError",
        "JobError",
        "JobNotFoundError",
        "LifespanError",
        "ListenError",
        "NoBrokerError",
        "PayloadTooLargeError",
        "QueueError",
        "Retry",
        "SecretError",
        "ServiceError",
        "SubmitUncertain",
        "TaskExecutionError",
        "TaskTimeoutError",
        "UpNextError",
        "UsageError",
    ),
    "upnext.event": ("Event", "EventHandler"),
    "upnext.future": ("Future", "Progress", "TaskResult"),
    "upnext.later": ("ArtifactType", "create_artifact", "create_artifact_sync"),
    "upnext.lookup": ("Job", "job", "job_sync", "jobs", "jobs_sync"),
    "upnext.parallel": ("first_completed", "gather", "map_tasks", "submit_many", "submit_many_sync"),
    "upnext.running": ("run",),
    "upnext.scheduling": (
        "Schedule",
        "pause_schedule",
        "pause_schedule_sync",
        "remove_schedule",
        "remove_schedule_sync",
        "resume_schedule",
        "resume_schedule_sync",
        "schedule",
        "schedule_sync",
        "schedules",
        "schedules_sync",
    ),
    "upnext.task": ("Submitter", "Task"),
    "upnext.worker": ("Worker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604 - names are strings; the table above is the one list
    "__version__",
    *_HOME_OF,  # pyright: ignore[reportUnsupportedDunderAll]
]


if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'upnext' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
