"""docs/guides/fastapi.md, as its readers run it: a daemon, uvicorn, requests; and the tests that it shows."""

from __future__ import annotations

from tests.support import guides
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

PAGE = "fastapi.md"
ORDER = {"order_id": "A1", "cents": 250}


def test_the_app_queues_and_the_service_runs() -> None:
    with Daemon(guides.files(PAGE)["service.py"]) as daemon:
        guides.write(PAGE, daemon.directory)
        environment = {"UPNEXT_REDIS_URL": daemon.broker_url}
        with guides.WebApp(
            "uvicorn", "app:app", "--port", "PORT", folder=daemon.directory, environment=environment
        ) as web:
            status, placed = web.request("POST", "/orders", ORDER)
            assert (status, placed["handlers"]) == (202, 1), web.log()
            job = f"/jobs/{placed['job_id']}"
            wait_until(lambda: web.request("GET", job)[1]["status"] == "done", 10, "the job to be done")
            assert web.request("GET", job) == (200, {"status": "done", "value": "A1: 2.50", "error": None})
            assert web.request("POST", "/orders/wait", ORDER) == (200, {"invoice": "A1: 2.50"})
            status, plain = web.request("POST", "/plain", ORDER)
            assert status == 202
            wait_until(lambda: web.request("GET", f"/jobs/{plain['job_id']}")[1]["value"] == "A1: 2.50", 10)
            assert web.request("GET", "/jobs/nonsense")[0] == 404
            assert daemon.stop() == 0
            assert web.request("POST", "/orders", ORDER) == (503, {"detail": "the queue is not available"}), web.log()
        assert "Traceback" not in web.log(), web.log()


def test_its_tests_pass() -> None:
    with Daemon(guides.files(PAGE)["service.py"], workers=1) as daemon:
        guides.write(PAGE, daemon.directory)
        environment = {"UPNEXT_REDIS_URL": daemon.broker_url}
        done = guides.python(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py"),
            folder=daemon.directory,
            environment=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout
