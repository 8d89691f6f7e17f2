"""The shape of `status`: what the daemon answers, `ctl status --json` prints and the table is drawn from. Part of the public contract."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Mode = Literal["running", "paused", "draining", "drained", "reloading", "stopping"]
Role = Literal["worker", "api", "scheduler", "template", "broker", "metrics", "dashboard"]
Cause = Literal["exit", "signal", "oom", "hung", "recycled", "reloaded"]


class RunningJob(TypedDict):
    job_id: str
    task: str
    age_s: float


class LastExit(TypedDict):
    """How a slot's previous child ended. `at` is ISO 8601, UTC; one of code and signal is null."""

    cause: Cause
    code: int | None
    signal: str | None
    at: str


class ChildStatus(TypedDict):
    """One slot. What isn't known, or means nothing for its role, is null."""

    slot: str
    role: Role
    pid: int | None
    state: str
    generation: int | None
    incarnation: int
    uptime_s: float | None
    heartbeat_age_s: float | None
    in_flight: list[RunningJob]
    """The oldest; the method `running` gives all of them, by pages."""
    in_flight_count: int
    jobs_done: int
    jobs_failed: int
    rss_bytes: int | None
    pss_bytes: int | None
    restarts: int
    last_exit: LastExit | None


class SchedulerStatus(TypedDict):
    leader: bool
    epoch: int | None


class BrokerStatus(TypedDict):
    """`url` has its password redacted."""

    url: str
    embedded: bool
    connected: bool


class ApiStatus(TypedDict):
    """An Api that is to serve; `ready` of its processes take connections."""

    name: str
    url: str
    listening: NotRequired[bool]
    """False: connects are refused, for none of its processes takes any."""
    processes: int
    ready: int
    requests: int
    """That the processes of now have answered; `failed` of them with a status over 499."""
    failed: int


class SecretStatus(TypedDict):
    """A secret that workers have read; never its value."""

    name: str
    source: str


class Status(TypedDict):
    protocol: int
    version: str
    pid: int
    name: str
    service: str
    service_name: str | None
    namespace: str
    mode: Mode
    stop_timeout_s: float
    """So long running jobs have to end when the daemon stops."""
    exit_when_drained: bool
    problem: str | None
    """Why children can't be replaced by their like, in a line; null when they can."""
    generation: int
    desired_workers: int
    ready_workers: int
    children: list[ChildStatus]
    secrets: list[SecretStatus]
    apis: NotRequired[list[ApiStatus]]
    """Not there in the status of a daemon of an older version."""
    scheduler: SchedulerStatus
    broker: BrokerStatus


def degraded(status: Status) -> bool:
    """Fewer workers or processes of an Api ready than desired, a child that hangs, or the broker is away.

    A daemon that was asked to pause or drain obeys: its paused workers are counted as ready by the daemon.
    """
    hung = any(child["state"] == "HUNG" for child in status["children"])
    fewer = status["ready_workers"] < status["desired_workers"] or any(
        api["ready"] < api["processes"] for api in status.get("apis", ())
    )
    return hung or fewer or not status["broker"]["connected"]
