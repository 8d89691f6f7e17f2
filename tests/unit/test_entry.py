"""The form of a job in a stream and outside of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnext.core import entry, ids
from upnext.core.entry import Meta
from upnext.errors import UsageError

WORDS = st.none() | st.text()
METAS = st.builds(
    Meta,
    job_id=st.none() | st.builds(lambda ms, seq: f"ship:n{ms}-{seq}", st.integers(0, 10**13), st.integers(0, 10**6)),
    lane=st.none() | st.sampled_from("nh"),
    attempt=st.integers(1, 100),
    crashes=st.integers(0, 100),
    lost_hosts=st.integers(0, 100),
    handed_back=st.booleans(),
    suspect=st.booleans(),
    parent_id=WORDS,
    root_id=WORDS,
    idempotency_key=WORDS,
    reply_to=WORDS,
    expires_ms=st.none() | st.integers(0, 10**14),
    tick_ms=st.none() | st.integers(0, 10**14),
    trace=WORDS,
    cause=WORDS,
    outcome=st.none() | st.just({"s": "failed", "e": {"type": "A"}}),
)


@given(METAS)
def test_meta_comes_back_as_it_was(meta: Meta) -> None:
    assert entry.decode_meta(entry.encode_meta(meta)) == meta


def test_a_meta_that_says_nothing_costs_nothing() -> None:
    assert entry.encode_meta(Meta()) == b""
    assert entry.decode_meta(b"") == entry.decode_meta(None) == Meta()


def test_letters_of_newer_versions_are_passed_over() -> None:
    assert entry.decode_meta(b'{"a":2,"?":[1],"new":{}}') == Meta(attempt=2)


@pytest.mark.parametrize(
    "raw",
    [
        b"[1]", b"1", b"null", b"{", b"\xff", b'{"a":"2"}', b'{"a":2.5}', b'{"a":null}', b'{"a":true}', b'{"c":[]}', b'{"i":7}',
        b'{"i":"ship"}', b'{"i":"ship:x1-0"}', b'{"i":":n1-0"}', b'{"z":"failed"}', b'{"b":"yes"}', b'{"k":{}}',
    ],
)  # fmt: skip
def test_what_is_no_meta(raw: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        entry.decode_meta(raw)


@given(METAS, st.binary(), st.sampled_from("nh"))
def test_a_packed_job_comes_back_as_it_was(meta: Meta, payload: bytes, lane: str) -> None:
    assert entry.unpack(entry.pack(lane, entry.encode_meta(meta), payload)) == (lane, meta, payload)


@pytest.mark.parametrize("raw", [b"", b"n", b"n:", b"n9:{}", b"nx:{}", b"n2"])
def test_what_is_no_packed_job(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a packed job"):
        entry.unpack(raw)


@pytest.mark.parametrize("job_id", ["ship:n1-0", "ship:h1763762400123-7", "a:b:c:d1-1"])
def test_a_job_s_id_has_its_parts(job_id: str) -> None:
    parsed = ids.parse(job_id)
    assert str(parsed) == job_id
    assert ids.is_id(job_id)


@pytest.mark.parametrize(
    "text", ["", "ship", ":n1-0", "ship:", "ship:1-0", "ship:b1-0", "ship:n1-0 ", "ship:n1-0\n", "ship:n-0", "ship:n1"]
)
def test_text_that_is_no_id(text: str) -> None:
    assert not ids.is_id(text)
    with pytest.raises(UsageError):
        ids.parse(text)
