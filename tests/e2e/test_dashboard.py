"""The dashboard: who gets in, what the pages say, what the buttons do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.daemon import BIN, Daemon
from tests.support.dashboard import Answer, Dashboard
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until
from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.series import FINE, Times
from upnext.dashboard import auth
from upnext.dashboard.auth import Role

SERVICE = """
import asyncio
import upnext

worker = upnext.Worker("shop", concurrency=4)
order_placed = worker.event("order.placed")

@worker.task
async def hold(seconds: float, note: str = "") -> None:
    await child.options(labels={"tenant": note}).submit(note)
    await asyncio.sleep(seconds)

@worker.task
async def child(note: str) -> None: ...

@worker.task(rate_limit="100/s", max_concurrency=2)
async def limited(number: int) -> int:
    return number

@worker.task
def boom(text: str) -> None:
    if text == "unknown":
        raise LookupError(text)
    raise ValueError(text)

@order_placed.on
async def confirm(order_id: str) -> str:
    return order_id

@worker.task(redact=("card",))
async def pay(card: str, amount: int) -> int:
    if card != "4000-9999" or amount == 1:
        raise ValueError(f"{card} was declined")
    return amount

@worker.task
async def aloud(text: str) -> None:
    print(text, flush=True)

@worker.cron("0 9 * * *")
async def report() -> None: ...
"""
EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x1b]0;x\x07{{7*7}}"
SECRET = "card-4000-1234"
PAGES = (
    "/",
    "/hosts",
    "/workers",
    "/workers/shop",
    "/tasks",
    "/tasks/boom",
    "/jobs",
    "/crons",
    "/events",
    "/dead",
    "/limits",
    "/apis",
    "/activity",
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def dashboard(daemon: Daemon) -> Iterator[Dashboard]:
    with Dashboard(daemon) as running:
        yield running


def ended(dashboard: Dashboard, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = dashboard.job(job_id)
        return found if found["status"] in ("done", "failed", "cancelled", "dead") else None

    return wait_until(look, 20, f"{job_id} to end") or {}


# -- who gets in --------------------------------------------------------------------------------------------------------------------------


def test_the_token_is_ours_alone(dashboard: Dashboard) -> None:
    assert (dashboard.state / "dashboard.token").stat().st_mode & 0o777 == 0o600
    assert len(dashboard.token) >= 40
    assert dashboard.token not in dashboard.log()


@pytest.mark.parametrize("path", PAGES)
def test_no_page_opens_without_a_login(dashboard: Dashboard, path: str) -> None:
    assert dashboard.get(path, token=None).status == 401
    assert dashboard.get(path, token="wrong").status == 401
    shown = dashboard.get(path, token=None, accept="text/html")
    assert (shown.status, shown.body) == (303, b"")
    assert shown.headers["location"].startswith("/login")


@pytest.mark.parametrize("path", [*PAGES, "/healthz", "/login", "/static/style.css"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_another_host_name_is_refused(dashboard: Dashboard, path: str, host: str) -> None:
    answer = dashboard.get(path, headers={"Host": host})
    assert answer.status in (400, 403)
    assert b"shop" not in answer.body


@pytest.mark.parametrize("path", ["/healthz", "/login"])
def test_open_pages_say_nothing_of_the_queue(dashboard: Dashboard, path: str) -> None:
    answer = dashboard.get(path, token=None, accept="text/html")
    assert answer.status == 200
    assert not any(word in answer.text for word in ("shop", "boom", "default"))


def test_a_link_logs_in_once(dashboard: Dashboard) -> None:
    link = urllib.parse.urlsplit(dashboard.link())
    ticket = urllib.parse.parse_qs(link.query)["ticket"][0]
    assert link.netloc == dashboard.listen
    shown = dashboard.get(f"{link.path}?{link.query}", token=None, accept="text/html")
    assert "set-cookie" not in shown.headers
    origin = {"Origin": f"http://{dashboard.listen}"}
    first = dashboard.post("/login", {"ticket": ticket, "next": "/jobs"}, token=None, headers=origin)
    assert (first.status, first.headers["location"]) == (303, "/jobs")
    assert all(word in first.headers["set-cookie"] for word in ("HttpOnly", "SameSite=strict", "Max-Age=43200"))
    again = dashboard.post("/login", {"ticket": ticket}, token=None, headers=origin)
    assert again.status == 401
    cookie = {"Cookie": dashboard.cookie(first)}
    assert dashboard.get("/jobs", token=None, headers=cookie).status == 200


@pytest.mark.parametrize(
    "next_page", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_a_login_leads_to_no_other_site(dashboard: Dashboard, next_page: str) -> None:
    origin = {"Sec-Fetch-Site": "same-origin"}
    form = {"token": dashboard.token, "next": next_page}
    assert dashboard.post("/login", form, token=None, headers=origin).headers["location"] == "/"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "OURS"},
    ],
)
def test_only_our_own_pages_may_act(dashboard: Dashboard, headers: dict[str, str]) -> None:
    login = dashboard.post("/login", {"token": dashboard.token}, token=None, headers={"Sec-Fetch-Site": "same-origin"})
    headers = {**headers, "Cookie": dashboard.cookie(login)}
    if headers.get("Origin") == "OURS":
        headers["Origin"] = f"http://{dashboard.listen}"
    answer = dashboard.post("/tasks/boom/pause", token=None, headers=headers)
    assert (answer.status, answer.json["error"]["code"]) == (403, "cross_site")
    assert not dashboard.get("/tasks/boom").json["paused"]


def test_every_answer_carries_the_headers(dashboard: Dashboard) -> None:
    for path, token in (("/", ""), ("/nowhere", ""), ("/login", None), ("/healthz", None), ("/", None)):
        headers = dashboard.get(path, token=token, accept="text/html").headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "no-store" in headers["cache-control"]
        assert "Cookie" in headers["vary"]
        assert "server" not in headers


def test_a_page_that_did_not_change_is_not_sent_again(dashboard: Dashboard) -> None:
    first = dashboard.get("/crons", accept="text/html")
    again = dashboard.get("/crons", accept="text/html", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_silent_and_too_many_connections_are_ended(dashboard: Dashboard) -> None:
    held = [socket.create_connection(("127.0.0.1", dashboard.port)) for _ in range(64)]
    try:
        for one in held:
            one.settimeout(given(20))
        wait_until(lambda: _refused(dashboard), 20, "a further connection to be refused")
        assert held[0].recv(1) == b""  # no headers came for 10 s
        wait_until(lambda: not _refused(dashboard), 30, "places to be free again")
    finally:
        for one in held:
            one.close()


def _refused(dashboard: Dashboard) -> bool:
    try:
        return dashboard.get("/healthz", token=None).status != 200
    except (OSError, http.client.HTTPException):
        return True


def run(daemon: Daemon, *args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**daemon.environment, "UPNEXT_REDIS_URL": daemon.broker_url}
    command = [str(BIN / "upnext"), "dashboard", "--state-dir", str(daemon.directory / "other"), *args]
    return subprocess.run(
        command, env=environment, input=text, capture_output=True, text=True, timeout=given(30), check=False
    )


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--listen", "0.0.0.0:8399"), "can be reached from other machines"),
        (("--listen", "web:99999"), "is not HOST:PORT"),
        (("--listen", "8300"), "is not HOST:PORT"),
        (("--proxy-header", "X-User"), "only believed on a Unix socket"),
        (("--users", "/nowhere/users"), "users file /nowhere/users: No such file"),
    ],
)
def test_what_would_be_open_is_refused_in_one_line(daemon: Daemon, args: tuple[str, ...], line: str) -> None:
    done = run(daemon, *args)
    assert done.returncode == 64
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_named(daemon: Daemon, dashboard: Dashboard) -> None:
    done = run(daemon, "--listen", dashboard.listen)
    assert done.returncode == 69
    assert f"can't listen on {dashboard.listen}" in done.stderr


def test_a_token_that_others_can_read_is_not_used(daemon: Daemon) -> None:
    folder = daemon.directory / "other"
    folder.mkdir(exist_ok=True)
    (folder / "dashboard.token").write_text("open\n")
    (folder / "dashboard.token").chmod(0o644)
    done = run(daemon, "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 64
    assert "can be read by others" in done.stderr


# -- users and roles ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team(daemon: Daemon) -> Iterator[Dashboard]:
    """A dashboard with a viewer and an admin."""
    file = daemon.directory / "users"
    lines = [
        auth.user_line(name, role, f"{name}-password", os.urandom(16))
        for name, role in (("vera", Role.VIEWER), ("ada", Role.ADMIN))
    ]
    file.write_text("\n".join(lines))
    with Dashboard(daemon, "--users", str(file)) as running:
        yield running


def log_in(team: Dashboard, name: str) -> dict[str, str]:
    answer = team.post(
        "/login", {"name": name, "password": f"{name}-password"}, token=None, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status == 303, answer.text
    return {"Cookie": team.cookie(answer), "Sec-Fetch-Site": "same-origin"}


def test_a_wrong_password_is_refused(team: Dashboard) -> None:
    for name, password in (("vera", "x"), ("vera", ""), ("nobody", "vera-password")):
        form = {"name": name, "password": password}
        answer = team.post("/login", form, token=None, headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.status == 401
        assert "set-cookie" not in answer.headers
    assert "vera-password" not in team.log()


def test_a_viewer_sees_no_payload_and_changes_nothing(team: Dashboard) -> None:
    vera, ada = log_in(team, "vera"), log_in(team, "ada")
    form = {"kwargs": json.dumps({"text": SECRET})}
    dead = team.post("/tasks/boom/run", form, token=None, headers=ada).json["job_id"]
    aloud = team.post("/tasks/aloud/run", form, token=None, headers=ada).json["job_id"]
    refused = team.post("/tasks/limited/run", {"arg.number": SECRET}, token=None, headers=ada)
    assert refused.status == 400
    holding = team.post(
        "/tasks/hold/run", {"kwargs": json.dumps({"seconds": 600, "note": SECRET})}, token=None, headers=ada
    ).json["job_id"]
    path = f"/jobs/{urllib.parse.quote(dead)}"
    wait_until(lambda: team.get(path, token=None, headers=ada).json["status"] == "failed", 20, "the job to fail")
    flow = f"/flows/{urllib.parse.quote(holding)}"
    tree = wait_until(
        lambda: (found := team.get(flow, token=None, headers=ada).json)["groups"] and found, 20, "a child"
    )
    labelled = f"/jobs/{urllib.parse.quote(tree['groups'][0]['nodes'][0]['job_id'])}"
    wait_until(lambda: team.get(labelled, token=None, headers=ada).json["status"] == "done", 20, "the child to end")
    assert team.get(labelled, token=None, headers=ada).json["labels"] == {"tenant": SECRET}
    assert team.get(labelled, token=None, headers=vera).json["labels"].keys() == {"tenant"}
    host = team.get("/hosts", token=None, headers=vera).json[0]["daemon"]
    slots = [f"/hosts/{host}/worker-{number}" for number in (1, 2)]
    aloud_path = f"/jobs/{urllib.parse.quote(aloud)}"
    wait_until(lambda: team.get(aloud_path, token=None, headers=ada).json["status"] == "done", 20, "the line")
    assert any(SECRET in team.get(slot, token=None, headers=ada).text for slot in slots)
    for page in (
        *PAGES,
        path,
        aloud_path,
        labelled,
        f"/jobs?root={urllib.parse.quote(holding)}",
        f"/hosts/{host}",
        *slots,
        *(f"{slot}/preview" for slot in slots),
        f"/jobs/{urllib.parse.quote(holding)}",
        f"/flows/{urllib.parse.quote(holding)}",
        "/jobs?state=dead",
    ):
        for accept in ("text/html", "application/json"):
            shown = team.get(page, token=None, headers=vera, accept=accept)
            assert shown.status == 200, page
            assert SECRET not in shown.text, page
    assert SECRET in team.get(path, token=None, headers=ada).text
    for action in (
        f"{path}/retry",
        f"{path}/rerun",
        f"/jobs/{urllib.parse.quote(holding)}/cancel",
        "/tasks/boom/pause",
        "/tasks/boom/purge",
        "/tasks/boom/run",
        f"{slots[0]}/restart",
        f"{slots[0]}/stacks",
        f"{path}/stack",
        "/tasks/boom/limits",
        "/crons/report/run",
        "/events/order.placed/send",
    ):
        assert team.post(action, token=None, headers=vera).status == 403, action
    for action, form in (("/jobs/cancel", {"id": holding}), ("/dead/purge", {"id": dead})):
        assert team.post(action, form, token=None, headers=vera).status == 403, action
    assert team.post("/tasks/limited/run", {"arg.number": "7"}, token=None, headers=vera).status == 403
    assert team.post(f"/hosts/{host}/stop", token=None, headers=vera).status == 403
    assert team.post(f"/jobs/{urllib.parse.quote(holding)}/cancel", token=None, headers=ada).status == 200
    assert SECRET not in team.log()


def test_a_role_that_changes_holds_at_once(daemon: Daemon, team: Dashboard) -> None:
    ada = log_in(team, "ada")
    file = daemon.directory / "users"
    before = file.read_text()
    try:
        file.write_text(before.replace("ada:admin", "ada:viewer"))
        assert team.post("/tasks/boom/pause", token=None, headers=ada).status == 403
        file.write_text("\n".join(line for line in before.splitlines() if not line.startswith("ada")))
        assert team.get("/", token=None, headers=ada).status == 401
    finally:
        file.write_text(before)


# -- what the pages say -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_for_people_and_for_scripts(dashboard: Dashboard, path: str) -> None:
    shown = dashboard.get(path, accept="text/html,application/xhtml+xml")
    assert shown.status == 200, shown.text
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1>" in shown.text
    assert dashboard.get(path).headers["content-type"] == "application/json"


def test_a_page_that_is_not_there(dashboard: Dashboard) -> None:
    for path in ("/nowhere", "/jobs/boom:n1-1", "/hosts/none", "/workers/none", "/flows/boom:n1-1"):
        answer = dashboard.get(path)
        assert answer.status == 404, path
        assert answer.json["error"]["message"]
    assert dashboard.get("/tasks/bom").json["error"]["message"].endswith("did you mean boom?")
    assert dashboard.get("/jobs?state=odd").status == 400
    assert dashboard.get("/jobs?limit=1000").status == 400


def test_nothing_of_a_payload_is_executed(dashboard: Dashboard) -> None:
    job_id = dashboard.submit("boom", text=EVIL)
    ended(dashboard, job_id)
    for path in ("/", "/dead", "/jobs", "/jobs?state=dead", f"/jobs/{urllib.parse.quote(job_id)}", "/tasks/boom"):
        text = dashboard.get(path, accept="text/html").text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
        assert not any(char in text for char in "\u202e\x1b\x07"), path
        assert "49" not in text.split("boom")[0], path
    found = dashboard.job(job_id)
    assert found["arguments"] == {"text": EVIL}


def test_a_running_job_shows_its_process(daemon: Daemon, dashboard: Dashboard) -> None:
    job_id = dashboard.submit("hold", seconds=600)
    found = wait_until(lambda: (one := dashboard.job(job_id))["status"] == "running" and one, 20, "it to run")
    assert found
    place = found["place"]
    assert place["pid"] == daemon.worker_pids()[place["slot"]]
    assert (place["generation"], place["daemon_name"]) == (1, daemon.status()["name"])
    assert place["rss_bytes"] > 1 << 20
    own_page = f"/hosts/{place['daemon']}/{place['slot']}"
    wait_until(lambda: job_id in [one["job_id"] for one in dashboard.get(own_page).json["in_flight"]], 20, "its row")
    preview = dashboard.get(f"/hosts/{place['daemon']}/{place['slot']}/preview").json
    assert preview["in_flight_count"] >= 1
    stacks = dashboard.post(f"/hosts/{place['daemon']}/{place['slot']}/stacks")
    assert "hold" in stacks.text
    flow = wait_until(
        lambda: (tree := dashboard.get(f"/flows/{urllib.parse.quote(job_id)}").json)["groups"] and tree, 20, "its child"
    )
    assert flow
    assert [(group["task"], group["count"]) for group in flow["groups"]] == [("child", 1)]
    assert dashboard.post(f"/jobs/{urllib.parse.quote(job_id)}/cancel").json == {"cancelled": [job_id]}
    assert ended(dashboard, job_id)["status"] == "cancelled"
    assert dashboard.post(f"/jobs/{urllib.parse.quote(job_id)}/cancel").status == 409


def test_a_killed_worker_shows_at_once(daemon: Daemon, dashboard: Dashboard) -> None:
    job_id = dashboard.submit("hold", seconds=600)
    # A job shows as running once a worker has taken it; only one that has begun, as its child proves, is charged with a crash.
    flow = f"/flows/{urllib.parse.quote(job_id)}"
    wait_until(lambda: dashboard.get(flow).json["groups"], 20, "its child")
    first = dashboard.job(job_id)
    os.kill(first["place"]["pid"], signal.SIGKILL)
    killed_at = time.monotonic()

    def elsewhere() -> dict[str, Any] | None:
        one = dashboard.job(job_id)
        again = one["status"] == "running" and one["place"] and one["place"]["pid"] != first["place"]["pid"]
        return one if again else None

    try:
        found = wait_until(elsewhere, 20, "it to run again")
        assert found
        assert time.monotonic() - killed_at < 20
        assert found["crashes"] == 1
        assert "SIGKILL" in found["cause"]
        place = first["place"]

        def of_the_slot() -> list[str]:
            rows = dashboard.get(f"/activity?daemon={place['daemon']}").json
            return [one["what"] for one in rows if one["target"] == place["slot"]]

        wait_until(lambda: any("took its place" in what for what in of_the_slot()), 30, "the activity to tell of it")
        [died] = [what for what in of_the_slot() if f"process {place['pid']} ended" in what]
        assert "SIGKILL" in died
        assert job_id in died
        page = f"/hosts/{place['daemon']}/{place['slot']}"
        assert any("SIGKILL" in one["what"] for one in dashboard.get(page).json["lately"])
        assert "Former lives" in dashboard.get(page, accept="text/html").text
        assert dashboard.get("/activity?daemon=other").json == []
        assert "took its place" in dashboard.get("/activity", accept="text/html").text
        own = dashboard.get(f"/jobs/{urllib.parse.quote(job_id)}", accept="text/html").text
        assert f"Its process ended: {place['slot']}" in own
        assert f"process {place['pid']} ended" in own
    finally:
        dashboard.post(f"/jobs/{urllib.parse.quote(job_id)}/cancel")


def test_a_daemon_that_is_paused_is_an_alert(daemon: Daemon, dashboard: Dashboard) -> None:
    host = dashboard.get("/hosts").json[0]["daemon"]
    assert dashboard.post(f"/hosts/{host}/pause").status == 200
    wait_until(lambda: daemon.status()["mode"] == "paused", 20, "it to pause")
    titles = wait_until(
        lambda: [one["title"] for one in dashboard.get("/").json["alerts"] if "is paused" in one["title"]],
        20,
        "an alert",
    )
    assert titles
    assert dashboard.post(f"/hosts/{host}/resume").status == 200
    wait_until(lambda: daemon.status()["mode"] == "running", 20, "it to resume")

    def complete() -> bool:
        kinds = {(one["kind"], one["what"]) for one in dashboard.get(f"/activity?daemon={host}").json}
        return {("mode", "mode: paused"), ("mode", "mode: running"), ("action", "pause"), ("action", "resume")} <= kinds

    assert wait_until(complete, 30, "the activity to tell of it and of who did it")


def test_the_last_hour_is_drawn(daemon: Daemon) -> None:
    client = redis.Redis.from_url(daemon.broker_url)
    keys, now_ms = Keys("default"), time.time_ns() // 1_000_000
    times = Times()
    times.note(0.5, 2.0)
    for back in range(1, 11):
        minute = series.at(now_ms, FINE) - back
        client.hset(
            keys.series(FINE, minute), mapping={"=": "1", "boom": f"{1000 - 60 * back} {10 - back} 0 0 0 7 1 9000"}
        )
        client.hset(keys.times(FINE, minute), "boom", times.encode())
    with Dashboard(daemon) as fresh:
        [of_boom] = [row["series"] for row in fresh.get("/tasks").json if row["task"] == "boom"]
        assert len(of_boom["ended"]) == 60
        assert [count for count in of_boom["ended"] if count] == [61] * 9
        whole = fresh.get("/").json["series"]
        assert [count for count in whole["failed"] if count] == [1] * 9
        assert 1 < min(filter(None, whole["run_p95_s"])) < 3
        of_it = fresh.get("/tasks/boom").json["series"]
        assert (len(of_it["1m"]["ended"]), len(of_it["15m"]["ended"]), of_it["15m"]["step_s"]) == (180, 672, 900)
        for path in ("/", "/tasks", "/tasks/boom"):
            assert 'class="spark' in fresh.get(path, accept="text/html").text


def test_the_jobs_below_a_job(dashboard: Dashboard) -> None:
    root = dashboard.submit("hold", seconds=0.1, note="flow")
    ended(dashboard, root)

    def group() -> dict[str, Any] | None:
        [found] = dashboard.get(f"/flows/{root}").json["groups"]
        return found if found["states"] == {"done": 1} else None

    found = wait_until(group, 20, "the child to end") or {}
    assert (found["task"], found["count"]) == ("child", 1)
    [row] = dashboard.get(f"/jobs?root={root}").json
    assert (row["job_id"], row["status"], row["parent_id"]) == (found["nodes"][0]["job_id"], "done", root)
    assert "child" in dashboard.get(f"/flows/{root}", accept="text/html").text


# -- what the buttons do ------------------------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_retried_and_purged_by_group(dashboard: Dashboard) -> None:
    for number in range(3):
        ended(dashboard, dashboard.submit("boom", text=f"group {number}"))
    shown = dashboard.get("/dead?task=boom", accept="text/html").text
    assert "ValueError" in shown
    before = len(dashboard.get("/dead?task=boom").json)
    retried = dashboard.post("/dead/retry", {"task": "boom"})
    assert len(retried.json["retried"]) == before
    wait_until(lambda: len(dashboard.get("/dead?task=boom").json) == before, 20, "them to fail again")
    other = ended(dashboard, dashboard.submit("boom", text="unknown"))

    def by_type() -> dict[str, dict[str, Any]] | None:
        found = {one["type"]: one for one in dashboard.get("/dead?task=boom&by=group").json}
        return (
            found
            if {kind: one["count"] for kind, one in found.items()} == {"ValueError": before, "LookupError": 1}
            else None
        )

    groups = wait_until(by_type, 20, "both kinds to be counted") or {}
    assert (groups["ValueError"]["count"], groups["ValueError"]["ended"]) == (before, 2 * before)
    assert "in boom" in groups["ValueError"]["location"]
    of_it = f"/dead?task=boom&fingerprint={groups['ValueError']['fingerprint']}"
    assert len(dashboard.get(of_it).json) == before
    form = {"task": "boom", "fingerprint": groups["LookupError"]["fingerprint"]}
    purged = dashboard.post("/dead/purge", form)
    assert purged.json["purged"] == [other["job_id"]]
    purged = dashboard.post("/dead/purge", {"task": "boom"})
    assert len(purged.json["purged"]) == before
    assert dashboard.get("/dead?task=boom").json == []
    assert dashboard.post("/dead/purge").status == 400


def test_a_job_is_run_again_with_other_arguments(dashboard: Dashboard) -> None:
    first = dashboard.submit("limited", number=1)
    ended(dashboard, first)
    path = f"/jobs/{urllib.parse.quote(first)}/rerun"
    again = dashboard.post(path, {"kwargs": '{"number": 7}'}).json["job_id"]
    assert ended(dashboard, again)["result"] == 7
    assert dashboard.post(path, {"kwargs": "[1]"}).json["error"]["message"].startswith("kwargs is not a JSON object")
    assert dashboard.post(path, {"kwargs": '{"odd": 7}'}).status == 400


def test_no_page_shows_a_redacted_argument_and_a_form_gives_it_back(dashboard: Dashboard) -> None:
    card = "4000-9999"
    job_id = dashboard.submit("pay", card=card, amount=1)
    declined = ended(dashboard, job_id)
    assert declined["arguments"] == {"card": "[redacted]", "amount": 1}
    assert declined["error"]["message"] == "[redacted] was declined"
    shown = f"/jobs/{urllib.parse.quote(job_id)}"
    for path in (shown, "/jobs", "/dead", "/tasks/pay", "/"):
        for accept in ("text/html", "application/json"):
            assert card not in dashboard.get(path, accept=accept).text, (path, accept)
    edited = {"kwargs": '{"card": "[redacted]", "amount": 5}'}
    again = dashboard.post(f"{shown}/rerun", edited).json["job_id"]
    assert ended(dashboard, again)["result"] == 5, "it got the card"


def test_a_task_is_run_by_a_form_of_its_signature(dashboard: Dashboard) -> None:
    page = dashboard.get("/tasks/limited", accept="text/html").text
    assert 'name="arg.number"' in page
    ran = dashboard.post("/tasks/limited/run", {"arg.number": "7"})
    assert ended(dashboard, ran.json["job_id"])["result"] == 7
    refused = dashboard.post("/tasks/limited/run", {"arg.number": "many"})
    assert (refused.status, refused.json["error"]["message"].partition(";")[0]) == (
        400,
        "argument 'number' must be int, not 'many'",
    )
    shown = dashboard.post("/tasks/limited/run", {"arg.number": EVIL}, accept="text/html")
    assert shown.status == 400
    assert "Refused:" in shown.text
    assert "<script>alert" not in shown.text
    assert '<link rel="canonical" href="/tasks/limited">' in shown.text


def test_a_slot_shows_what_it_printed_last(dashboard: Dashboard) -> None:
    ended(dashboard, dashboard.submit("aloud", text="printed by a job"))
    host = dashboard.get("/hosts").json[0]["daemon"]

    def printed() -> list[dict[str, Any]]:
        pages = [dashboard.get(f"/hosts/{host}/worker-{number}") for number in (1, 2)]
        return [row for page in pages for row in page.json["lines"] if row["text"] == "printed by a job"]

    [row] = wait_until(printed, 20, "the line") or []
    assert isinstance(row["pid"], int)
    slots = [dashboard.get(f"/hosts/{host}/worker-{number}", accept="text/html").text for number in (1, 2)]
    assert any("printed by a job" in page for page in slots)


def test_limits_are_set_and_shown(daemon: Daemon, dashboard: Dashboard) -> None:
    assert dashboard.post("/tasks/limited/limits", {"rate_limit": "5/minute", "max_concurrency": "3"}).status == 200
    rows = wait_until(
        lambda: [one for one in dashboard.get("/limits").json if one["concurrency"] == 3], 20, "the new limit"
    )
    assert rows
    assert rows[0]["rate_text"] == "5 in 60 s"
    for form in ({"rate_limit": "often"}, {"max_concurrency": "0"}, {"max_concurrency": "x"}):
        assert dashboard.post("/tasks/limited/limits", form).status == 400


def test_an_event_reaches_its_handlers(dashboard: Dashboard) -> None:
    sent = dashboard.post("/events/order.placed/send", {"fields": '{"order_id": "A1"}'})
    (handler,) = sent.json["job_ids"]
    assert ended(dashboard, handler)["result"] == "A1"
    assert dashboard.post("/events/none/send").status == 404


def test_a_cron_is_run_paused_and_resumed(dashboard: Dashboard) -> None:
    ended(dashboard, dashboard.post("/crons/report/run").json["job_id"])
    for action, paused in (("pause", True), ("resume", False)):
        assert dashboard.post(f"/crons/report/{action}").status == 200
        wait_until(lambda wanted=paused: dashboard.get("/tasks/report").json["paused"] is wanted, 20, action)
    assert dashboard.post("/crons/none/run").status == 400
    assert dashboard.post("/crons/report/remove").status == 400, "it is declared"


def test_a_schedule_made_at_run_time_is_shown_paused_run_and_removed(daemon: Daemon, dashboard: Dashboard) -> None:
    words = ("--cron", "0 3 1 1 *", "--kwargs", '{"number": 7}')
    assert daemon.cli("cron", "add", "yearly-sale", "limited", *words).returncode == 0

    def row() -> dict[str, Any]:
        return next((one for one in dashboard.get("/crons").json if one["name"] == "yearly-sale"), {})

    wait_until(lambda: row().get("kind") == "schedule", 20, "it to be shown")
    assert dashboard.post("/crons/yearly-sale/pause").status == 200
    wait_until(lambda: row().get("waits") == "it is paused", 20, "its pause to be shown")
    assert "yearly-sale" in dashboard.get("/crons", accept="text/html").text
    assert dashboard.post("/crons/yearly-sale/resume").status == 200
    ended(dashboard, dashboard.post("/crons/yearly-sale/run").json["job_id"])
    assert dashboard.post("/crons/yearly-sale/remove").status == 200
    wait_until(lambda: not row(), 20, "it to be gone")
    assert dashboard.post("/crons/yearly-sale/remove").status == 400


def test_many_jobs_are_cancelled_at_once_and_the_list_is_paged(dashboard: Dashboard) -> None:
    # A read that waits when a task is paused may still take its next job, which then goes to the lane of jobs that came back.
    host = dashboard.get("/hosts").json[0]["daemon"]
    dashboard.post(f"/hosts/{host}/drain")
    wait_until(lambda: dashboard.get(f"/hosts/{host}").json["state"] == "drained", 30, "the daemon to be drained")
    dashboard.post("/tasks/hold/pause")
    ids = [dashboard.submit("hold", seconds=1) for _ in range(5)]
    page = dashboard.get("/jobs?state=queued&task=hold&limit=2")
    assert [one["job_id"] for one in page.json] == ids[:2]
    further = page.headers["link"].partition(">")[0].removeprefix("<")
    assert [one["job_id"] for one in dashboard.get(further).json] == ids[2:4]
    explained = dashboard.job(ids[0])["explain"]
    assert explained["gate"] == "paused"
    assert sorted(dashboard.post("/jobs/cancel", {"id": ids}).json["cancelled"]) == sorted(ids)
    assert dashboard.post("/jobs/cancel", {"id": ["x"] * 1001}).status == 400
    assert dashboard.post("/jobs/cancel").status == 400
    dashboard.post("/tasks/hold/resume")
    dashboard.post(f"/hosts/{host}/resume")


def test_what_was_done_stands_in_the_activity(dashboard: Dashboard) -> None:
    dashboard.post("/tasks/child/pause")
    dashboard.post("/tasks/child/resume")
    newest = [one for one in dashboard.get("/activity").json if one["kind"] == "action"][:2]
    assert [(one["who"], one["what"], one["target"]) for one in newest] == [
        ("owner", "resume", "child"),
        ("owner", "pause", "child"),
    ]
    assert "owner: resume child" in dashboard.log()


def test_a_body_that_is_too_large_or_broken_is_refused(dashboard: Dashboard) -> None:
    answer = dashboard.post("/tasks/boom/run", {"kwargs": "x" * (3 << 20)})
    assert answer.status == 400
    wrong: Answer = dashboard.request(
        "POST", "/tasks/boom/run", form={"a": "{"}, headers={"Content-Type": "application/json"}
    )
    assert wrong.status == 400


def test_nothing_is_asked_when_nobody_looks(daemon: Daemon, dashboard: Dashboard) -> None:
    dashboard.get("/")
    import redis

    path = Path(daemon.broker_url.removeprefix("unix://"))
    with redis.Redis(unix_socket_path=str(path)) as client:

        def commands() -> dict[str, int]:
            rows = client.client_list(_type="normal")
            return {row["addr"] + row["id"]: int(row["tot-cmds"]) for row in rows if row["name"] == "upnext-dashboard"}

        before = commands()
        assert before
        settled = time.monotonic() + 3  # longer than a snapshot lives and a page refreshes
        wait_until(lambda: time.monotonic() > settled, 10, "three seconds")
        assert commands() == before
