"""Declaring Apis: what becomes of each option, and the line for each that can't be meant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

import upnext
from upnext.address import Address, parse_address, parse_named
from upnext.errors import ConflictError, ServiceError, UsageError
from upnext.service import apis_apart, apis_placed


def test_it_has_the_documented_defaults() -> None:
    api = upnext.Api("front")
    spec = api.spec()
    assert (spec.name, spec.address, spec.processes, spec.graceful_timeout_s) == (
        "front",
        Address("127.0.0.1", 8000),
        1,
        30.0,
    )
    assert spec.app is api.app
    assert (api.app.docs_url, api.app.openapi_url, api.app.debug) == ("/docs", "/openapi.json", False)


def test_routes_are_declared_with_fastapis_options() -> None:
    api = upnext.Api("front", docs_url=None, openapi_url=None)
    orders = api.group("/orders", tags=["orders"])

    @api.route("/both", methods=["GET", "HEAD"])
    def both() -> None: ...

    @orders.group("/{number}").delete("", status_code=204, tags=["more"])
    def remove(number: int) -> None: ...

    @orders.websocket("/live")
    async def live() -> None: ...

    for method in ("get", "post", "put", "patch", "delete"):
        getattr(api, method)(f"/{method}")(lambda: None)
    routes = {route.path: route for route in api.app.routes}
    assert routes["/both"].methods == {"GET", "HEAD"}
    assert (routes["/orders/{number}"].status_code, routes["/orders/{number}"].tags) == (204, ["orders", "more"])
    assert {"/orders/live", "/get", "/post", "/put", "/patch", "/delete"} <= routes.keys()


@pytest.mark.parametrize(
    ("declare", "line"),
    [
        (lambda: upnext.Api("x", port=70_000), "api 'x': port"),
        (lambda: upnext.Api("x", port=cast("Any", "80")), "api 'x': port"),
        (lambda: upnext.Api("x", host=""), "api 'x': host must be an address or a name, not ''"),
        (lambda: upnext.Api("x", prots=cast("Any", 1)), "Api: there is no option 'prots'; did you mean 'port'?"),
        (lambda: upnext.Api("x", processes=0), "api 'x': processes"),
        (lambda: upnext.Api("x", graceful_timeout=-1), "api 'x': graceful_timeout"),
        (lambda: upnext.Api("x", secrets=["a/b"]), "api 'x': a secret's name is"),
        (lambda: upnext.Api("x y"), "api 'x y'"),
        (lambda: upnext.Api.from_asgi(object(), name="x", debug=True), "debug is the application's own"),
        (lambda: upnext.Api("x").group("orders"), "group 'orders': a prefix begins with /"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line(declare: Callable[[], Any], line: str) -> None:
    with pytest.raises((ServiceError, UsageError)) as refused:
        declare()
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_redis_url_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError, match="http"):
        upnext.Api("x", redis_url="http://x")


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(UsageError, match=r"api 'x': an Api needs httptools: install the extra, pip install .*api\]"):
        upnext.Api("x")


def test_it_has_one_lifespan_that_yields() -> None:
    api = upnext.Api("x")
    with pytest.raises(ServiceError, match="its lifespan life never yields"):

        @api.lifespan
        async def life() -> None: ...

    @api.lifespan
    async def first() -> Any:
        yield

    with pytest.raises(ConflictError, match="has a lifespan already"):
        api.lifespan(first)


def test_other_applications_declare_for_themselves() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    api = upnext.Api.from_asgi(app, name="x")
    with pytest.raises(UsageError, match="was made by from_asgi: declare what it serves on that application"):
        api.get("/")


def test_a_fastapi_given_as_any_application_is_one_all_the_same() -> None:
    app = upnext.Api("y").app
    assert upnext.Api.from_asgi(app, name="x").get("/")(print) is print


def test_two_of_one_name_or_one_address_are_refused() -> None:
    with pytest.raises(ServiceError, match="two apis are named 'x'"):
        apis_apart([upnext.Api("x"), upnext.Api("x", port=1)])
    both = apis_apart([upnext.Api("x"), upnext.Api("y")])
    with pytest.raises(ServiceError, match=r"apis 'x' and 'y' both listen on 127\.0\.0\.1:8000"):
        apis_placed(both, {})
    assert [str(api.address) for api in apis_placed(both, {"y": Address(path="/y.sock")})] == [
        "127.0.0.1:8000",
        "/y.sock",
    ]
    apis_placed(apis_apart([upnext.Api("x", port=0), upnext.Api("y", port=0)]), {})


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80), "http://127.0.0.1:80"),
        ("[::1]:0", Address("::1", 0), "http://[::1]:0"),
        ("shop.local:65535", Address("shop.local", 65535), "http://shop.local:65535"),
        ("/run/x.sock", Address(path="/run/x.sock"), "unix:/run/x.sock"),
    ],
)
def test_addresses_are_read(text: str, address: Address, url: str) -> None:
    assert parse_address("--listen", text) == address
    assert address.url == url


@pytest.mark.parametrize(
    "text", ["", "8000", ":80", "x:", "x:65536", "x:-1", "x:８０", "::1:80", "x.sock", "/" + 100 * "x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--listen"):
        parse_address("--listen", text)


@pytest.mark.parametrize("given", [["x"], ["=127.0.0.1:80"], ["a=127.0.0.1:1", "a=127.0.0.1:2"], ["a=80"]])
def test_what_names_no_address_is_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match="--api-listen"):
        parse_named("--api-listen", given)
