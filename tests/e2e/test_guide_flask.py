"""docs/guides/flask.md, as its readers run it: a daemon, gunicorn with threads and a preloaded app, requests at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support import guides
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until

PAGE = "flask.md"
MANY = 60

AT_IMPORT = """

import os

upnext.submit_sync("make_invoice", order_id="at import", cents=0)


@app.get("/pid")
def pid():
    return {"pid": os.getpid()}
"""

CONTEXTS = """

left = []


@app.teardown_appcontext
def note(error: BaseException | None) -> None:
    left.append(error)


@worker.task
def contexts_left() -> int:
    return len(left)
"""


def test_the_threads_of_preloaded_workers_submit_by_name() -> None:
    daemon = Daemon("", workers=1)
    guides.write(PAGE, daemon.directory)
    with daemon.service.open("a") as service:
        service.write(CONTEXTS)
    with daemon, Queue(daemon) as queue:
        web = daemon.directory / "web.py"
        web.write_text(web.read_text() + AT_IMPORT)  # only the web server's process imports this version
        environment = {"UPNEXT_REDIS_URL": daemon.broker_url}
        gunicorn = ("gunicorn", "--bind", "127.0.0.1:PORT", "--log-level", "warning")
        with guides.WebApp(*gunicorn, folder=daemon.directory, environment=environment) as server:

            def place(number: int) -> str:
                status, answer = server.request("POST", "/orders", {"order_id": f"A{number}", "cents": number})
                assert status == 202, (answer, server.log())
                return answer["job_id"]

            with ThreadPoolExecutor(16) as pool:
                job_ids = list(pool.map(place, range(MANY)))
            assert len(set(job_ids)) == MANY
            seen: set[int] = set()
            wait_until(lambda: (seen.add(server.get("/pid")["pid"]), len(seen) == 2)[1], 20, "both processes to answer")
            ended = [queue.ended(job_id) for job_id in job_ids]
            assert [one.value for one in ended] == [f'"Tea & Co, A{n}: {n / 100:.2f}"'.encode() for n in range(MANY)]
            assert server.get(f"/jobs/{job_ids[3]}") == {"status": "done", "value": "Tea & Co, A3: 0.03"}
            assert server.request("GET", "/jobs/make_invoice:n1-0")[0] == 404
            status, refused = server.request("POST", "/orders", {"order_id": "A1", "cents": "many"})
            assert status == 400
            assert "cents" in refused["error"]
            handled = daemon.cli("jobs", "--task", "order.placed.count", "--state", "done", "--limit", "1000", "--json")
            assert handled.stdout.count('"job_id"') == MANY
            left = queue.ended(queue.submit("contexts_left")).value
            assert left == str(2 * MANY + 1).encode(), "each job's context ended"
            assert daemon.stop() == 0
            assert server.request("POST", "/orders", {"order_id": "A1", "cents": 1})[0] == 503
        assert "Traceback" not in server.log(), server.log()
