"""docs/guides/django.md, as its readers run it: migrations, a daemon, gunicorn, requests; and what the backend promises beyond."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest

from tests.support import guides
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until

PAGE = "django.md"
SETTINGS = "mysite.settings"


def framework(name: str) -> str:
    """The package of Django's tasks that is tried, or skips the test by its name."""
    here = f"Python {sys.version_info.major}.{sys.version_info.minor} with Django {django.__version__}"
    if name == "django.tasks" and django.VERSION[0] < 6:
        pytest.skip(f"Django 6 (django.tasks) needs Python 3.12; this is {here}")
    if name == "django_tasks" and importlib.util.find_spec("django_tasks") is None:
        pytest.skip(f"django-tasks is for Python 3.11; this is {here}, without it")
    if name == "django_tasks" and django.VERSION[0] >= 6:
        pytest.skip(f"Django 6 has its own tasks; this is {here}")
    return name


EXTRA = """
import os
from django.apps import apps
from django.db import connections

import upnext
from shop.tasks import FRAMEWORK

signals = __import__(FRAMEWORK + ".signals", fromlist=["signals"])


def write(name):
    def received(sender, task_result, **rest):
        Order.objects.count()  # receivers may query, also those of async tasks
        errors = [one.exception_class_path for one in task_result.errors]
        with open(os.environ["SIGNALS"], "a") as file:
            file.write(f"{name} {task_result.task.name} {task_result.kwargs or task_result.args} {task_result.status} {errors}\\n")
    return received


for name in ("task_started", "task_finished"):
    getattr(signals, name).connect(write(name), weak=False)


def open_connections():
    return [one.alias for one in connections.all(initialized_only=True) if one.connection is not None]


@worker.task
def looks() -> list[str]:
    before = open_connections()
    Order.objects.count()
    assert open_connections() == ["default"]
    return before


plain = upnext.Worker("plain", concurrency=1)


@plain.task
def plainly_looks() -> list[str]:
    before = open_connections()
    Order.objects.count()
    return before
"""

MORE_TASKS = """

FRAMEWORK = "django.tasks"


@task
def fails(n, *, kind="value"):
    raise {"value": ValueError, "own": Odd}[kind](f"number {n}")


class Odd(Exception):
    pass


@task(backend="cpu")
def fails_in_a_process():
    raise Odd("there")


@task
def gives_no_json():
    return object()
"""


@pytest.fixture(scope="module", params=["django.tasks", "django_tasks"])
def project(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A daemon on the guide's project, with a few more tasks, and the environment of its other programs."""
    package = framework(request.param)
    signals = Path(tempfile.mkdtemp()) / "signals"
    daemon = Daemon("", workers=1, env={"SIGNALS": str(signals)})
    guides.write(PAGE, daemon.directory)
    amend(daemon.directory, package)
    daemon.service = daemon.directory / "jobs.py"
    environment = {"DJANGO_SETTINGS_MODULE": SETTINGS, "PYTHONPATH": "."}
    migrated = guides.python(
        *("-m", "django", "migrate", "--run-syncdb", "-v", "0"), folder=daemon.directory, environment=environment
    )
    assert migrated.returncode == 0, migrated.stderr
    with daemon:
        yield daemon, {**environment, "UPNEXT_REDIS_URL": daemon.broker_url, "SIGNALS": str(signals)}
    shutil.rmtree(signals.parent)


CPU = '"cpu": {"BACKEND": "upnext.contrib.django.UpNextBackend", "OPTIONS": {"executor": "process"}},'


def amend(folder: Path, package: str) -> None:
    with (folder / "jobs.py").open("a") as file:
        file.write(EXTRA)
    with (folder / "shop" / "tasks.py").open("a") as file:
        file.write(MORE_TASKS)
    settings = (
        (folder / "mysite" / "settings.py").read_text().replace('"retries": 3', '"retries": 1, "retry_delay": 0.1')
    )
    settings = settings.replace("TASKS = {\n", f"TASKS = {{\n    {CPU}\n")
    (folder / "mysite" / "settings.py").write_text(settings)
    if package == "django_tasks":
        tasks = (folder / "shop" / "tasks.py").read_text()
        (folder / "shop" / "tasks.py").write_text(tasks.replace("django.tasks", "django_tasks"))
        (folder / "mysite" / "settings.py").write_text(settings.replace('["shop"]', '["django_tasks", "shop"]'))


def test_orders_get_their_invoices(project: tuple[Daemon, dict[str, str]]) -> None:
    daemon, environment = project
    app = ("gunicorn", "--bind", "127.0.0.1:PORT", "django.core.wsgi:get_wsgi_application()")
    with guides.WebApp(*app, folder=daemon.directory, environment=environment) as web:
        status, placed = web.request("POST", "/place/A1")
        assert status == 202, web.log()
        order = f"/orders/{placed['order']}"
        wait_until(lambda: web.get(order) == {"invoice": "A1.pdf"}, 10, "the invoice")
        assert web.request("POST", "/place/A1")[0] == 409
        reminded = web.request("POST", f"{order}/remind/1")[1]["result"]
        assert web.get(f"/reminders/{reminded}") == {"status": "READY", "value": None}
        wait_until(lambda: web.get(f"/reminders/{reminded}")["status"] == "SUCCESSFUL", 10, "the reminder")
        assert web.get(f"/reminders/{reminded}")["value"] == "A1, attempt 1"
    rows = json.loads(daemon.cli("tasks", "--json").stdout)
    invoices = next(row["done"] for row in rows if row["task"] == "shop.tasks.make_invoice")
    orders = daemon.cli("call", "count_orders", "--wait").stdout
    assert invoices == json.loads(orders), "what was rolled back was not queued"


def test_no_connection_outlives_its_job(project: tuple[Daemon, dict[str, str]]) -> None:
    with Queue(project[0]) as queue:
        found = {
            task: [json.loads(queue.ended(queue.submit(task)).value or b"") for _ in range(3)]
            for task in ("looks", "plainly_looks")
        }
    assert found["looks"] == [[], [], []]
    assert found["plainly_looks"][1:] == [["default"], ["default"]], "a plain Worker leaves them"


PROBE = """
import asyncio, json, sys, time
from datetime import timedelta
import django
django.setup()
from django.utils import timezone
from shop import tasks
from shop.models import Order
import upnext.contrib.django as contrib

order = Order.objects.create(reference="B2")
pk = order.pk
queued = []
signals = __import__(tasks.FRAMEWORK + ".signals", fromlist=["signals"])
signals.task_enqueued.connect(lambda sender, task_result, **rest: queued.append(task_result.id), weak=False)


def ended(result):
    deadline = time.monotonic() + 60
    while not result.is_finished:
        assert time.monotonic() < deadline, result
        time.sleep(0.02)
        result.refresh()
    return result


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return None


found = {"framework": contrib.FRAMEWORK}
result = tasks.make_invoice.enqueue(pk)
found["queued"] = [str(result.status), result.args == [pk], result.kwargs, result.enqueued_at is not None, result.attempts]
found["signal"] = queued == [result.id]
ended(result)
found["value"] = result.return_value
times = (result.enqueued_at, result.started_at, result.finished_at)
found["times"] = all(one is not None and timezone.is_aware(one) for one in times) and list(times) == sorted(times)
found["attempts"] = [result.attempts, len(result.worker_ids)]
again = tasks.make_invoice.get_result(result.id)
found["again"] = [again.return_value, again.id == result.id, again.task == tasks.make_invoice]
found["mismatch"] = raised(tasks.remind.get_result, result.id)
found["unknown"] = [raised(tasks.remind.get_result, one) for one in ("shop.tasks.remind:n1-0", "nonsense")]
foreign = contrib.upnext.submit_sync("looks")
foreign.value_sync(timeout=20)
found["foreign"] = raised(tasks.remind.get_result, foreign.job_id)

found["async"] = ended(asyncio.run(tasks.remind.aenqueue(order_id=pk))).return_value
due = timezone.now() + timedelta(seconds=1.5)
late = ended(tasks.remind.using(run_after=due).enqueue(pk))
found["late"] = late.started_at >= due.replace(microsecond=due.microsecond // 1000 * 1000)  # known to the ms

failed = ended(tasks.fails.enqueue(7, kind="own"))
found["failed"] = [str(failed.status), failed.attempts, [(one.exception_class_path, one.exception_class.__name__) for one in failed.errors]]
found["failed_args"] = [failed.args, tasks.fails.get_result(failed.id).kwargs]
found["traceback"] = "number 7" in failed.errors[0].traceback and "in fails" in failed.errors[0].traceback
found["process"] = [one.exception_class_path for one in ended(tasks.fails_in_a_process.enqueue()).errors]
found["builtin"] = [one.exception_class_path for one in ended(tasks.fails.enqueue(8)).errors]
found["no_value"] = raised(lambda: failed.return_value)
found["no_json"] = [one.exception_class_path for one in ended(tasks.gives_no_json.enqueue()).errors]
found["refused"] = [raised(tasks.fails.enqueue), raised(tasks.fails.enqueue, 1, what=2), raised(tasks.fails.enqueue, object())]
found["high"] = tasks.remind.enqueue(pk).id.rpartition(":")[2][0], tasks.remind.using(priority=-3).enqueue(pk).id.rpartition(":")[2][0]
found["queue"] = raised(tasks.remind.using, queue_name="other")
found["statuses"] = set(contrib._DJANGO_STATUS) == set(contrib.JobStatus)
print(json.dumps(found))
"""


def test_what_the_backend_promises(project: tuple[Daemon, dict[str, str]]) -> None:
    daemon, environment = project
    done = guides.python("-c", PROBE, folder=daemon.directory, environment=environment)
    assert done.returncode == 0, done.stderr + daemon.log()
    found: dict[str, Any] = json.loads(done.stdout)
    package = found.pop("framework")
    invalid = "InvalidTask" if package == "django.tasks" else "InvalidTaskError"
    assert found == {
        "queued": ["READY", True, {}, True, 0],
        "signal": True,
        "value": "B2.pdf",
        "times": True,
        "attempts": [1, 1],
        "again": ["B2.pdf", True, True],
        "mismatch": "TaskResultMismatch",
        "unknown": ["TaskResultDoesNotExist", "TaskResultDoesNotExist"],
        "foreign": "TaskResultDoesNotExist",
        "async": "B2, attempt 1",
        "late": True,
        "failed": ["FAILED", 2, [["shop.tasks.Odd", "Odd"]]],
        "failed_args": [[7], {"n": 7, "kind": "own"}],
        "traceback": True,
        "process": ["shop.tasks.Odd"],
        "builtin": ["builtins.ValueError"],
        "no_value": "ValueError",
        "no_json": ["builtins.TypeError"],
        "refused": ["InvalidArgumentsError", "InvalidArgumentsError", "TypeError"],
        "high": ["h", "n"],
        "queue": invalid,
        "statuses": True,
    }
    file = Path(environment["SIGNALS"])
    odd = "['shop.tasks.Odd']"
    wanted = [
        "task_started fails {'n': 7, 'kind': 'own'} RUNNING []",
        "task_started fails {'n': 7, 'kind': 'own'} RUNNING []",
        f"task_finished fails {{'n': 7, 'kind': 'own'}} FAILED {odd}",
    ]
    wait_until(lambda: [line for line in file.read_text().splitlines() if "'own'" in line] == wanted, 10, "signals")
    there = [line for line in file.read_text().splitlines() if "in_a_process" in line]
    assert there == [
        "task_started fails_in_a_process [] RUNNING []",
        f"task_finished fails_in_a_process [] FAILED {odd}",
    ]
    remind = [line for line in file.read_text().splitlines() if " remind " in line][:2]
    assert [line.split()[0] for line in remind] == ["task_started", "task_finished"]


WRONG = """
import django
django.setup()
from django.core.exceptions import ImproperlyConfigured
from upnext.contrib.django import UpNextBackend

for options in ({"retries": -1}, {"retrys": 1}, {"redis_url": "http://x"}):
    try:
        UpNextBackend("mail", {"OPTIONS": options})
    except ImproperlyConfigured as error:
        print(error)
"""


def test_a_wrong_option_is_one_clear_line(project: tuple[Daemon, dict[str, str]]) -> None:
    daemon, environment = project
    done = guides.python("-c", WRONG, folder=daemon.directory, environment=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert lines[0].startswith("TASKS['mail']: OPTIONS: ")
    assert lines[1].startswith("TASKS['mail']: OPTIONS has 'retrys'; there are retries, ")
    assert lines[2].startswith("TASKS['mail']: OPTIONS: ")
