"""The pages: each asks the source in a thread, and answers as a page or as JSON."""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from upnext.cli import json_views
from upnext.core import series
from upnext.core.outcome import JobStatus
from upnext.core.series import Point
from upnext.dashboard import history, over_time, previews, run_form, shapes
from upnext.dashboard.alerts import alerts
from upnext.dashboard.auth import Right
from upnext.dashboard.render import Renderer
from upnext.dashboard.replies import answer, demand, mapped, quoted, user_of
from upnext.dashboard.source import PAGE, Source
from upnext.engine.views import explain, flows, jobs, tasks
from upnext.engine.views.jobs import Job
from upnext.errors import JobNotFoundError

T = TypeVar("T")

STATES = tuple(state.value for state in JobStatus)
THREADS = 2
"""Pages that are asked for at once: each has what it shows in memory, and one interpreter makes them one after another anyway."""
BUSIEST = 10
FORMER_LIVES = 20
NEWEST_FAILURES = 10
FLOW_MOST = 2_000
"""Jobs of a flow that are looked for."""
SHOWN_A_GROUP = 50


class Pages:
    """GET routes. No handler changes anything."""

    def __init__(self, source: Source, renderer: Renderer) -> None:
        self._source = source
        self._renderer = renderer
        self._threads = ThreadPoolExecutor(THREADS, "upnext-pages")

    def routes(self) -> list[BaseRoute]:
        """All pages behind the login."""
        pages = {
            "/": self.overview,
            "/hosts": self.hosts,
            "/hosts/{daemon}": self.daemon,
            "/hosts/{daemon}/{slot}": self.slot,
            "/hosts/{daemon}/{slot}/preview": self.preview,
            "/workers": self.workers,
            "/workers/{name}": self.worker,
            "/tasks": self.tasks,
            "/tasks/{task}": self.task,
            "/jobs": self.jobs,
            "/jobs/{job_id}": self.job,
            "/flows/{root_id}": self.flow,
            "/crons": self.crons,
            "/events": self.events,
            "/dead": self.dead,
            "/limits": self.limits,
            "/apis": self.apis,
            "/activity": self.activity,
        }
        return [Route(path, self._viewed(handler), methods=["GET"]) for path, handler in pages.items()]

    def _viewed(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def checked(request: Request) -> Response:
            demand(request, Right.VIEW)
            return await handler(request)

        return mapped(checked)

    async def _ask(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _answer(
        self, request: Request, template: str, values: dict[str, Any], json: Any, next_page: str | None = None
    ) -> Response:
        return answer(request, self._renderer, template, values, json, next_page)

    # -- the whole --

    async def overview(self, request: Request) -> Response:
        payload = user_of(request).may(Right.JOB_PAYLOAD)

        def ask() -> dict[str, Any]:
            snapshot = self._source.snapshot()
            waiting = sorted((one for one in snapshot.tasks if one.queued), key=lambda one: -one.queued)[:BUSIEST]
            oldest = self._source.oldest_queued_ms(one.name for one in waiting)
            letters = self._source.dead_letters(None, NEWEST_FAILURES)
            found = alerts(snapshot, oldest, snapshot.dead_lately)
            shown = waiting or list(snapshot.tasks[:BUSIEST])
            return {
                "alerts": [asdict(one) for one in found],
                "tiles": [
                    _tile("Queued", sum(one.queued for one in snapshot.tasks), "/jobs?state=queued"),
                    _tile("Running", sum(one.running for one in snapshot.tasks), "/jobs?state=running"),
                    _tile("Delayed", snapshot.delayed, "/jobs?state=delayed"),
                    _tile(
                        "Ended per second",
                        round(sum(one.rate_per_s for one in snapshot.tasks), 1),
                        "/tasks",
                        series=[one.ended for one in snapshot.hour.whole],
                        label="Ends a minute in the last hour",
                    ),
                    failures_tile(snapshot.hour.whole, snapshot.dead_lately),
                    _lateness(snapshot.hour.whole),
                    _tile("Dead letters", snapshot.dead, "/dead", tone="bad" if snapshot.dead else ""),
                    _tile("Workers alive", len({(c.host, c.pid) for c in snapshot.consumers if c.alive}), "/workers"),
                ],
                "busiest": [
                    {
                        **shapes.task(one, counted=snapshot.counted),
                        "oldest_s": max(0, snapshot.at_ms - oldest[one.name]) / 1000 if one.name in oldest else None,
                    }
                    for one in shown
                ],
                "series": over_time.columns(snapshot.hour.whole),
                "hosts": [shapes.daemon(one) for one in snapshot.daemons],
                "failures": [shapes.job(one, payload=payload) for one in letters],
            }

        values = await self._ask(ask)
        return self._answer(request, "overview.html", values, values)

    async def hosts(self, request: Request) -> Response:
        snapshot = await self._ask(self._source.snapshot)
        rows = [shapes.daemon(one) for one in snapshot.daemons]
        return self._answer(request, "hosts.html", {"rows": rows}, rows)

    async def daemon(self, request: Request) -> Response:
        one, path = await self._daemon(request)
        name = one["name"]
        preview = (await self._preview(one, [slot for slot in one["slots"] if slot["role"] == "worker"]))["text"]
        values = {
            "one": one,
            "steerable": path is not None,
            "preview": preview,
            "controls": [
                (method, label, f"{preview} {question}" if method in _CUTS else question)
                for method, label, question in CONTROLS
            ],
            "commands": [
                f"upnext ctl {method} --name {name}" for method in ("status", "drain --wait", "reload", "stop")
            ],
        }
        return self._answer(request, "daemon.html", values, {**one, "preview": preview})

    async def slot(self, request: Request) -> Response:
        one, slot, path = await self._slot(request)
        values = await self.slot_values(request, one, slot, path)
        return self._answer(
            request, "slot.html", values, {**slot, "lately": values["lately"], "lines": values["lines"]}
        )

    async def slot_values(
        self, request: Request, one: dict[str, Any], slot: dict[str, Any], path: str | None
    ) -> dict[str, Any]:
        """What the page of one process shows. path: its daemon's control socket, where that is on this machine.

        What it printed may hold what is in its jobs: that is a payload.
        """
        preview = await self._preview(one, [slot])
        payload = user_of(request).may(Right.JOB_PAYLOAD)
        lines = await self._ask(lambda: self._source.printed(path, slot["slot"])) if path and payload else None
        return {
            "one": one,
            "slot": slot,
            "steerable": path is not None,
            "preview": preview["text"],
            "stacks": None,
            "lines": lines,
            "printed": None if lines is None else "\n".join(f"{row['pid'] or '-'}  {row['text']}" for row in lines),
            "shown_at": f"/hosts/{quoted(one['daemon'])}/{quoted(slot['slot'])}",
            "lately": await self._lately(one["daemon"], slot["slot"]),
            "commands": [f"upnext ctl {method} {slot['slot']} --name {one['name']}" for method in ("dump", "restart")],
        }

    async def _lately(self, daemon: str, slot: str) -> list[dict[str, Any]]:
        """The former lives of a slot, as far as they are among the newest lines of the activity."""
        lines, _ = await self._ask(lambda: self._source.activity(None, daemon))
        return [line for line in lines if line["target"] == slot and line["kind"] != "action"][:FORMER_LIVES]

    async def preview(self, request: Request) -> Response:
        one, slot, path = await self._slot(request)
        report = {"slot": slot["slot"], **await self._preview(one, [slot])}
        return self._answer(request, "slot.html", await self.slot_values(request, one, slot, path), report)

    async def _preview(self, one: dict[str, Any], slots: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What a stop of these processes would do to their jobs."""
        names = {job["task"] for slot in slots for job in slot["in_flight"]}
        usual_s = await self._ask(lambda: self._source.usual_run_s(names)) if names else {}
        return previews.preview(slots, usual_s, one["stop_timeout_s"] or previews.STOP_TIMEOUT_S)

    async def _daemon(self, request: Request) -> tuple[dict[str, Any], str | None]:
        snapshot = await self._ask(self._source.snapshot)
        found = snapshot.daemon(request.path_params["daemon"])
        if found is None:
            raise HTTPException(404, f"no daemon {request.path_params['daemon']} is known here")
        return shapes.daemon(found), found.socket

    async def _slot(self, request: Request) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        one, path = await self._daemon(request)
        for slot in one["slots"]:
            if slot["slot"] == request.path_params["slot"]:
                return one, slot, path
        raise HTTPException(404, f"{one['name']} has no slot {request.path_params['slot']}")

    async def workers(self, request: Request) -> Response:
        rows = shapes.workers(await self._ask(self._source.snapshot))
        return self._answer(request, "workers.html", {"rows": rows}, rows)

    async def worker(self, request: Request) -> Response:
        for one in shapes.workers(await self._ask(self._source.snapshot)):
            if one["name"] == request.path_params["name"]:
                return self._answer(request, "worker.html", {"one": one}, one)
        raise HTTPException(404, f"no worker {request.path_params['name']} is connected")

    # -- tasks --

    async def tasks(self, request: Request) -> Response:
        snapshot = await self._ask(self._source.snapshot)
        rows = [
            {
                **shapes.task(one, counted=snapshot.counted),
                "series": snapshot.hour.of.get(one.name) or over_time.columns(()),
            }
            for one in snapshot.tasks
        ]
        return self._answer(request, "tasks.html", {"rows": rows, "approximate": not snapshot.counted}, rows)

    async def task(self, request: Request) -> Response:
        values = await self._task_values(request.path_params["task"], payload=user_of(request).may(Right.JOB_PAYLOAD))
        json = {**values["one"], "signature": values["signature"], "errors": values["errors"]}
        json["series"] = {f"{step}m": over_time.columns(points, step) for step, points in values["series"].items()}
        return self._answer(request, "task.html", values, json)

    async def refused_run(self, request: Request, name: str, typed: Mapping[str, str], why: str) -> Response:
        """The page of a task whose form was refused: why, and what was typed."""
        values = await self._task_values(name, payload=user_of(request).may(Right.JOB_PAYLOAD))
        values |= {
            "fields": run_form.fields(values["signature"] or "", typed),
            "refused": why,
            "shown_at": f"/tasks/{quoted(name)}",
        }
        return self._renderer.page(request, "task.html", values, status=400)

    async def _task_values(self, name: str, *, payload: bool) -> dict[str, Any]:
        """What the page of one task shows."""

        def ask() -> dict[str, Any]:
            snapshot = self._source.snapshot()
            one = snapshot.task(name)
            if one is None:
                tasks.one(self._source.client, self._source.keys, name)  # raises, and names those that are alike
                raise HTTPException(404, f"no task {name} is registered")
            dead = {one.group: one.count for one in snapshot.dead_counts if one.task == name}
            limits = one.limits or {}
            shown = shapes.task(one, counted=snapshot.counted)
            return {
                "one": shown,
                "signature": one.signature,
                "options": sorted((key, value) for key, value in one.options.items() if value is not None),
                "limits_text": " · ".join(
                    part
                    for part in (
                        shapes.rate_text(limits),
                        f"{limits['concurrency']} at once" if limits.get("concurrency") else "",
                    )
                    if part
                )
                or "none",
                "rate_text": shapes.rate_field(limits),
                "concurrency": limits.get("concurrency"),
                "errors": [
                    shapes.end_group(group, dead.get(group.name, 0), payload=payload)
                    for group in self._source.end_groups(name)
                ],
                "fields": run_form.fields(one.signature or ""),
                "refused": "",
                "example": "{}",
                "series": {step: self._source.over_time(name, step) for step in series.POINTS},
            }

        values = await self._ask(ask)
        values["graphs"] = [
            {"title": f"The last {words}", "graphs": _graphs(values["series"][step])} for step, words in _SPANS
        ]
        return values

    async def limits(self, request: Request) -> Response:
        snapshot = await self._ask(self._source.snapshot)
        rows = [
            {
                "task": one.name,
                "rate_text": shapes.rate_text(one.limits) or "–",
                "concurrency": (one.limits or {}).get("concurrency"),
                "running": one.running,
                "queued": one.queued,
                "paused": one.paused,
            }
            for one in snapshot.tasks
            if one.limits or one.paused
        ]
        return self._answer(request, "limits.html", {"rows": rows}, rows)

    # -- jobs --

    async def jobs(self, request: Request) -> Response:
        query = request.query_params
        state, task = query.get("state") or None, query.get("task") or None
        worker, root = query.get("worker") or None, query.get("root") or None
        if state is not None and state not in STATES:
            raise HTTPException(400, f"state {state!r} is not one of {', '.join(STATES)}")
        fingerprint = query.get("fingerprint") or None
        if fingerprint is not None and task is None:
            raise HTTPException(400, "fingerprint is of a task: name that, too")
        limit = _limit(query.get("limit"))
        before = query.get("before") or None
        payload = user_of(request).may(Right.JOB_PAYLOAD)

        def ask() -> tuple[list[Any], list[str]]:
            status = JobStatus(state) if state else None
            if task is not None and fingerprint is not None:
                found = jobs.of_group(self._source.client, self._source.keys, task, fingerprint, PAGE)
                found = [one for one in found if status in (None, one.status)]
            elif worker is not None and root is None:
                client, keys = self._source.client, self._source.keys
                found = jobs.of_worker(client, keys, worker, status, task, FLOW_MOST if before else limit + 1)
            elif root is not None:
                found = flows.below(self._source.client, self._source.keys, root)
                found = [one for one in found if status in (None, one.status) and task in (None, one.task)]
            else:
                found = self._source.jobs(status, task, FLOW_MOST if before else limit + 1)
            if before is not None:
                at = next((at for at, one in enumerate(found) if one.job_id == before), -1)
                found = found[at + 1 :]
            if root is not None:
                found = [self._whole(one) for one in found[: limit + 1]]
            return found, [one.name for one in self._source.snapshot().tasks]

        found, names = await self._ask(ask)
        rows = [shapes.job(one, payload=payload) for one in found[:limit]]
        further = None
        if len(found) > limit:
            kept = {"state": state, "task": task, "worker": worker, "root": root, "fingerprint": fingerprint}
            kept["limit"] = query.get("limit")
            asked = {key: value for key, value in kept.items() if value}
            further = "/jobs?" + urllib.parse.urlencode({**asked, "before": rows[-1]["job_id"]})
        values = {
            "rows": rows,
            "states": STATES,
            "filters": {"state": state, "task": task, "worker": worker, "root": root, "fingerprint": fingerprint},
            "task_names": names,
        }
        return self._answer(request, "jobs.html", values, rows, further)

    def _whole(self, one: Job) -> Job:
        """What else is known of a job of a flow."""
        try:
            return jobs.job(self._source.client, self._source.keys, one.job_id)
        except JobNotFoundError:
            return one

    async def job(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        payload = user_of(request).may(Right.JOB_PAYLOAD)

        def ask() -> dict[str, Any]:
            client, keys = self._source.client, self._source.keys
            one = self._source.job(job_id)
            try:
                why = explain.explain(client, keys, job_id)
            except JobNotFoundError:
                why = None
            shown = shapes.job(one, payload=payload)
            place = dict(shown["place"]) if shown["place"] else None
            if place is not None:
                place |= self._process(place, job_id)
            return {
                "job": {
                    **shown,
                    "progress_text": shapes.pretty(one.progress_shown) if one.progress and payload else "",
                },
                "why": f"– {why.detail}" if why is not None else "",
                "explain": json_views.explanation(why) if why is not None else None,
                "place": place,
                "timeline": timeline(shown, self._deaths(job_id) if shown["crashes"] else ()),
                "arguments": shapes.pretty(shown["arguments"]) if shown["arguments"] is not None else None,
                "result": shapes.pretty(shown["result"]) if one.value is not None and payload else None,
            }

        values = await self._ask(ask)
        json = {**values["job"], "place": values["place"], "explain": values["explain"]}
        return self._answer(request, "job.html", values, json)

    def _deaths(self, job_id: str) -> list[dict[str, Any]]:
        """The ends of processes that had this job, as far as they are among the newest lines of the activity."""
        lines, _ = self._source.activity(None, None)
        return [one for one in lines if one["kind"] == "child_exited" and job_id in re.split(r"[ ,]+", one["what"])]

    def _process(self, place: dict[str, Any], job_id: str) -> dict[str, Any]:
        """What the daemon says of the process that has the job."""
        daemon = self._source.snapshot().daemon(str(place.get("daemon")))
        for slot in shapes.daemon(daemon)["slots"] if daemon is not None else ():
            if slot["pid"] == place.get("pid"):
                beside = [one["job_id"] for one in slot["in_flight"] if one["job_id"] != job_id]
                return {"rss_bytes": slot["rss_bytes"], "neighbours": beside[:10]}
        return {}

    async def flow(self, request: Request) -> Response:
        root_id = request.path_params["root_id"]
        payload = user_of(request).may(Right.JOB_PAYLOAD)

        def ask() -> dict[str, Any] | None:
            client, keys = self._source.client, self._source.keys
            members = flows.below(client, keys, root_id)
            known = {one.job_id: shapes.job(one, payload=payload) for one in members}
            try:
                known[root_id] = shapes.job(jobs.job(client, keys, root_id), payload=payload)
            except JobNotFoundError:
                if not members:
                    return None
                known[root_id] = {"job_id": root_id, "status": "unknown", "task": root_id.rpartition(":")[0]}
            return _tree(root_id, known)

        tree = await self._ask(ask)
        if tree is None:
            raise HTTPException(404, f"no job {root_id} is known here")
        return self._answer(request, "flow.html", {"root_id": root_id, "tree": tree}, tree)

    async def dead(self, request: Request) -> Response:
        task = request.query_params.get("task") or None
        payload = user_of(request).may(Right.JOB_PAYLOAD)
        group = request.query_params.get("fingerprint") or None
        by = request.query_params.get("by") or "job"
        if by not in ("job", "group"):
            raise HTTPException(400, f"by={by!r} is neither job nor group")
        letters = await self._ask(lambda: self._source.dead_letters(task, PAGE, shapes.group_of(group)))
        found = await self._ask(lambda: self._source.dead_groups(task))
        groups = [
            shapes.dead_group(one, payload=payload) for one in found if group in (None, one.group or shapes.NO_GROUP)
        ]
        rows = [shapes.job(one, payload=payload) for one in letters]
        values = {"rows": rows, "groups": groups, "task": task, "fingerprint": group}
        return self._answer(request, "dead.html", values, groups if by == "group" else rows)

    # -- the rest --

    async def crons(self, request: Request) -> Response:
        snapshot = await self._ask(self._source.snapshot)
        rows = [shapes.cron(one) for one in snapshot.crons]
        return self._answer(request, "crons.html", {"rows": rows}, rows)

    async def events(self, request: Request) -> Response:
        rows = shapes.events(await self._ask(self._source.snapshot))
        return self._answer(request, "events.html", {"rows": rows}, rows)

    async def apis(self, request: Request) -> Response:
        rows = shapes.apis(await self._ask(self._source.snapshot))
        return self._answer(request, "apis.html", {"rows": rows}, rows)

    async def activity(self, request: Request) -> Response:
        before = request.query_params.get("before") or None
        if before and not history.is_id(before):
            raise HTTPException(400, f"before={before!r} is not the id of a line")
        daemon = request.query_params.get("daemon") or None
        snapshot = await self._ask(self._source.snapshot)  # daemons report more often while this is looked at
        rows, older = await self._ask(lambda: self._source.activity(before, daemon))
        asked = {"daemon": daemon, "before": older}
        further = "/activity?" + urllib.parse.urlencode({key: value for key, value in asked.items() if value})
        daemons = [{"daemon": one.daemon, "text": f"{one.name} on {one.host}"} for one in snapshot.daemons]
        values = {"rows": rows, "daemon": daemon, "daemons": daemons}
        return self._answer(request, "activity.html", values, rows, further if older else None)


CONTROLS: tuple[tuple[str, str, str], ...] = (
    ("pause", "Pause", ""),
    ("resume", "Resume", ""),
    ("drain", "Drain", "Finish what runs and start nothing more?"),
    ("reload", "Reload", "Load the service's code anew?"),
    ("stop", "Stop", "Stop this daemon? Running jobs have its stop timeout to end."),
)
"""Methods of a daemon that a page has a button for: method, label, question."""
_CUTS = ("drain", "stop")
"""The question says what a stop would do to the running jobs."""


def _tile(
    name: str,
    value: float | None,
    link: str,
    tone: str = "",
    unit: str = "",
    series: Sequence[float | None] = (),
    label: str = "",
) -> dict[str, Any]:
    known = [value for value in series if value is not None]
    return {
        "name": name,
        "value": value,
        "link": link,
        "tone": tone,
        "unit": unit,
        "series": list(series) if len(known) > 1 else None,
        "label": label,
    }


def failures_tile(whole: Sequence[Point], dead_lately: int) -> dict[str, Any]:
    """The tile of what failed in the last hour. The minute that is not over yet is known by its dead letters alone."""
    counts = [one.failed for one in whole]
    count = max(sum(filter(None, counts)), dead_lately)
    label = "Failures a minute in the last hour"
    return _tile("Failed in an hour", count, "/dead", tone="bad" if count else "", series=counts, label=label)


def _lateness(whole: Sequence[Point]) -> dict[str, Any]:
    """The tile of how long jobs waited for their start, as of the newest minute in which some started."""
    waits = [one.wait_p95_s for one in whole]
    newest = next((wait for wait in reversed(waits) if wait is not None), None)
    label = "Wait for the start by the minute in the last hour: 95 of 100 jobs waited less"
    return _tile("Wait for the start, p95", newest, "/tasks", unit="s", series=waits, label=label)


_SPANS = ((series.FINE, "3 hours, by the minute"), (series.COARSE, "7 days, by quarters of an hour"))


def _graphs(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The graphs of a task: title, unit, values, the newest of them and the highest."""
    kinds: tuple[tuple[str, str, str, str], ...] = (
        ("Ended", "ended", "", "plain"),
        ("Failed", "failed", "", "bad"),
        ("Queued", "queued", "", "plain"),
        ("Wait for the start, p95", "wait_p95_s", "s", "plain"),
        ("Run time, p50", "run_p50_s", "s", "plain"),
        ("Run time, p95", "run_p95_s", "s", "plain"),
    )
    found: list[dict[str, Any]] = []
    for title, name, unit, tone in kinds:
        values: list[float | None] = [getattr(one, name) for one in points]
        known = [value for value in values if value is not None]
        found.append(
            {
                "title": title,
                "unit": unit,
                "tone": tone,
                "values": values,
                "now": known[-1] if known else None,
                "most": max(known) if known else None,
            }
        )
    return found


def _limit(text: str | None) -> int:
    if not text:
        return PAGE
    if not text.isdecimal() or not 1 <= int(text) <= PAGE:
        raise HTTPException(400, f"limit={text!r} is not a number from 1 to {PAGE}")
    return int(text)


def timeline(job: dict[str, Any], deaths: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What is known of a job's life, oldest first. deaths: lines of the activity about processes that had it when they ended."""
    found: list[dict[str, Any]] = []

    def add(at_ms: int | None, what: str, text: str = "", tone: str = "") -> None:
        if at_ms is not None:
            found.append({"at_ms": at_ms, "what": what, "text": text, "tone": tone})

    add(job["submitted_ms"], "Submitted", f"by {by}" if (by := job["parent_id"] or job["via"]) else "")
    for one in deaths:
        add(one["at_ms"], f"Its process ended: {one['target']}, {one['who']}", one["what"], "bad")
    if job["crashes"] > len(deaths):
        count = "once" if job["crashes"] == 1 else f"{job['crashes']} times"
        add(job["started_ms"] or job["since_ms"], f"Crashed {count} before", job["cause"] or "", "bad")
    if job["status"] != "delayed":
        add(job["started_ms"], f"Attempt {job['attempt']} started", job["place_text"])
    ended = {"done": "good", "failed": "bad", "dead": "bad", "cancelled": ""}
    if job["status"] in ended:
        add(job["finished_ms"], job["status"].capitalize(), job["cause"] or "", ended[job["status"]])
    return sorted(found, key=lambda one: one["at_ms"])


def _tree(root_id: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The root with its descendants, grouped by task with counts of states. A member whose parent is gone hangs below the root."""
    children: dict[str, list[dict[str, Any]]] = {}
    for job_id, one in known.items():
        if job_id != root_id:
            parent = one.get("parent_id")
            children.setdefault(parent if parent in known else root_id, []).append(one)

    def node(one: dict[str, Any], depth: int) -> dict[str, Any]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for child in children.get(one["job_id"], ()) if depth < 30 else ():
            groups.setdefault(child["task"], []).append(child)
        return {
            "job_id": one["job_id"],
            "task": one["task"],
            "status": one["status"],
            "groups": [
                {
                    "task": task,
                    "count": len(members),
                    "states": _counted([member["status"] for member in members]),
                    "nodes": [node(member, depth + 1) for member in members[:SHOWN_A_GROUP]],
                }
                for task, members in sorted(groups.items())
            ],
        }

    return node(known[root_id], 0)


def _counted(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}
