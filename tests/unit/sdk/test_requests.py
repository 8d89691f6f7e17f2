"""What is submitted in a request of an Api is marked with the route, by its template."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import upnext
from tests.unit.sdk.fake_broker import StandIn
from upnext.api_server import ApiServer
from upnext.core import own_options
from upnext.listening import listen

worker = upnext.Worker("shop", redis_url="redis://shop:6379")


@worker.task
async def charge(order_id: str) -> None: ...


placed = worker.event("placed")


class _Mark:
    """A middleware that submits before there is a route."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await charge.submit("early")
        await self._app(scope, receive, send)


def made() -> upnext.Api:
    api = upnext.Api("front", port=0)
    api.add_middleware(_Mark)

    @api.post("/orders/{order_id}")
    async def order(order_id: str) -> None:
        await charge.options(labels={"a": "b"}).submit(order_id)
        await charge.submit_many([(order_id,)])
        await placed.send(order_id=order_id)

    @api.group("/plain").get("/{order_id}")
    def plain(order_id: str) -> None:
        charge.submit_sync(order_id)

    return api


async def asked(app: Any, method: str, path: str) -> int:
    """-> status of the answer."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"token=secret",
             "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip
    await asyncio.create_task(app(scope, receive, send))
    return status


async def test_the_route_s_template_stays_with_the_job(standin: StandIn) -> None:
    spec = made().spec()
    server = ApiServer(spec, listen("front", spec.address))
    app: Any = server._config.app
    try:
        assert await asked(app, "POST", "/orders/A1") == 200
        assert [one.own for one in standin.submitted] == [
            {"labels": {"a": "b"}, "via": "POST /orders/{order_id}"},
            {"via": "POST /orders/{order_id}"},
        ]
        assert standin.sent[0]["own"] == {"via": "POST /orders/{order_id}"}
        assert await asked(app, "GET", "/plain/A1") == 200
        assert standin.submitted[-1].own == {"via": "GET /plain/{order_id}"}
        assert await asked(app, "GET", "/early") == 404
        assert standin.submitted[-1].own == {"via": "GET to front"}, "no route, and never the path"
        await charge.submit("outside")
        assert standin.submitted[-1].own is None
    finally:
        server._bound.close()


@pytest.mark.parametrize("own", [None, {}, {"via": 5}, {"via": None}])
def test_what_is_not_text_is_not_known(own: dict[str, Any] | None) -> None:
    assert own_options.via(own) is None
