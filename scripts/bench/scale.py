"""The suite `scale`: what happens to speed, memory and recovery when there is more of something."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from rig import (
    Deaths,
    MeasureError,
    ReadyWatch,
    Rig,
    Values,
    cpu_s,
    memory_mib,
    percentile,
    spread,
    steady_rate,
)
from table import Bar, Row, Size

SERVICE = "scale_service"
WINDOW_JOBS = 8_000
WARM_JOBS = 5_000


def backlog(size: Size) -> Values:
    """One worker drains 10,000 jobs, several times, then 1,000,000: rates in windows of as many jobs, and its memory."""
    few, many, drains = 10_000, size(1_000_000), 7
    with Rig(SERVICE) as rig:
        rig.start()
        done, small, rss_few = 0, [], 0.0
        for _ in range(drains):
            times = _drain(rig, ["noop"], few, done)
            done += few
            small.append(steady_rate(times))
            rss_few = rss_few or _worker_rss(rig)
        times = sorted(_drain(rig, ["noop"], many, done))
        deep = times[many // 100 : max(many // 2, many // 100 + WINDOW_JOBS + 1)]
        starts = range(0, len(deep) - WINDOW_JOBS, WINDOW_JOBS)
        large = [WINDOW_JOBS / (deep[start + WINDOW_JOBS] - deep[start]) for start in starts]
        values = {
            "few": percentile(small, 0.5),
            "many": percentile(large, 0.5),
            "rss_few": rss_few,
            "rss_many": _worker_rss(rig),
        }
    return {**values, "rate_share": values["many"] / values["few"], "rss_share": values["rss_many"] / values["rss_few"]}


def tasks(size: Size) -> Values:
    """The same work for a worker that registered 200 tasks and for one that registered 5."""
    values: Values = {}
    for registered in (5, 200):
        with Rig(SERVICE, tasks=registered) as rig:
            rig.start()
            count = size(100_000)
            _drain(rig, ["noop"], WARM_JOBS, 0)
            values[f"one.{registered}"] = steady_rate(_drain(rig, ["noop"], count, WARM_JOBS))
            spread_over = ["noop", *(f"spare_{number}" for number in range(3, registered))]
            values[f"all.{registered}"] = steady_rate(_drain(rig, spread_over, count, WARM_JOBS + count))
            values[f"wait_ms.{registered}"] = percentile(
                rig.produce("roundtrip", task="noop", count=size(500))["ms"], 0.5
            )
    for kind in ("one", "all", "wait_ms"):
        values[f"{kind}.share"] = values[f"{kind}.200"] / values[f"{kind}.5"]
    return values


def delayed(size: Size) -> Values:
    """Lateness of 200 delayed jobs, without and with 1,000,000 others that wait for another day."""
    values: Values = {}
    with Rig(SERVICE) as rig:
        rig.start()
        for name, others in (("alone", 0), ("among", size(1_000_000))):
            if others:
                rig.produce("far", count=others)
            start = rig.count()
            rig.produce("delayed", count=200)
            rig.wait_for(start + 200)
            values |= spread(name, [1000 * (at - due) for _, at, due in rig.records(start)])
    return values


def memory(size: Size) -> Values:
    """Processes that only wait, and after work: what each further worker costs, and the supervisor."""
    values: Values = {}
    for workers in (1, 4):
        with Rig(SERVICE, workers=workers) as rig:
            rig.start()
            rig.produce("fill", names=["noop"], count=1)
            rig.wait_for(1)
            time.sleep(1.5)
            values[f"idle.{workers}"] = memory_mib(rig.pids())["uss"]
            if workers == 1:
                for kind, mib in memory_mib([rig.daemon.pid]).items():
                    values[f"supervisor.{kind}"] = mib
            count = size(50_000) * workers
            rig.produce("fill", names=["noop"], count=count)
            rig.wait_for(1 + count)
            rig.all_ready()
            time.sleep(0.5)
            values[f"after.{workers}"] = memory_mib(rig.pids())["uss"]
    for kind in ("idle", "after"):
        values[f"{kind}.further"] = (values[f"{kind}.4"] - values[f"{kind}.1"]) / 3
    return values


def idle(size: Size) -> Values:
    """CPU and requests of a daemon that has nothing to do."""
    seconds = size(20)
    values: Values = {}
    for workers in (1, 4):
        with Rig(SERVICE, workers=workers) as rig:
            rig.start()
            rig.produce("fill", names=["noop"], count=1)
            rig.wait_for(1)
            time.sleep(3)
            pids = rig.pids()
            roles = {str(child["role"]): 0.0 for child in rig.daemon.status()["children"]}
            of = {child["pid"]: str(child["role"]) for child in rig.daemon.status()["children"]}
            before = {pid: cpu_s([pid]) for pid in pids}
            reads, commands = rig.requests()
            begun = time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - begun
            after_reads, after_commands = rig.requests()  # this question is in its own answer
            for pid in pids:
                role = of.get(pid, "supervisor")
                roles[role] = roles.get(role, 0.0) + 100 * (cpu_s([pid]) - before[pid]) / passed
            for role, percent in roles.items():
                values[f"cpu.{workers}.{role}"] = percent
            values[f"cpu.{workers}"] = sum(roles.values())
            values[f"requests.{workers}"] = max(0, after_reads - reads - 1) / passed
            values[f"commands.{workers}"] = max(0, after_commands - commands - 1) / passed
    return values


def crashes(size: Size) -> Values:
    """kill -9 of the worker that runs a job, its sibling idle: time to the job's next start, and to the replacement's READY."""
    again: list[float] = []
    ready: list[float] = []
    with Rig(SERVICE, workers=2) as rig:
        rig.start()
        watch = ReadyWatch(rig.daemon.socket_path)
        for number in range(size(50)):
            rig.all_ready()
            rig.produce("submit", task="crash")
            rig.wait_for(2 * number + 1, poll_s=0.001)
            time.sleep(0.1)  # the sibling waits in its read, as it would after a while
            killed = time.time()
            os.kill(int(rig.records(2 * number)[0][0]), signal.SIGKILL)
            rig.wait_for(2 * number + 2, poll_s=0.001)
            again.append(1000 * (rig.records(2 * number + 1)[0][1] - killed))
            ready.append(1000 * (watch.after(killed) - killed))
    return {**spread("again", again), **spread("ready", ready)}


def supervisor_death(size: Size) -> Values:
    """kill -9 of the supervisor while its workers run jobs: time until none of its processes is left."""
    gone: list[float] = []
    for _ in range(size(10)):
        with Rig(SERVICE, workers=2) as rig:
            rig.start()
            for job in range(4):
                rig.produce("submit", task="crash")
                rig.wait_for(job + 1, poll_s=0.001)
            deaths = Deaths(rig.pids())
            killed = time.time()
            os.kill(rig.daemon.pid, signal.SIGKILL)
            gone.append(1000 * (deaths.wait_all() - killed))
            if left := rig.daemon.left():
                raise MeasureError(f"unexpected processes are left: {left}")
    return spread("gone", gone)


def launches(size: Size) -> Values:
    """From exec to READY, with a broker of its own and with Redis given; and to the first job done."""
    embedded: list[float] = []
    given: list[float] = []
    job: list[float] = []
    with Rig(SERVICE, embedded=True) as rig, rig.launch() as daemon:
        daemon.ready_s()  # compiles what is to be imported; not measured
    for _ in range(size(10)):
        with Rig(SERVICE, embedded=True) as rig, rig.launch() as daemon:
            embedded.append(daemon.ready_s())
        with Rig(SERVICE) as rig:
            rig.produce("fill", names=["noop"], count=1)
            with rig.launch() as daemon:
                given.append(daemon.ready_s())
                rig.wait_for(1, poll_s=0.001)
                job.append(rig.records()[0][1] - daemon.launched_at)
    return {**spread("embedded", embedded), **spread("given", given), **spread("job", job)}


def _drain(rig: Rig, names: Sequence[str], count: int, before: int) -> list[float]:
    """Fills while the worker is paused, then lets it drain; when each job started."""
    rig.pause()
    rig.produce("fill", names=list(names), count=count)
    rig.resume()
    rig.wait_for(before + count)
    return [at for _, at, _ in rig.records(before)]


def _worker_rss(rig: Rig) -> float:
    rig.all_ready()
    return memory_mib(list(rig.daemon.worker_pids().values()))["rss"]


MEASURES = (backlog, tasks, delayed, memory, idle, crashes, supervisor_death, launches)

ROWS = (
    Row("drain, 10,000 jobs waiting, jobs/s", "backlog.few"),
    Row("drain, 1,000,000 jobs waiting, jobs/s", "backlog.many"),
    Row("… share of the former", "backlog.rate_share", Bar.at_least(0.9)),
    Row("RSS of the worker after 10,000 jobs, MiB", "backlog.rss_few"),
    Row("RSS of the worker after 1,000,000 more, MiB", "backlog.rss_many"),
    Row("… ratio", "backlog.rss_share", Bar.at_most(1.05)),
    Row("5 tasks registered, jobs of one, jobs/s", "tasks.one.5"),
    Row("200 tasks registered, jobs of one, jobs/s", "tasks.one.200"),
    Row("… share of the former", "tasks.one.share", Bar.at_least(0.8)),
    Row("5 tasks registered, jobs of all no-ops, jobs/s", "tasks.all.5"),
    Row("200 tasks registered, jobs of all no-ops, jobs/s", "tasks.all.200"),
    Row("… share of the former", "tasks.all.share", Bar.at_least(0.8)),
    Row("5 tasks registered, submit and wait, p50 ms", "tasks.wait_ms.5"),
    Row("200 tasks registered, submit and wait, p50 ms", "tasks.wait_ms.200"),
    Row("delayed jobs, lateness p50 ms", "delayed.alone.p50"),
    Row("delayed jobs, lateness p99 ms", "delayed.alone.p99"),
    Row("delayed jobs, earliest, ms", "delayed.alone.min", Bar.at_least(0)),
    Row("… among 1,000,000 others, lateness p50 ms", "delayed.among.p50"),
    Row("… among 1,000,000 others, lateness p99 ms", "delayed.among.p99"),
    Row("… among 1,000,000 others, earliest, ms", "delayed.among.min", Bar.at_least(0)),
    Row("USS of each further worker, idle, MiB", "memory.idle.further", Bar.at_most(10)),
    Row("USS of each further worker, after 50,000 jobs each, MiB", "memory.after.further"),
    Row("RSS of the supervisor, MiB", "memory.supervisor.rss"),
    Row("USS of the supervisor, MiB", "memory.supervisor.uss"),
    Row("idle, 1 worker, CPU %", "idle.cpu.1", Bar.at_most(0.3)),
    Row("idle, 1 worker, client requests/s", "idle.requests.1", Bar.at_most(1.5)),
    Row("idle, 1 worker, commands/s", "idle.commands.1"),
    Row("idle, 4 workers, CPU %", "idle.cpu.4", Bar.at_most(0.6)),
    Row("idle, 4 workers, client requests/s", "idle.requests.4", Bar.at_most(4)),
    Row("idle, 4 workers, commands/s", "idle.commands.4"),
    Row("kill -9 of a worker, its job starts again, p50 ms", "crashes.again.p50"),
    Row("kill -9 of a worker, its job starts again, p99 ms", "crashes.again.p99", Bar.at_most(100)),
    Row("kill -9 of a worker, its replacement is READY, p50 ms", "crashes.ready.p50"),
    Row("kill -9 of a worker, its replacement is READY, p99 ms", "crashes.ready.p99"),
    Row("kill -9 of the supervisor, no process left, p50 ms", "supervisor_death.gone.p50"),
    Row("kill -9 of the supervisor, no process left, longest, ms", "supervisor_death.gone.max"),
    Row("launch to READY, embedded broker, p50 s", "launches.embedded.p50"),
    Row("launch to READY, Redis given, p50 s", "launches.given.p50"),
    Row("launch to first job started, Redis given, p50 s", "launches.job.p50", Bar.at_most(0.6)),
)
