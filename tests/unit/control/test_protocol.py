"""The control protocol: what it takes, what it refuses, and that no bytes whatever break it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnext.control import protocol
from upnext.control.protocol import (
    FRAME_CAP_BYTES,
    METHODS,
    ErrorCode,
    ErrorResponse,
    FrameDecoder,
    Message,
    Notification,
    ParamKind,
    ProtocolError,
    Request,
    Response,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=10), JSON, max_size=4)
IDS = st.integers(0, 2**31) | st.text(max_size=20)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Request, IDS, st.text(max_size=20), OBJECTS),
    st.builds(Response, IDS, OBJECTS),
    st.builds(ErrorResponse, st.none() | IDS, st.integers(-40000, 0), st.text(max_size=30), JSON),
    st.builds(Notification, st.text(max_size=20), OBJECTS),
)


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_what_was_encoded_comes_out_however_the_stream_is_cut(messages: list[Message], places: list[int]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(protocol.encode(message) for message in messages)
    frames = [frame for piece in cuts(stream, places) for frame in decoder.feed(piece)]
    assert [protocol.decode(frame) for frame in frames] == messages
    assert decoder.pending_bytes == 0
    assert not decoder.overflowed


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_give_messages_or_protocol_errors_and_nothing_else(pieces: list[bytes]) -> None:
    decoder = FrameDecoder(cap_bytes=100)
    for piece in pieces:
        for frame in decoder.feed(piece):
            assert 0 < len(frame) <= 100
            try:
                protocol.decode(frame)
            except ProtocolError as error:
                assert protocol.decode(protocol.encode(error.response()).rstrip(b"\n"))
        assert decoder.pending_bytes <= 100


@given(JSON)
def test_any_json_gives_a_message_or_a_protocol_error(value: Any) -> None:
    try:
        message = protocol.decode(json.dumps(value).encode())
    except ProtocolError as error:
        assert error.code in (ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_PARAMS, ErrorCode.PARSE)
    else:
        assert isinstance(message, Request | Response | ErrorResponse | Notification)


@given(OBJECTS)
def test_any_params_are_bound_or_refused_with_the_id(params: dict[str, Any]) -> None:
    for method in METHODS:
        try:
            bound = protocol.bind(Request(7, method, params))
        except ProtocolError as error:
            assert (error.code, error.request_id) == (ErrorCode.INVALID_PARAMS, 7)
        else:
            assert set(bound) == set(METHODS[method].params)


def test_lines_before_an_overlong_one_come_out_and_nothing_after() -> None:
    decoder = FrameDecoder(cap_bytes=5)
    assert decoder.feed(b"12345\n123456\n1\n") == [b"12345"]
    assert decoder.overflowed
    assert decoder.feed(b"1\n") == []


def test_an_endless_line_is_not_kept() -> None:
    decoder = FrameDecoder()
    for _ in range(40):
        assert decoder.feed(b"x" * (FRAME_CAP_BYTES // 16)) == []
    assert decoder.overflowed
    assert decoder.pending_bytes == 0


def test_a_line_of_exactly_the_cap_passes() -> None:
    assert len(FrameDecoder().feed(b"x" * FRAME_CAP_BYTES + b"\n")[0]) == FRAME_CAP_BYTES


def test_crlf_and_empty_lines_are_taken_as_a_terminal_sends_them() -> None:
    assert FrameDecoder().feed(b"\r\n\n{}\r\n") == [b"{}"]


def test_an_answer_over_the_cap_is_refused_by_its_sender() -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.encode(Response(3, {"text": "x" * FRAME_CAP_BYTES}))
    assert (caught.value.code, caught.value.request_id) == (ErrorCode.FRAME_TOO_LARGE, 3)


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"nonsense", ErrorCode.PARSE, None),
        (b"\xff\xfe", ErrorCode.PARSE, None),
        (b"[" * 5000, ErrorCode.PARSE, None),
        (b"[]", ErrorCode.INVALID_REQUEST, None),
        (b'{"id": 1, "method": "status"}', ErrorCode.INVALID_REQUEST, 1),
        (b'{"jsonrpc": "2.0", "id": true, "method": "status"}', ErrorCode.INVALID_REQUEST, None),
        (b'{"jsonrpc": "2.0", "id": [], "method": "status"}', ErrorCode.INVALID_REQUEST, None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', ErrorCode.INVALID_REQUEST, 1),
        (b'{"jsonrpc": "2.0", "id": "a", "method": "status", "params": []}', ErrorCode.INVALID_PARAMS, "a"),
        (b'{"jsonrpc": "2.0", "id": 1}', ErrorCode.INVALID_REQUEST, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}', ErrorCode.INVALID_REQUEST, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "error": {"code": true, "message": ""}}', ErrorCode.INVALID_REQUEST, 1),
        (b'{"jsonrpc": "2.0", "result": {}}', ErrorCode.INVALID_REQUEST, None),
    ],
)
def test_what_is_no_message_is_refused_with_its_id(line: bytes, code: ErrorCode, request_id: int | str | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.decode(line)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)


def test_a_request_without_an_id_is_a_notification() -> None:
    assert protocol.decode(b'{"jsonrpc": "2.0", "method": "status"}') == Notification("status", {})


def test_defaults_stand_in_for_what_is_absent_or_null() -> None:
    assert protocol.bind(Request(1, "drain", {})) == {"exit": False}
    assert protocol.bind(Request(1, "restart", {"slot": None})) == {"slot": None}
    assert protocol.bind(Request(1, "scale", {"workers": 0})) == {"workers": 0}


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("fly", {}, ErrorCode.METHOD_NOT_FOUND),
        ("status", {"x": 1}, ErrorCode.INVALID_PARAMS),
        ("scale", {}, ErrorCode.INVALID_PARAMS),
        ("scale", {"workers": -1}, ErrorCode.INVALID_PARAMS),
        ("scale", {"workers": True}, ErrorCode.INVALID_PARAMS),
        ("scale", {"workers": 1001}, ErrorCode.INVALID_PARAMS),
        ("dump", {"slot": ""}, ErrorCode.INVALID_PARAMS),
        ("stop", {"now": 1}, ErrorCode.INVALID_PARAMS),
    ],
)
def test_wrong_methods_and_params_are_refused(method: str, params: dict[str, Any], code: ErrorCode) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.bind(Request("q", method, params))
    assert (caught.value.code, caught.value.request_id) == (code, "q")


def test_the_table_of_methods_is_what_the_contract_says() -> None:
    assert set(METHODS) == {
        "hello", "status", "running", "metrics", "subscribe", "wait", "drain", "pause", "resume", "stop", "restart", "reload", "scale",
        "dump",
        "stacks",
    }  # fmt: skip
    for method in METHODS.values():
        for param in method.params.values():
            assert not (param.required and param.default is not None)
            assert param.required or param.default is None or param.kind.takes(param.default)


@pytest.mark.parametrize("kind", list(ParamKind))
def test_every_kind_takes_something_and_refuses_something(kind: ParamKind) -> None:
    examples: list[Any] = [True, 3, "text", None, [], {}, 1.5]
    taken = [example for example in examples if kind.takes(example)]
    assert len(taken) == 1
