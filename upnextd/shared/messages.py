"""The inner protocol, supervisor ↔ template ↔ child: one frozen dataclass an operation, as one JSON object on the wire.

The two sides can be of different versions: after an upgrade in place, or when the package is replaced under a running daemon. So each side
sends PROTOCOL with its first message: the supervisor with the order that a template (or an exec'd child) is started with, the template with
`Imported`. `ImportFailed` and the field `protocol` have this form in every version, so that a refusal can be read.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson

PROTOCOL = 4
"""To be raised with every change of a message here that the version before can't read, or reads as something else."""


UPGRADE_FIRST = "upgrade the daemon first, in place (SIGUSR2), or restart it"


class MessageError(ValueError):
    """What arrived is not a message of this protocol."""


class ProtocolError(MessageError):
    """The other side speaks another version of the protocol."""

    def __init__(self, theirs: object) -> None:
        super().__init__(
            "the upnextd that is installed now is another version than this daemon"
            f" (inner protocol {theirs} meets {PROTOCOL}): {UPGRADE_FIRST}"
        )


# -- what a process is started with --


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOrder:
    """Supervisor → template, as an argument: import this service, and fork children of this generation."""

    supervisor_pid: int
    generation: int
    service: str
    name: str
    only: tuple[str, ...]
    preload: bool = True
    """Stay to fork children; else end once the service has been described."""
    directory: str = "."
    """The working directory that the service is imported in."""
    api_listen: tuple[str, ...] = ()
    """`NAME=ADDRESS` for Apis that listen elsewhere than they declare."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Supervisor → template, with the child's descriptors: fork a child that is this."""

    token: int
    """Names the child in answers until its pid is known; no other child of this daemon ever has it."""
    slot: str
    role: str
    quarantine: bool
    generation: int
    incarnation: int
    name: str
    redis_url: str | None
    embedded_url: str | None
    namespace: str
    daemon_id: str
    since_ms: int
    since_s: float
    generation_ms: int
    provisional: bool
    """Of a reload that isn't committed."""
    boot_timeout_s: float
    metered: bool
    stop_timeout_s: float
    paused: bool
    api: str = ""
    """The Api that it serves, of a child with that role; its listener is one more descriptor."""
    routes: tuple[str, ...] = ()
    """Those of the Api."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Worker of the service, as far as it decides a child's page."""

    name: str
    concurrency: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOrder:
    """Supervisor → exec'd child, on its stdin: what a template knows, and what a fork order says."""

    template: TemplateOrder
    assignment: Assignment
    shapes: tuple[Shape, ...]
    protocol: int = PROTOCOL


# -- template → supervisor --


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredWorker:
    """A Worker of the service."""

    name: str
    concurrency: int
    tasks: tuple[str, ...]
    redis_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredApi:
    """An Api of the service. `host` is an IP address; with a `path`, host and port mean nothing."""

    name: str
    host: str
    port: int
    path: str | None
    processes: int
    graceful_timeout_s: float
    routes: tuple[str, ...] = ()
    """`METHOD /path/{template}`: what its requests are counted by."""
    redis_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The service is imported; orders to fork are taken from now on."""

    layout: int
    """Magic number of the page's layout."""
    name: str
    workers: tuple[DeclaredWorker, ...]
    warnings: tuple[str, ...]
    content: str
    """Digest of the service's source files as they were loaded."""
    apis: tuple[DeclaredApi, ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFailed:
    """The service can't be imported: a line for the terminal, the traceback for the log. The same in every version."""

    line: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """The child of a fork order runs. Its parent may still be the process that forked it."""

    token: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkFailed:
    """There is no child."""

    token: int
    error: str
    blameless: bool = True
    """The system refused; False: something ended the process that was to fork it."""


# -- supervisor → child --


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Fetch no jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Fetch jobs again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Fetch no jobs, and answer `Drained` when none runs any more."""

    number: int
    """The answer bears it: one to an earlier drain means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End; running jobs have so many seconds."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeTasks:
    """Answer `TasksDescribed`: what the tasks of the loop await."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeNewName:
    """To a worker: the lease of this consumer is missing, register anew."""

    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """To a scheduler: the consumers of all living workers of this daemon."""

    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJob:
    """A job that had started in a child that ended."""

    task: str
    lane: str
    entry_id: str
    job_id: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """To a scheduler, until it answers `Reaped`: a consumer has ended."""

    consumer: str
    cause: str
    charge: bool
    """The jobs that had started are charged a crash."""
    started: tuple[StartedJob, ...]
    detail: str
    """Stacks and last words."""
    crash: str
    """Names the crash: the same for every consumer of the process."""
    suspects: int
    """How many jobs had started in the whole process, and not ended."""
    ended: tuple[StartedJob, ...] = ()
    """Jobs that had ended; that one did may not have been recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """To a scheduler, answering `AskStatus`."""

    number: int
    status: str
    """JSON, as the control socket's `status`."""


# -- child → supervisor --


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRead:
    """A secret that a child has, by name, and where it found it."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """It fetches jobs, or would, if it was not to be paused from its start. It has read these secrets."""

    paused: bool
    secrets: tuple[SecretRead, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerNamed:
    """A Worker registered; its consumer's name is in the page."""

    worker: int
    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBegun:
    """It fetches no job any more."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """No job runs and none is pending."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A job can't be stopped: the child should be replaced."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed:
    """An attempt failed; not every one is reported."""

    job_id: str
    task: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """It ends; these jobs were given up."""

    abandoned: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFailed:
    """It can't start, and ends with this code."""

    code: int
    line: str
    away: bool = False
    """The broker can't be reached, which time may mend; it did not refuse."""
    lifespan: bool = False
    """A lifespan failed, at the start or later: what it needs may come back, so it is tried again without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksDescribed:
    """Answers `DescribeTasks`."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """Of a scheduler: the jobs of a dead consumer are back in the queue."""

    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost:
    """Of a scheduler: a living consumer has no lease."""

    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """Of a scheduler: another daemon has this one's id; this is the new one."""

    daemon_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStatus:
    """Of a scheduler: answer `DaemonStatus`, which it reports to the queue."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerReport:
    """Of a scheduler: what changed of its state."""

    leader: bool
    epoch: int | None
    connected: bool
    suspects: bool
    """Suspects of a crash wait for a process that runs them alone."""


OPERATIONS: dict[str, type[Any]] = {
    "imported": Imported,
    "failed": ImportFailed,
    "forked": Forked,
    "fork_failed": ForkFailed,
    "pause": Pause,
    "resume": Resume,
    "drain": Drain,
    "stop": Stop,
    "describe_tasks": DescribeTasks,
    "take_new_name": TakeNewName,
    "alive": Alive,
    "died": Died,
    "ready": Ready,
    "consumer": ConsumerNamed,
    "drain_begun": DrainBegun,
    "drained": Drained,
    "stuck": Stuck,
    "job_failed": JobFailed,
    "stopped": Stopped,
    "boot_failed": BootFailed,
    "tasks_described": TasksDescribed,
    "reaped": Reaped,
    "lease_lost": LeaseLost,
    "renamed": Renamed,
    "scheduler": SchedulerReport,
    "ask_status": AskStatus,
    "daemon_status": DaemonStatus,
}
"""op -> its message. Each op is of one direction."""

FromTemplate = Imported | ImportFailed | Forked | ForkFailed
ToChild = Pause | Resume | Drain | Stop | DescribeTasks | TakeNewName | Alive | Died | DaemonStatus
FromChild = (
    Ready
    | ConsumerNamed
    | DrainBegun
    | Drained
    | Stuck
    | JobFailed
    | Stopped
    | BootFailed
    | TasksDescribed
    | Reaped
    | LeaseLost
    | Renamed
    | SchedulerReport
    | AskStatus
)
Message = FromTemplate | ToChild | FromChild

_OPS = {kind: op for op, kind in OPERATIONS.items()}
_T = TypeVar("_T")


def encode(message: Message) -> bytes:
    """One JSON object, without a line end."""
    # orjson goes by the fields of nested dataclasses itself.
    return orjson.dumps({"op": _OPS[type(message)], **_fields(message)})


def decode(raw: bytes) -> Message:
    """What `encode` wrote. Raises MessageError; ProtocolError when the other side names another version."""
    fields = _object(raw)
    op = fields.pop("op", None)
    kind = OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise MessageError("an operation that is not known")
    return cast("Message", _build(kind, fields))


def encode_order(order: TemplateOrder | Assignment | ExecOrder) -> bytes:
    """What a process is started with, as JSON."""
    return orjson.dumps(order)


def decode_order(kind: type[_T], raw: str | bytes) -> _T:
    """What `encode_order` wrote. Raises MessageError, ProtocolError."""
    return _build(kind, _object(raw))


def as_json(message: Message) -> dict[str, Any]:
    """Fields as JSON values, for the state that an upgrade hands over."""
    return cast("dict[str, Any]", orjson.loads(orjson.dumps(message)))


def from_json(kind: type[_T], fields: Mapping[str, Any]) -> _T:
    """What `as_json` gave. Raises MessageError."""
    return _build(kind, dict(fields))


def _fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def _object(raw: str | bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MessageError("not a JSON object")
    return cast("dict[str, Any]", value)


# -- values of the types that fields have --


def _build(kind: type[_T], fields: dict[str, Any]) -> _T:
    theirs = fields.get("protocol", PROTOCOL)
    if theirs != PROTOCOL:
        raise ProtocolError(theirs)
    readers = _readers(kind)
    try:
        return kind(**{name: readers[name](value) for name, value in fields.items()})
    except (KeyError, TypeError) as error:
        raise MessageError(f"{kind.__name__}: {error}") from None


_known_readers: dict[type[Any], dict[str, Callable[[Any], Any]]] = {}


def _readers(kind: type[Any]) -> dict[str, Callable[[Any], Any]]:
    """A function for each field that checks its value and gives it its type."""
    if kind not in _known_readers:
        _known_readers[kind] = {name: _reader(hint) for name, hint in typing.get_type_hints(kind).items()}
    return _known_readers[kind]


def _reader(hint: Any) -> Callable[[Any], Any]:
    if dataclasses.is_dataclass(hint):
        return lambda value: _build(cast("type[Any]", hint), _checked(value, (dict,)))
    if typing.get_origin(hint) is tuple:
        element = _reader(typing.get_args(hint)[0])
        return lambda value: tuple(element(one) for one in _checked(value, (list,)))
    if isinstance(hint, types.UnionType):
        return lambda value: _checked(value, typing.get_args(hint))
    wanted = (float, int) if hint is float else (hint,)
    return lambda value: _checked(value, wanted)


def _checked(value: Any, kinds: tuple[Any, ...]) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{type(value).__name__} where {' or '.join(kind.__name__ for kind in kinds)} is wanted")
    return value
