"""What people may do: each action checks a right, does it in a thread, and leaves a line in the audit and the log."""

from __future__ import annotations

import asyncio
import functools
import logging
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from upnext.core import redaction
from upnext.core.counted import counted
from upnext.core.limits import parse_rate
from upnext.core.signatures import payload as fitted
from upnext.core.submission import Submission
from upnext.dashboard import run_form, shapes
from upnext.dashboard.auth import Right
from upnext.dashboard.guard import wants_json
from upnext.dashboard.pages import Pages
from upnext.dashboard.render import Renderer
from upnext.dashboard.replies import answer, demand, done, mapped, quoted, user_of
from upnext.dashboard.source import Daemon, Source, call_daemon
from upnext.engine.views import crons, dead_letters, jobs, tasks
from upnext.errors import UsageError

T = TypeVar("T")

MOST_IDS = 1_000
METHODS = ("drain", "pause", "resume", "reload", "stop")
log = logging.getLogger("upnext.dashboard")


class Actions:
    """POST routes."""

    def __init__(self, source: Source, renderer: Renderer, pages: Pages) -> None:
        self._source = source
        self._renderer = renderer
        self._pages = pages

    def routes(self) -> list[BaseRoute]:
        """All actions behind the login."""
        actions: dict[str, Callable[[Request], Any]] = {
            "/jobs/cancel": self.cancel_many,
            "/jobs/retry": self.retry_many,
            "/jobs/{job_id}/cancel": self.cancel,
            "/jobs/{job_id}/retry": self.retry,
            "/jobs/{job_id}/rerun": self.rerun,
            "/jobs/{job_id}/stack": self.stack,
            "/events/{event}/send": self.send,
            "/tasks/{task}/pause": self.pause_task,
            "/tasks/{task}/resume": self.resume_task,
            "/tasks/{task}/purge": self.purge_task,
            "/tasks/{task}/run": self.run_task,
            "/tasks/{task}/limits": self.set_limits,
            "/crons/{cron}/run": self.run_cron,
            "/crons/{cron}/pause": self.pause_cron,
            "/crons/{cron}/resume": self.resume_cron,
            "/crons/{cron}/remove": self.remove_cron,
            "/dead/retry": self.retry_dead,
            "/dead/purge": self.purge_dead,
            "/hosts/{daemon}/scale": self.scale,
            "/hosts/{daemon}/{slot}/restart": self.restart,
            "/hosts/{daemon}/{slot}/stacks": self.stacks,
        }
        routes: list[BaseRoute] = [Route(path, mapped(handler), methods=["POST"]) for path, handler in actions.items()]
        routes += [
            Route(f"/hosts/{{daemon}}/{method}", mapped(self._method(method)), methods=["POST"]) for method in METHODS
        ]
        return routes

    async def _do(
        self,
        request: Request,
        right: Right,
        what: str,
        target: str,
        work: Callable[[], T],
        daemon: str | None = None,
    ) -> T:
        demand(request, right)
        who = user_of(request).name

        def run() -> T:
            result = work()
            self._source.record(who, what, target, daemon)
            return result

        result = await asyncio.to_thread(run)
        log.info("%s: %s %s", who, what, shown(target))
        return result

    # -- jobs --

    async def cancel(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]

        def work() -> bool:
            jobs.job(self._source.client, self._source.keys, job_id)  # raises for one that is unknown
            return self._source.client.cancel(job_id)

        cancelled = await self._do(request, Right.JOB_ACT, "cancel", job_id, work)
        if not cancelled:
            raise HTTPException(409, f"job {job_id} has ended already")
        return done(request, {"cancelled": [job_id]}, f"/jobs/{quoted(job_id)}")

    async def cancel_many(self, request: Request) -> Response:
        chosen = await _ids(request)

        def work() -> list[str]:
            return [job_id for job_id in chosen if self._source.client.cancel(job_id)]

        cancelled = await self._do(request, Right.JOB_ACT, "cancel", counted(len(chosen), "job"), work)
        return done(request, {"cancelled": cancelled}, "/jobs")

    async def retry(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        handled = await self._do(request, Right.JOB_ACT, "retry", job_id, lambda: self._retry([job_id]))
        if handled.unknown:
            raise HTTPException(409, f"job {job_id} is not a dead letter")
        return done(request, {"retried": handled.done}, f"/jobs/{quoted(job_id)}")

    async def retry_many(self, request: Request) -> Response:
        chosen = await _ids(request)
        handled = await self._do(
            request, Right.JOB_ACT, "retry", counted(len(chosen), "job"), lambda: self._retry(chosen)
        )
        return done(request, {"retried": handled.done, "unknown": handled.unknown}, "/jobs")

    def _retry(self, chosen: Sequence[str]) -> dead_letters.Handled:
        return dead_letters.retry(self._source.client, self._source.keys, chosen)

    async def rerun(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        demand(request, Right.JOB_PAYLOAD)
        fields = await _fields(request)

        def work() -> str:
            one = self._source.job(job_id)
            given = fields.get("kwargs")
            if given is None and one.payload is None:
                raise HTTPException(409, f"the arguments of job {job_id} are no longer kept")
            if given is not None and one.payload is not None:
                # A form gives back what it was shown.
                given = redaction.restored(_object(given, "kwargs"), one.payload, one.redact)
            return self._submit(one.task, given, one.payload)

        new_id = await self._do(request, Right.JOB_ACT, "rerun", job_id, work)
        return done(request, {"job_id": new_id}, f"/jobs/{quoted(new_id)}")

    def _submit(self, task: str, kwargs: Any, payload: bytes | None = None) -> str:
        facts = tasks.one(self._source.client, self._source.keys, task)
        definition = facts.definition
        if kwargs is not None:
            payload = _payload(definition.get("signature"), kwargs)
        options: dict[str, Any] = definition.get("options") or {}
        return self._source.client.submit(
            Submission(
                task,
                payload or b"{}",
                priority=options.get("priority") or "normal",
                limited=bool(definition.get("limits")),
            )
        )

    # -- tasks, crons, events --

    async def pause_task(self, request: Request) -> Response:
        return await self._switch(request, Right.TASK_ACT, request.path_params["task"], paused=True)

    async def resume_task(self, request: Request) -> Response:
        return await self._switch(request, Right.TASK_ACT, request.path_params["task"], paused=False)

    async def _switch(self, request: Request, right: Right, task: str, *, paused: bool) -> Response:
        work = tasks.pause if paused else tasks.resume
        await self._do(
            request,
            right,
            "pause" if paused else "resume",
            task,
            lambda: work(self._source.client, self._source.keys, task),
        )
        return done(request, {"task": task, "paused": paused}, f"/tasks/{quoted(task)}")

    async def purge_task(self, request: Request) -> Response:
        task = request.path_params["task"]

        def work() -> tasks.Purged:
            tasks.one(self._source.client, self._source.keys, task)
            return tasks.purge(self._source.client, self._source.keys, task)

        removed = await self._do(request, Right.TASK_ACT, "purge", task, work)
        value = {"task": task, "queued": removed.queued, "delayed": removed.delayed}
        return done(request, value, f"/tasks/{quoted(task)}")

    async def run_task(self, request: Request) -> Response:
        task = request.path_params["task"]
        fields = await _fields(request)
        typed = {name: str(value) for name, value in fields.items() if name.startswith(run_form.PREFIX)}

        def work() -> str:
            if not typed:
                return self._submit(task, fields.get("kwargs") or "{}")
            signature = tasks.one(self._source.client, self._source.keys, task).definition.get("signature") or ""
            return self._submit(task, run_form.arguments(signature, typed))

        try:
            job_id = await self._do(request, Right.TASK_ACT, "run", task, work)
        except UsageError as error:
            if not typed or wants_json(request.scope):
                raise
            return await self._pages.refused_run(request, task, typed, str(error))
        return done(request, {"job_id": job_id}, f"/jobs/{quoted(job_id)}")

    async def set_limits(self, request: Request) -> Response:
        task = request.path_params["task"]
        fields = await _fields(request)
        rate_text = str(fields.get("rate_limit") or "").strip()
        rate = parse_rate(rate_text) if rate_text else None
        concurrency = _number(fields.get("max_concurrency"), "max_concurrency")
        await self._do(
            request,
            Right.TASK_ACT,
            "limits",
            f"{task}: {rate_text or 'no rate'}, {concurrency or 'any number'} at once",
            lambda: tasks.set_limits(
                self._source.client, self._source.keys, task, rate=rate, concurrency=concurrency, declared=False
            ),
        )
        return done(
            request, {"task": task, "rate_limit": rate_text, "max_concurrency": concurrency}, f"/tasks/{quoted(task)}"
        )

    async def run_cron(self, request: Request) -> Response:
        name = request.path_params["cron"]

        def work() -> str:
            return self._source.client.submit(crons.submission(self._source.client, self._source.keys, name))

        job_id = await self._do(request, Right.CRON_ACT, "run cron", name, work)
        return done(request, {"job_id": job_id}, "/crons")

    async def pause_cron(self, request: Request) -> Response:
        return await self._switch_cron(request, paused=True)

    async def resume_cron(self, request: Request) -> Response:
        return await self._switch_cron(request, paused=False)

    async def _switch_cron(self, request: Request, *, paused: bool) -> Response:
        name = request.path_params["cron"]

        def work() -> str:
            task, _ = crons.switch(self._source.client, self._source.keys, name, paused=paused)
            return task

        task = await self._do(request, Right.CRON_ACT, "pause" if paused else "resume", name, work)
        return done(request, {"task": task, "paused": paused}, "/crons")

    async def remove_cron(self, request: Request) -> Response:
        """Of schedules that were made at run time alone."""
        name = request.path_params["cron"]
        await self._do(
            request,
            Right.CRON_ACT,
            "remove schedule",
            name,
            lambda: crons.remove(self._source.client, self._source.keys, name),
        )
        return done(request, {"cron": name, "removed": True}, "/crons")

    async def send(self, request: Request) -> Response:
        event = request.path_params["event"]
        fields = await _fields(request)
        values = _object(fields.get("fields") or "{}", "fields")

        def work() -> list[str]:
            if not any(row["event"] == event for row in shapes.events(self._source.snapshot())):
                raise HTTPException(404, f"no event {event} has a handler")
            return self._source.client.send(event, orjson.dumps(values), ())

        ids = await self._do(request, Right.EVENT_SEND, "send", event, work)
        return done(request, {"event": event, "job_ids": ids}, "/events")

    # -- dead letters --

    async def retry_dead(self, request: Request) -> Response:
        return await self._dead(request, "retry", dead_letters.retry, "retried")

    async def purge_dead(self, request: Request) -> Response:
        return await self._dead(request, "purge", dead_letters.purge, "purged")

    async def _dead(
        self, request: Request, what: str, work: Callable[..., dead_letters.Handled], word: str
    ) -> Response:
        fields = await _fields(request)
        chosen = _chosen(fields)
        task, fingerprint = fields.get("task"), fields.get("fingerprint")
        if not chosen and not task:
            raise HTTPException(400, "say which: id, or task (and fingerprint)")

        def run() -> dead_letters.Handled:
            client, keys = self._source.client, self._source.keys
            if chosen:
                return work(client, keys, chosen[:MOST_IDS])
            group = shapes.group_of(str(fingerprint) if fingerprint else None)
            return work(client, keys, dead_letters.ids_of(client, keys, str(task), group))

        target = f"{len(chosen)} dead letters" if chosen else f"dead letters of {task}"
        handled = await self._do(request, Right.JOB_ACT, what, target, run)
        value = {word: handled.done[:MOST_IDS], "count": len(handled.done), "unknown": handled.unknown[:MOST_IDS]}
        return done(request, value, "/dead")

    # -- daemons --

    def _method(self, method: str) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            return await self._control(request, method, {})

        return handler

    async def scale(self, request: Request) -> Response:
        workers = _number((await _fields(request)).get("workers"), "workers", least=0)
        if workers is None:
            raise HTTPException(400, "workers is missing: a number from 0 to 1000")
        return await self._control(request, "scale", {"workers": workers})

    async def restart(self, request: Request) -> Response:
        return await self._control(request, "restart", {"slot": request.path_params["slot"]})

    async def stacks(self, request: Request) -> Response:
        slot_name = request.path_params["slot"]
        found = await self._daemon(request)
        assert found.socket is not None
        path = found.socket
        stacks = await self._do(
            request,
            Right.HOST_ACT,
            "stacks",
            f"{found.name} {slot_name}",
            lambda: call_daemon(path, "dump", slot=slot_name),
        )
        one = shapes.daemon(found)
        slot = next((slot for slot in one["slots"] if slot["slot"] == slot_name), None)
        if slot is None:
            raise HTTPException(404, f"{found.name} has no slot {slot_name}")
        values = await self._pages.slot_values(request, one, slot, path)
        text = str(stacks.get("stacks") or stacks.get("text") or shapes.pretty(stacks))
        return answer(request, self._renderer, "slot.html", {**values, "stacks": text}, stacks)

    async def stack(self, request: Request) -> Response:
        """Where a running job stands: of a daemon on this machine."""
        demand(request, Right.HOST_ACT)
        job_id = request.path_params["job_id"]
        one = await asyncio.to_thread(self._source.job, job_id)
        place = one.worker_record or {}
        snapshot = await asyncio.to_thread(self._source.snapshot)
        found = snapshot.daemon(str(place.get("daemon")))
        if not place or found is None:
            raise HTTPException(409, f"no process has job {job_id} now")
        if found.socket is None:
            raise HTTPException(409, f"it runs on {found.host}: use `upnext job {job_id} --stack` there")
        path = found.socket
        work = functools.partial(call_daemon, path, "stacks", job_id=job_id)
        stacks = await self._do(request, Right.HOST_ACT, "stack", job_id, work)
        return answer(request, self._renderer, "stack.html", {"job_id": job_id, **stacks}, stacks)

    async def _control(self, request: Request, method: str, params: dict[str, Any]) -> Response:
        found = await self._daemon(request)
        path = found.socket
        assert path is not None
        target = " ".join([found.name, *(str(value) for value in params.values())])
        result = await self._do(
            request, Right.HOST_ACT, method, target, lambda: call_daemon(path, method, **params), found.daemon
        )
        return done(request, result, f"/hosts/{quoted(found.daemon)}")

    async def _daemon(self, request: Request) -> Daemon:
        demand(request, Right.HOST_ACT)
        snapshot = await asyncio.to_thread(self._source.snapshot)
        found = snapshot.daemon(request.path_params["daemon"])
        if found is None:
            raise HTTPException(404, f"no daemon {request.path_params['daemon']} is known here")
        if found.socket is None:
            raise HTTPException(409, f"{found.name} runs on {found.host}: use `upnext ctl --name {found.name}` there")
        return found


def shown(text: str) -> str:
    """One line for the log."""
    return " ".join(text.split())[:200]


async def _fields(request: Request) -> dict[str, Any]:
    """The fields of a form, or of a JSON object. A field given several times is a list. Raises 400 for a body that is neither."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "the body did not arrive whole, or is larger than 2 MiB") from None
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        try:
            value = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from None
        return _object(value, "the body")
    found: dict[str, Any] = {}
    for name, values in urllib.parse.parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True).items():
        found[name] = values if name == "id" else values[-1]
    return found


async def _ids(request: Request) -> list[str]:
    chosen = _chosen(await _fields(request))
    if not chosen:
        raise HTTPException(400, "no id is given")
    if len(chosen) > MOST_IDS:
        raise HTTPException(400, f"{len(chosen)} ids are given, {MOST_IDS} at most")
    return chosen


def _chosen(fields: dict[str, Any]) -> list[str]:
    given = fields.get("id", fields.get("ids"))
    if given is None:
        return []
    return [str(one) for one in cast("list[Any]", given)] if isinstance(given, list) else [str(given)]


def _object(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError as error:
            raise HTTPException(400, f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise HTTPException(400, f'{what} is not a JSON object; write {{"name": value}}')
    return cast("dict[str, Any]", value)


def _payload(signature: str | None, kwargs: Any) -> bytes:
    values = _object(kwargs, "kwargs")
    return fitted(signature, values) if signature else orjson.dumps(values)


def _number(value: Any, name: str, least: int = 1) -> int | None:
    if value is None or value == "":
        return None
    text = str(value)
    if not text.isdecimal() or not least <= int(text) <= 1_000_000:
        raise HTTPException(400, f"{name}={text!r} is not a number from {least} up")
    return int(text)
