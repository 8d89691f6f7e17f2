"""The dashboard in a real browser: what it runs, what it lets run, and who can use it without a mouse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.dashboard import Dashboard
from tests.support.waiting import given, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    # The driver's own process and pipes are closed by the collector of garbage.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SERVICE = """
import asyncio
import upnext

worker = upnext.Worker("shop", concurrency=4)
order_placed = worker.event("order.placed")

@worker.task
async def hold(seconds: float, note: str = "") -> None:
    upnext.get_current_context().set_progress(0.5, note)
    await asyncio.sleep(seconds)

@worker.task
async def echo(text: str) -> str:
    return text

@worker.task
async def aloud(text: str) -> None:
    print(text, flush=True)
    await echo.options(labels={text[:60]: text}).submit(text)

@worker.task(rate_limit="100/s")
async def boom(text: str) -> None:
    raise ValueError(text)

@order_placed.on
async def confirm(order_id: str) -> str:
    return order_id

@worker.cron("0 9 * * *")
async def report() -> None: ...
"""
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "javascript:alert(3)",
    "</style><svg onload=alert(4)>",
    "}*{background:url(javascript:alert(5))}",
    "{{7*7}}<!--",
    "</textarea><details open ontoggle=alert(6)>",
    "\u202e\u0001\u2028&#x3c;script&#x3e;alert(7)",
)
FIXED_PAGES = (
    "/",
    "/hosts",
    "/workers",
    "/workers/shop",
    "/tasks",
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """One logged-in person: a page, and all that went wrong in it."""

    def __init__(self, browser: Any, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        self.base = f"http://{dashboard.listen}"
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.context.set_default_timeout(1000 * given(20))
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda one: self.wrong.append(f"console: {one.text}") if one.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        self.page.on("request", self._check)
        self.page.goto(dashboard.link())
        self.page.wait_for_url(f"{self.base}/")

    def _check(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:")):
            self.wrong.append(f"asked elsewhere: {request.url}")

    def open(self, path: str) -> Any:
        answer = self.page.goto(self.base + path)
        assert answer.status == 200, (path, answer.status)
        return self.page

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Any, dashboard: Dashboard) -> Iterator[Visit]:
    one = Visit(browser, dashboard)
    yield one
    one.close()


def status(dashboard: Dashboard, job_id: str) -> str:
    return dashboard.job(job_id)["status"]


def job_path(job_id: str) -> str:
    return f"/jobs/{urllib.parse.quote(job_id)}"


@pytest.fixture(scope="module")
def pages(dashboard: Dashboard) -> Iterator[list[str]]:
    """Every kind of page, with something on it."""
    dead, held = dashboard.submit("boom", text="no"), dashboard.submit("hold", seconds=600, note="half")
    wait_until(lambda: status(dashboard, dead) == "dead" or status(dashboard, dead) == "failed", 30, "a failed job")
    wait_until(lambda: status(dashboard, held) == "running", 30, "a running job")
    host = dashboard.get("/hosts").json[0]["daemon"]
    yield [
        *FIXED_PAGES,
        "/tasks/boom",
        job_path(dead),
        job_path(held),
        f"/flows/{urllib.parse.quote(held)}",
        f"/hosts/{host}",
        f"/hosts/{host}/worker-1",
    ]
    dashboard.post(f"{job_path(held)}/cancel")


def test_no_page_has_an_error_or_asks_another_host(visit: Visit, pages: list[str]) -> None:
    for path in pages:
        visit.open(path)
    assert visit.wrong == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_keeps_people_out(visit: Visit, pages: list[str], theme: str) -> None:
    """axe-core finds nothing serious: names, contrast, roles, order."""
    visit.page.emulate_media(color_scheme=theme)
    axe = axe_api.Axe()
    found: list[str] = []
    for path in pages:
        visit.open(path)
        found += [
            f"{path}: {one['id']}: {[node['html'][:160] for node in one['nodes']]}"
            for one in axe.run(visit.page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
    assert found == []


@pytest.mark.parametrize("width", [360, 2560])
def test_no_page_is_wider_than_the_screen(visit: Visit, pages: list[str], width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    wide: dict[str, int] = {}
    for path in pages:
        visit.open(path)
        found = visit.page.evaluate("document.documentElement.scrollWidth")
        if found > width:
            wide[path] = found
    assert wide == {}


def test_a_job_is_cancelled_by_keyboard_alone(visit: Visit, dashboard: Dashboard) -> None:
    job_id = dashboard.submit("hold", seconds=600)
    wait_until(lambda: status(dashboard, job_id) == "running", 30, "the job to run")
    questions: list[str] = []

    def accept(dialog: Any) -> None:
        questions.append(dialog.message)
        dialog.accept()

    visit.page.on("dialog", accept)
    page = visit.open(job_path(job_id))
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Cancel":
            break
    else:
        pytest.fail("Tab never reaches the button")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    page.wait_for_selector(".badge:has-text('cancelled')")
    assert status(dashboard, job_id) == "cancelled"
    assert questions == ["Cancel this job?"]
    assert visit.wrong == []


def test_hostile_texts_stay_texts(visit: Visit, dashboard: Dashboard) -> None:
    """In arguments, results, errors, progress, event fields, filters and ids: no dialog opens, nothing is refused by the policy."""
    visit.page.on("dialog", lambda dialog: (visit.wrong.append(f"executed: {dialog.message}"), dialog.dismiss()))
    jobs: list[str] = []
    for text in HOSTILE:
        jobs += [dashboard.submit("boom", text=text), dashboard.submit("echo", text=text)]
        jobs.append(dashboard.submit("hold", seconds=0.01, note=text))
        jobs.append(dashboard.submit("aloud", text=text))
        dashboard.post("/events/order.placed/send", {"fields": json.dumps({"order_id": text})})
    for job_id in jobs:
        wait_until(lambda one=job_id: status(dashboard, one) not in ("queued", "running"), 30, "a job to end")
    labelled = [one["job_id"] for one in dashboard.get("/jobs?state=done&task=echo").json]
    labelled = [one for one in labelled if dashboard.job(one)["labels"]]
    assert len(labelled) == len(HOSTILE)
    host = dashboard.get("/hosts").json[0]["daemon"]
    slots = [f"/hosts/{host}/worker-{number}" for number in (1, 2)]
    printed = [row["text"] for slot in slots for row in dashboard.get(slot).json["lines"]]
    assert any(HOSTILE[1] in text for text in printed)
    queries = [urllib.parse.quote(text) for text in HOSTILE]
    for path in (
        *FIXED_PAGES,
        "/tasks/boom",
        *slots,
        *(job_path(job_id) for job_id in (*jobs, *labelled)),
        *(f"/activity?daemon={query}" for query in queries),
        *(f"/dead?task={query}&fingerprint={query}" for query in queries),
        *(f"/{part}/{query}" for part in ("tasks", "jobs", "flows", "workers", "hosts") for query in queries),
        *(f"/jobs?task={query}&worker={query}&root={query}" for query in queries),
    ):
        visit.page.goto(visit.base + path)
        assert not any(char in visit.page.inner_text("body") for char in "\u202e\u0001"), path
        assert visit.page.locator("img[src=x], svg[onload], [onerror], [ontoggle]").count() == 0, path
    # A filter that names no task is answered with 400 or an empty page; the browser notes the former.
    assert [one for one in visit.wrong if "status of 40" not in one] == []


def test_a_task_is_run_by_its_form_and_a_slip_is_shown_beside_it(visit: Visit, dashboard: Dashboard) -> None:
    page = visit.open("/tasks/hold")
    page.locator("#call [name='arg.seconds']").fill("soon")
    page.locator("#call [name='arg.note']").fill(HOSTILE[1])
    page.get_by_role("button", name="Submit a job").first.click()
    refused = page.wait_for_selector("#call [role=alert]")
    assert "argument 'seconds' must be float, not 'soon'" in refused.inner_text()
    assert page.locator("#call [name='arg.note']").input_value() == HOSTILE[1]
    with page.expect_response(lambda answer: answer.request.resource_type == "fetch") as refreshed:
        pass
    assert refreshed.value.status in (200, 304), "the page under the form's address is kept fresh"
    assert page.locator("#call [name='arg.note']").input_value() == HOSTILE[1]
    page.locator("#call [name='arg.seconds']").fill("600")
    page.get_by_role("button", name="Submit a job").first.click()
    page.wait_for_url("**/jobs/**")
    job_id = urllib.parse.unquote(urllib.parse.urlsplit(page.url).path.rpartition("/")[2])
    assert dashboard.job(job_id)["arguments"] == {"seconds": 600, "note": HOSTILE[1]}
    dashboard.post(f"{job_path(job_id)}/cancel")
    # The browser notes the answer that refused the form.
    assert [one for one in visit.wrong if "status of 400" not in one] == []


def test_what_a_person_does_survives_the_refresh(visit: Visit, dashboard: Dashboard) -> None:
    dashboard.post("/tasks/echo/pause")
    try:
        ids = [dashboard.submit("echo", text=str(number)) for number in range(2)]
        page = visit.open("/jobs?state=queued&task=echo")
        box = page.locator(f"input[value='{ids[0]}']")
        box.check()
        box.focus()
        further = dashboard.submit("echo", text="new")
        page.wait_for_selector(f"input[value='{further}']")
        assert box.is_checked()
        assert page.evaluate("document.activeElement.value") == ids[0]
        assert not page.locator(f"input[value='{ids[1]}']").is_checked()
    finally:
        dashboard.post("/tasks/echo/resume")
    page = visit.open("/tasks/echo")
    page.locator("#run summary").click()
    page.locator("#run textarea").fill('{"text": "typed"}')
    with page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
        pass
    assert page.locator("#run textarea").input_value() == '{"text": "typed"}'
    assert visit.wrong == []


def test_a_dashboard_that_restarts_is_found_again(browser: Any, daemon: Daemon) -> None:
    with Dashboard(daemon) as first:
        visit = Visit(browser, first)
        visit.open("/tasks")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            visit.page.wait_for_selector("#stale:not([hidden])")
            assert "reconnecting, as of" in visit.page.locator("#stale").inner_text()
        finally:
            os.kill(first.pid, signal.SIGCONT)
        visit.page.wait_for_selector("#stale[hidden]", state="attached")
        visit.close()


def test_times_are_relative_and_exact_on_hover(visit: Visit, dashboard: Dashboard) -> None:
    job_id = dashboard.submit("echo", text="x")
    wait_until(lambda: status(dashboard, job_id) == "done", 30, "the job to end")
    page = visit.open(job_path(job_id))
    time = page.locator("time").first
    assert time.get_attribute("datetime")
    page.wait_for_function("document.querySelector('time').title !== ''")
    assert "ago" in time.inner_text() or "now" in time.inner_text() or "sec" in time.inner_text()


def test_pages_work_without_a_script(browser: Any, dashboard: Dashboard) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"http://{dashboard.listen}/login")
    page.locator("input[name=token]").fill(Path(dashboard.state, "dashboard.token").read_text().strip())
    page.keyboard.press("Enter")
    page.wait_for_url(f"http://{dashboard.listen}/")
    page.goto(f"http://{dashboard.listen}/tasks/echo")
    page.locator("#run summary").click()
    page.locator("#run textarea").fill('{"text": "by form"}')
    page.locator("#run button").click()
    page.wait_for_url("**/jobs/**")
    assert "echo" in page.locator("h1").inner_text()
    context.close()
