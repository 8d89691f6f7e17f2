"""Services and hosts beside each other under real daemons: none takes crons, handlers or tasks from another."""

from __future__ import annotations

import contextlib
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.servers import Server
from tests.support.waiting import wait_until
from upnext.core.keys import Keys

HEAD = """
    import upnext

    worker = upnext.Worker("w")
    placed = worker.event("placed")
"""


def cron(name: str) -> str:
    return f"""
    @worker.cron("* * * * * *")
    async def {name}() -> None: ...
"""


def handler(name: str) -> str:
    return f"""
    @placed.on
    async def {name}(order_id: str = "") -> None: ...
"""


def write(folder: Path, *parts: str, stem: str = "worker") -> Path:
    folder.mkdir()
    file = folder / f"{stem}.py"
    file.write_text("".join(textwrap.dedent(part) for part in (HEAD, *parts)))
    return file


class Namespace:
    """What the daemons of one namespace have left in Redis."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name, self.keys = server, name, Keys(name)

    def daemon(self, service: Path, *args: str) -> Daemon:
        return Daemon(service, redis_url=self.server.url, namespace=self.name, workers=1, args=args)

    def names(self, key: str) -> set[str]:
        return {name.decode() for name in self.server.cli("HKEYS", key)}

    def done(self, task: str) -> int:
        return int(self.server.cli("HGET", self.keys.stats, f"{task}:done") or 0)

    def announced(self, count: int) -> None:
        """Every daemon has stated what it has, and tidied once: a cron has ticked since."""
        wait_until(lambda: self.server.cli("ZCARD", self.keys.announced) == count, 20, "the daemons to be announced")

    def ticks(self, *crons: str) -> None:
        before = {name: self.done(name) for name in crons}
        wait_until(lambda: all(self.done(name) >= count + 2 for name, count in before.items()), 20, f"{crons} to tick")


@pytest.fixture
def shared(server: Server, namespace: str) -> Namespace:
    return Namespace(server, namespace)


def rows(daemon: Daemon, *words: str) -> list[dict[str, Any]]:
    return json.loads(daemon.cli(*words, "--json").stdout)


def test_two_services_whose_files_are_both_worker(shared: Namespace, tmp_path: Path) -> None:
    shop = write(tmp_path / "shop", cron("bill"), handler("stock"))
    mail = write(tmp_path / "mail", cron("digest"), handler("confirm"))
    with shared.daemon(shop) as first, shared.daemon(mail) as second:
        shared.announced(2)
        shared.ticks("bill", "digest")
        assert shared.names(shared.keys.event("placed")) == {"placed.stock", "placed.confirm"}
        services = {one["task"]: one["service"] for one in rows(first, "tasks")}
        assert services == {
            "bill": "shop/worker", "placed.stock": "shop/worker", "digest": "mail/worker", "placed.confirm": "mail/worker",
        }  # fmt: skip
        status = second.status()
        assert (status["service_name"], status["namespace"]) == ("mail/worker", shared.name)


def test_an_old_host_that_restarts_beside_a_new_one(shared: Namespace, tmp_path: Path) -> None:
    new = write(tmp_path / "new", cron("added"), cron("kept"), handler("mail"), handler("stock"), stem="orders")
    old = write(tmp_path / "old", cron("kept"), handler("mail"), stem="orders")
    with shared.daemon(new) as first, shared.daemon(old):
        shared.announced(2)
        shared.ticks("added", "kept")
        assert shared.names(shared.keys.event("placed")) == {"placed.mail", "placed.stock"}
        assert {one["name"] for one in rows(first, "cron", "list")} == {"added", "kept"}


def test_a_service_split_by_only(shared: Namespace, tmp_path: Path) -> None:
    split = write(
        tmp_path / "shop", cron("of_w"), 'other = upnext.Worker("other")\n', cron("of_other").replace("worker", "other")
    )
    with shared.daemon(split, "--only", "w"), shared.daemon(split, "--only", "other"):
        shared.announced(2)
        shared.ticks("of_w", "of_other")


def test_code_that_drops_a_cron_takes_it_away_at_the_next_start(shared: Namespace, tmp_path: Path) -> None:
    service = write(tmp_path / "shop", cron("kept"), cron("dropped"), handler("gone"))
    with shared.daemon(service) as daemon:
        shared.ticks("kept", "dropped")
        daemon.stop()
        service.write_text("".join(textwrap.dedent(part) for part in (HEAD, cron("kept"))))
        daemon.start()
        wait_until(lambda: shared.names(shared.keys.crons) == {"kept"}, 20, "what was dropped to be gone")
        wait_until(lambda: not shared.names(shared.keys.event("placed")), 20, "its handler, too")


def test_a_task_of_another_living_service_is_refused_in_one_line(shared: Namespace, tmp_path: Path) -> None:
    shop = write(tmp_path / "shop", "@worker.task\nasync def sync(order_id: str) -> None: ...\n")
    mail = write(tmp_path / "mail", "@worker.task\nasync def sync(number: int) -> None: ...\n")
    with shared.daemon(shop) as first, contextlib.closing(shared.daemon(mail)) as second:
        assert second.launch().wait() == 78
        [line] = [line for line in second.log().splitlines() if "is also a task of" in line][-1:]
        for word in (
            str(shop),
            str(mail),
            "shop/worker",
            "mail/worker",
            "host",
            "--service-name",
            "shared=True",
            "name=",
        ):
            assert word in line
        assert first.status()["ready_workers"] == 1


def test_a_name_that_was_given(shared: Namespace, tmp_path: Path) -> None:
    with shared.daemon(write(tmp_path / "shop", cron("bill")), "--service-name", "billing") as daemon:
        assert daemon.status()["service_name"] == "billing"
        assert [one["service"] for one in rows(daemon, "tasks")] == ["billing"]
