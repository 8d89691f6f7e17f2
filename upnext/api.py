"""`Api`: HTTP beside the workers of a service, on FastAPI."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Never, Self, TypeVar, cast

from upnext import config
from upnext.address import Address
from upnext.core.spec import ApiSpec, OpenLifespan
from upnext.declare import checked_name, declared_secrets, seconds, whole
from upnext.errors import ConflictError, ServiceError, UsageError
from upnext.lifespan import open_lifespan

F = TypeVar("F", bound=Callable[..., Any])

MOST_PROCESSES = 100


class Api:
    """An HTTP interface that is started, reloaded and stopped with the workers of its service.

        api = upnext.Api("shop", port=8000)

        @api.post("/orders")
        async def order(item: str) -> str:
            return (await process_order.submit(item)).job_id

    name: shown in status and taken by `--only`; unique in the service.
    host, port: where it listens; an address of this machine alone unless you name another.
    docs_url, openapi_url: where FastAPI shows its pages; None: not at all.
    debug: FastAPI's: tracebacks are sent to clients.
    redis_url: for what is submitted in requests, where neither a flag, the environment nor the task's worker names one.
    processes: how many serve it under upnextd.
    graceful_timeout: seconds that requests, streams and websockets get to end when it is stopped or reloaded.
    secrets: names of the secrets that requests use; each process reads them before its first request, `upnext.secret(name)` gives them.

    Raises UsageError when FastAPI isn't installed, ServiceError for a value that can't be meant.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        docs_url: str | None = "/docs",
        openapi_url: str | None = "/openapi.json",
        debug: bool = False,
        redis_url: str | None = None,
        processes: int = 1,
        graceful_timeout: float = 30.0,
        secrets: Sequence[str] = (),
        **unknown: Never,
    ) -> None:
        for option in unknown:
            known = [one for one in inspect.signature(Api).parameters if one != "unknown"]
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ServiceError(f"Api: there is no option {option!r}; {hint}")
        what = f"api {name!r}"
        self.name = checked_name(what, name)
        self.host = _host(what, host)
        self.port = whole(what, "port", port, least=0, most=65535)
        self.processes = whole(what, "processes", processes, most=MOST_PROCESSES)
        self.graceful_timeout = seconds(what, "graceful_timeout", graceful_timeout)
        if redis_url is not None:
            config.validate_url(redis_url)
        self.redis_url = redis_url
        self.secrets = declared_secrets(what, secrets)
        self.state: Any = None
        """What its lifespan yielded in this process."""
        self._opens: OpenLifespan | None = None
        self._fastapi: type[Any] = _fastapi(what)
        self.app: Any = self._fastapi(
            title=name, docs_url=docs_url, openapi_url=openapi_url, debug=debug, lifespan=self._enter
        )
        """The FastAPI, or what it was made from."""

    @classmethod
    def from_fastapi(cls, app: Any, name: str, **options: Any) -> Self:
        """An Api of a FastAPI that exists, with its own lifespan; `options` are those of `Api` but for FastAPI's own."""
        made = cls._of(app, name, options)
        inner = app.router.lifespan_context
        app.router.lifespan_context = cls._around(made, inner)
        return made

    @classmethod
    def from_asgi(cls, app: Any, name: str, **options: Any) -> Self:
        """An Api of any ASGI application (Starlette, Django, Litestar …); `options` as of `from_fastapi`. Its routes are declared there."""
        if isinstance(app, _fastapi(f"api {name!r}")):
            return cls.from_fastapi(app, name, **options)
        return cls._of(app, name, options)

    @classmethod
    def _of(cls, app: Any, name: str, options: Mapping[str, Any]) -> Self:
        for own in ("docs_url", "openapi_url", "debug"):
            if own in options:
                raise ServiceError(f"api {name!r}: {own} is the application's own: set it there")
        made = cls(name, **options)
        made.app = app
        return made

    # -- declaring ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> Callable[[F], F]:
        """Declares a route for GET; `options` are FastAPI's. The other methods do the same."""
        return self._declared("get")(path, **options)

    def post(self, path: str, **options: Any) -> Callable[[F], F]:
        return self._declared("post")(path, **options)

    def put(self, path: str, **options: Any) -> Callable[[F], F]:
        return self._declared("put")(path, **options)

    def patch(self, path: str, **options: Any) -> Callable[[F], F]:
        return self._declared("patch")(path, **options)

    def delete(self, path: str, **options: Any) -> Callable[[F], F]:
        return self._declared("delete")(path, **options)

    def websocket(self, path: str, **options: Any) -> Callable[[F], F]:
        """Declares a websocket. At a reload it is closed with code 1012, which asks the client to come back."""
        return self._declared("websocket")(path, **options)

    def route(self, path: str, **options: Any) -> Callable[[F], F]:
        """Declares a route for several methods: `@api.route("/x", methods=["GET", "HEAD"])`; without any, for GET."""
        return self._declared("api_route")(path, **options)

    def group(self, prefix: str, **options: Any) -> Group:
        """Routes below a prefix: `orders = api.group("/orders", tags=["orders"])`, then `@orders.get("/{id}")`."""
        return Group(self, prefix, options)

    def include_router(self, router: Any, **options: Any) -> None:
        """Takes over the routes of a FastAPI `APIRouter`."""
        self._declared("include_router")(router, **options)

    def add_middleware(self, middleware: Any, *args: Any, **options: Any) -> None:
        """Puts an ASGI middleware around the application."""
        self._declared("add_middleware")(middleware, *args, **options)

    def exception_handler(self, error: int | type[Exception]) -> Callable[[F], F]:
        """Declares what answers for a status code or a type of error."""
        return self._declared("exception_handler")(error)

    def lifespan(self, function: F) -> F:
        """Declares what each process of it sets up before its first request, and takes down after its last one; as `Worker.lifespan`.

        What it yields is `api.state`; of a mapping, each key is an attribute of `request.state`, too. Raises as `Worker.lifespan`.
        """
        what = f"api {self.name!r}"
        if self._opens is not None:
            raise ConflictError(f"{what}: has a lifespan already")
        self._opens = open_lifespan(what, function, self)
        return function

    # -- what was declared --------------------------------------------------------------------------------------------

    def spec(self) -> ApiSpec:
        """What was declared, as plain data."""
        return ApiSpec(
            name=self.name,
            address=Address(self.host, self.port),
            app=self.app,
            lifespan=self._enter_foreign if self._is_foreign else self._enter_app,
            processes=self.processes,
            graceful_timeout_s=self.graceful_timeout,
            redis_url=self.redis_url,
            secrets=self.secrets,
        )

    @property
    def _is_foreign(self) -> bool:
        return not isinstance(self.app, self._fastapi)

    def _declared(self, method: str) -> Callable[..., Any]:
        """The application's own method of that name. Raises UsageError for an application of another framework."""
        if self._is_foreign:
            raise UsageError(f"api {self.name!r}: was made by from_asgi: declare what it serves on that application")
        return getattr(self.app, method)

    def _enter_app(self) -> Any:
        """The application's own lifespan, which has ours around it."""
        return self.app.router.lifespan_context(self.app)

    @asynccontextmanager
    async def _enter_foreign(self) -> AsyncGenerator[Any]:
        from upnext.api_server import asgi_lifespan  # noqa: PLC0415 - uvicorn is imported by what serves

        async with self._enter(self.app) as state, asgi_lifespan(self.app) as inner:
            yield {**state, **inner}

    def _around(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @asynccontextmanager
        async def both(app: Any) -> AsyncGenerator[Any]:
            async with self._enter(app) as state, inner(app) as further:
                yield {**state, **(further or {})}

        return both

    @asynccontextmanager
    async def _enter(self, _app: Any) -> AsyncGenerator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            if self._opens is not None:
                self.state = await stack.enter_async_context(self._opens())
            try:
                yield _as_state(self.state)
            finally:
                self.state = None

    def __repr__(self) -> str:
        return f"<Api {self.name} on {self.host}:{self.port}>"


class Group:
    """Routes below a prefix, declared on an Api or on another group. `options` go to each of them; lists are put together."""

    def __init__(self, owner: Api | Group, prefix: str, options: Mapping[str, Any]) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ServiceError(f"group {prefix!r}: a prefix begins with / and doesn't end with one")
        self._owner, self._prefix, self._options = owner, prefix, options

    def get(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.get(self._prefix + path, **self._with(options))

    def post(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.post(self._prefix + path, **self._with(options))

    def put(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.put(self._prefix + path, **self._with(options))

    def patch(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.patch(self._prefix + path, **self._with(options))

    def delete(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.delete(self._prefix + path, **self._with(options))

    def route(self, path: str = "", **options: Any) -> Callable[[F], F]:
        return self._owner.route(self._prefix + path, **self._with(options))

    def websocket(self, path: str = "", **options: Any) -> Callable[[F], F]:
        kept = {name: value for name, value in self._with(options).items() if name in ("name", "dependencies")}
        return self._owner.websocket(self._prefix + path, **kept)

    def group(self, prefix: str, **options: Any) -> Group:
        return Group(self, prefix, options)

    def _with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**self._options, **options}
        for name in ("tags", "dependencies"):
            if name in self._options and name in options:
                merged[name] = [*self._options[name], *options[name]]
        return merged


def _as_state(value: Any) -> dict[str, Any]:
    """What requests see of what a lifespan yielded."""
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {}


def _host(what: str, host: object) -> str:
    if not isinstance(host, str) or not host or any(character.isspace() or character == "/" for character in host):
        raise ServiceError(f"{what}: host must be an address or a name, not {host!r}")
    return host


def _fastapi(what: str) -> Any:
    try:
        for needed in ("httptools", "uvicorn"):  # they serve it
            importlib.import_module(needed)
        import fastapi  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            f"{what}: an Api needs {error.name}: install the extra, pip install '/path/to/checkout[api]'"
        ) from None
    return fastapi.FastAPI
