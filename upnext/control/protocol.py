"""The control protocol: JSON-RPC 2.0, one JSON object per line, UTF-8, at most FRAME_CAP_BYTES a line. Pure: bytes in, values out.

A conversation: the client connects and sends requests, each with an id; the server answers each with a result or an error of that id,
not necessarily in order, and sends notifications (no id) to clients that asked for them by `subscribe` or `wait`.

- `hello` tells protocol and version; a client that speaks another protocol stops there.
- A mutation (see METHODS) is answered at once with `{"op_id": "..."}`. It is idempotent: asking again for what is already under way
  gives the same op_id; a reload is the exception, for it takes in what is on disk now. It goes on when the client disconnects.
- `wait {op_id}` follows one operation: `progress` notifications `{op_id, text, done, ok}` as it goes, the last with done=true, then the
  answer `{op_id, ok, text, data}` when the operation has ended. An operation that ended already is answered at once.
- `subscribe` is answered with `{}`; from then on the client gets `event` notifications `{kind, at, ...}`.

Use: `for frame in decoder.feed(data): message = decode(frame)`; a ProtocolError is what to answer; `decoder.overflowed` means answer
FRAME_TOO_LARGE and close.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any, cast

import orjson

PROTOCOL = 1
"""Version of this protocol, in `hello` and in `status`."""

FRAME_CAP_BYTES = 1 << 20
"""Longest line, newline not counted, that either side takes."""

CLIENT_CAP = 16
"""Most clients a server has at once."""


class ErrorCode(IntEnum):
    """`error.code` of an answer. The first five are JSON-RPC's."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL = -32603
    FAILED = -32000
    """The operation can't be done, or was tried and failed; the message says why."""
    NO_SUCH_SLOT = -32001
    NO_SUCH_OPERATION = -32002
    CONFLICT = -32003
    """Another operation is under way that this one can't join: drain during a reload, anything during a stop."""
    TOO_MANY_CLIENTS = -32004
    FORBIDDEN = -32005
    """The peer is neither root nor the daemon's own user."""
    FRAME_TOO_LARGE = -32006


class ProtocolError(Exception):
    """What the peer sent is no proper message or request. `request_id` is the id to answer to (None: unknown)."""

    def __init__(self, code: ErrorCode, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id

    def response(self) -> ErrorResponse:
        return ErrorResponse(self.request_id, self.code, self.message)


RequestId = int | str


@dataclass(frozen=True, slots=True)
class Request:
    """A call; it gets exactly one Response or ErrorResponse of the same id."""

    id: RequestId
    method: str
    params: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Response:
    id: RequestId
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """`id` is None when the request's id could not be read. `data` is for people: a traceback, a list of slots."""

    id: RequestId | None
    code: int
    message: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Notification:
    """One way, never answered."""

    method: str
    params: dict[str, Any] = field(default_factory=dict[str, Any])


Message = Request | Response | ErrorResponse | Notification


# -- frames ------------------------------------------------------------------------------------------------------------------------------


class FrameDecoder:
    """Cuts a byte stream into lines. Keeps at most one unfinished line of `cap_bytes`."""

    def __init__(self, cap_bytes: int = FRAME_CAP_BYTES) -> None:
        self._cap_bytes = cap_bytes
        self._unfinished = bytearray()
        self.overflowed = False
        """A line went over the cap: no more frames come out; the connection is to be closed."""

    def feed(self, data: bytes) -> list[bytes]:
        """-> the lines that are now complete, in order, without newline (nor a CR before it); empty lines are skipped.

        Lines before an over-long one are still returned; afterwards nothing is.
        """
        if self.overflowed:
            return []
        frames: list[bytes] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            line = bytes(self._unfinished) + piece if self._unfinished else piece
            self._unfinished.clear()
            if len(line) > self._cap_bytes:
                self._overflow()
                return frames
            line = line.removesuffix(b"\r")
            if line:
                frames.append(line)
        self._unfinished += rest
        if len(self._unfinished) > self._cap_bytes:
            self._overflow()
        return frames

    @property
    def pending_bytes(self) -> int:
        """Length of the unfinished line."""
        return len(self._unfinished)

    @property
    def unfinished(self) -> bytes:
        """The line that has begun: not empty at end of stream means that the peer was cut off."""
        return bytes(self._unfinished)

    def _overflow(self) -> None:
        self.overflowed = True
        self._unfinished = bytearray()


def encode(message: Message) -> bytes:
    """-> one line with its newline. Raises ProtocolError(FRAME_TOO_LARGE) over the cap, TypeError for what JSON can't say."""
    line = orjson.dumps(_to_json(message))
    if len(line) > FRAME_CAP_BYTES:
        request_id = None if isinstance(message, Notification) else message.id
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a message of {len(line)} bytes is over the cap", request_id)
    return line + b"\n"


def _to_json(message: Message) -> dict[str, Any]:
    content: dict[str, Any] = {"jsonrpc": "2.0"}
    match message:
        case Request(request_id, method, params):
            content |= {"id": request_id, "method": method, "params": params}
        case Response(request_id, result):
            content |= {"id": request_id, "result": result}
        case ErrorResponse(request_id, code, text, data):
            error: dict[str, Any] = {"code": int(code), "message": text}
            if data is not None:
                error["data"] = data
            content |= {"id": request_id, "error": error}
        case Notification(method, params):
            content |= {"method": method, "params": params}
    return content


def decode(frame: bytes) -> Message:
    """One line -> message. Raises ProtocolError, whose `request_id` is the line's id where it has a usable one."""
    try:
        content = orjson.loads(frame)
    except ValueError:
        raise ProtocolError(ErrorCode.PARSE, "not a line of JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError(ErrorCode.INVALID_REQUEST, "not a JSON object")
    fields = cast("dict[str, Any]", content)
    request_id = fields.get("id")
    if request_id is not None and (isinstance(request_id, bool) or not isinstance(request_id, int | str)):
        raise ProtocolError(ErrorCode.INVALID_REQUEST, "id is neither a number nor a text")
    if fields.get("jsonrpc") != "2.0":
        raise ProtocolError(ErrorCode.INVALID_REQUEST, 'jsonrpc is not "2.0"', request_id)
    if "method" in fields:
        return _decode_call(fields, request_id)
    if "result" in fields and "error" not in fields:
        return _decode_result(fields["result"], request_id)
    if "error" in fields and "result" not in fields:
        return _decode_error(fields["error"], request_id)
    raise ProtocolError(ErrorCode.INVALID_REQUEST, "neither a method, nor a result, nor an error", request_id)


def _decode_call(fields: dict[str, Any], request_id: RequestId | None) -> Request | Notification:
    method, params = fields["method"], fields.get("params", {})
    if not isinstance(method, str):
        raise ProtocolError(ErrorCode.INVALID_REQUEST, "method is not a text", request_id)
    if not isinstance(params, dict):
        raise ProtocolError(ErrorCode.INVALID_PARAMS, "params is not an object", request_id)
    if request_id is None:
        return Notification(method, cast("dict[str, Any]", params))
    return Request(request_id, method, cast("dict[str, Any]", params))


def _decode_result(result: Any, request_id: RequestId | None) -> Response:
    if request_id is None or not isinstance(result, dict):
        raise ProtocolError(ErrorCode.INVALID_REQUEST, "a result without an id, or not an object", request_id)
    return Response(request_id, cast("dict[str, Any]", result))


def _decode_error(error: Any, request_id: RequestId | None) -> ErrorResponse:
    fields = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    code, text = fields.get("code"), fields.get("message")
    if not isinstance(code, int) or isinstance(code, bool) or not isinstance(text, str):
        raise ProtocolError(ErrorCode.INVALID_REQUEST, "an error without code and message", request_id)
    return ErrorResponse(request_id, code, text, fields.get("data"))


# -- methods -----------------------------------------------------------------------------------------------------------------------------


class ParamKind(Enum):
    """Type of a parameter: (what JSON value it takes, in words)."""

    FLAG = "true or false"
    COUNT = "a whole number from 0 to 1000"
    OFFSET = "a whole number from 0"
    TEXT = "a text of 1 to 200 characters"

    def takes(self, value: Any) -> bool:
        match self:
            case ParamKind.FLAG:
                return isinstance(value, bool)
            case ParamKind.COUNT:
                return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000
            case ParamKind.OFFSET:
                return isinstance(value, int) and not isinstance(value, bool) and value >= 0
            case ParamKind.TEXT:
                return isinstance(value, str) and 1 <= len(value) <= 200


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. Not required: `default` stands in when it is absent or null."""

    kind: ParamKind
    required: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the server. `mutates`: its answer is `{"op_id": ...}`."""

    name: str
    summary: str
    mutates: bool = False
    params: Mapping[str, Param] = field(default_factory=dict[str, Param])


def _table(*methods: Method) -> Mapping[str, Method]:
    return MappingProxyType({method.name: method for method in methods})


METHODS = _table(
    Method("hello", "-> {protocol, version, name, pid}"),
    Method("status", "-> the status, see upnext.control.status"),
    Method(
        "running",
        "-> {jobs, count, next}: a page of the jobs that run, the oldest of each slot first (slot null: of all slots)",
        params={"slot": Param(ParamKind.TEXT), "offset": Param(ParamKind.OFFSET, default=0)},
    ),
    Method("metrics", "-> counters since the daemon's start, for the process that serves them"),
    Method("subscribe", "-> {}, then `event` notifications"),
    Method(
        "wait",
        "-> {op_id, ok, text, data} when the operation has ended",
        params={"op_id": Param(ParamKind.TEXT, required=True)},
    ),
    Method("drain", "finish what runs, hand back the rest", True, {"exit": Param(ParamKind.FLAG, default=False)}),
    Method("pause", "stop fetching", True),
    Method("resume", "fetch again", True),
    Method("stop", "drain and end the daemon", True, {"now": Param(ParamKind.FLAG, default=False)}),
    Method("restart", "replace one child; slot null: workers and Apis in turn", True, {"slot": Param(ParamKind.TEXT)}),
    Method(
        "reload",
        "load the service's code anew, in place of a reload that imports or tries its first worker; abort: end those under way",
        True,
        {"abort": Param(ParamKind.FLAG, default=False)},
    ),
    Method("scale", "set the desired number of workers", True, {"workers": Param(ParamKind.COUNT, required=True)}),
    Method(
        "dump",
        "-> {slot, pid, stacks}: the stacks of a child; output: {slot, pid, lines: [{at, pid, text}]}, what its slot printed last",
        params={"slot": Param(ParamKind.TEXT, required=True), "output": Param(ParamKind.FLAG, default=False)},
    ),
    Method(
        "stacks",
        "-> {job_id, slot, pid, stacks}: what a running job awaits, and what the threads of its process do",
        params={"job_id": Param(ParamKind.TEXT, required=True)},
    ),
)
"""Every method, by name. `dump` and `stacks` read, so they answer when the stacks are there; they have no op_id."""


def bind(request: Request) -> dict[str, Any]:
    """-> the request's parameters, checked, defaults filled in.

    Raises ProtocolError METHOD_NOT_FOUND or INVALID_PARAMS with the request's id.
    """
    method = METHODS.get(request.method)
    if method is None:
        raise ProtocolError(ErrorCode.METHOD_NOT_FOUND, f"no method {request.method[:60]!r}", request.id)
    unknown = sorted(set(request.params) - set(method.params))
    if unknown:
        raise ProtocolError(ErrorCode.INVALID_PARAMS, f"{method.name} takes no {unknown[0][:60]!r}", request.id)
    bound: dict[str, Any] = {}
    for name, param in method.params.items():
        value = request.params.get(name)
        if value is None:
            if param.required:
                raise ProtocolError(ErrorCode.INVALID_PARAMS, f"{method.name} needs {name!r}", request.id)
            value = param.default
        elif not param.kind.takes(value):
            raise ProtocolError(
                ErrorCode.INVALID_PARAMS, f"{name} of {method.name} must be {param.kind.value}", request.id
            )
        bound[name] = value
    return bound


def progress(op_id: str, text: str, *, done: bool = False, ok: bool = True) -> Notification:
    """The notification that `wait` streams."""
    return Notification("progress", {"op_id": op_id, "text": text, "done": done, "ok": ok})


def event(kind: str, at: str, **fields: Any) -> Notification:
    """The notification that `subscribe` streams. `at` is ISO 8601, UTC."""
    return Notification("event", {"kind": kind, "at": at, **fields})
