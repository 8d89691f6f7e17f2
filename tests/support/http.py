"""A plain HTTP client over one connection, which shows what became of it."""

from __future__ import annotations

import http.client
import json
from types import TracebackType
from typing import Any, Self


class Client:
    """One keep-alive connection to 127.0.0.1; `with` closes it."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self.last_headers: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def send(self, path: str, method: str = "GET", body: Any = None) -> None:
        raw = None if body is None else json.dumps(body)
        self._connection.request(method, path, raw, {"Content-Type": "application/json"} if raw else {})

    def receive(self, *, raw: bool = False) -> tuple[int, Any]:
        """The status, and the body as JSON (`raw`: as bytes)."""
        answer = self._connection.getresponse()
        body = answer.read()
        self.last_headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, body if raw else json.loads(body)

    def get(self, path: str, *, raw: bool = False) -> tuple[int, Any]:
        self.send(path)
        return self.receive(raw=raw)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.send(path, "POST", body)
        return self.receive()
