"""permessage-deflate, against wsproto and zlib."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, strategies as st

from gw.http.deflate import Deflater, Inflater
from gw.limits import INFLATE_STEP


def inflated(inflater, *pieces):
    found = []
    take = lambda piece: found.append(piece) is None  # noqa: E731
    assert all(inflater.feed(piece, take, end=False) for piece in pieces)
    assert inflater.feed(b"", take, end=True)
    assert all(len(piece) <= INFLATE_STEP for piece in found)
    return b"".join(found)


@given(st.lists(st.binary(max_size=2000), max_size=5), st.booleans(), st.integers(9, 15), st.integers(1, 50))
def test_what_was_compressed_comes_back(messages, keeps, bits, cut):
    deflater, inflater = Deflater(keeps_context=keeps, bits=bits), Inflater(keeps_context=keeps)
    for message in messages:
        data = deflater.message(message)
        assert inflated(inflater, *(data[at : at + cut] for at in range(0, len(data), cut))) == message


def test_context_is_kept_or_not():
    message = bytes(range(256)) * 2
    for keeps in (True, False):
        deflater = Deflater(keeps_context=keeps)
        first, second = deflater.message(message), deflater.message(message)
        assert (len(second) < len(first)) is keeps


def test_a_long_run_comes_in_steps():
    assert (
        len(inflated(Inflater(keeps_context=True), Deflater(keeps_context=True).message(bytes(10 << 20)))) == 10 << 20
    )


def test_whoever_takes_may_stop():
    data = Deflater(keeps_context=True).message(bytes(10 << 20))
    taken = []
    assert not Inflater(keeps_context=True).feed(data, lambda piece: bool(taken.append(piece)), end=False)
    assert len(taken) == 1


def test_a_final_block_ends_a_stream_and_not_the_message():
    deflate = zlib.compressobj(wbits=-15)
    data = deflate.compress(b"hello") + deflate.flush(zlib.Z_FINISH) + b"\0"  # RFC 7692 section 7.2.3.5
    assert inflated(Inflater(keeps_context=True), data) == b"hello"


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x06", b"\x00\x01\x00\x00\x00"])
def test_what_is_no_deflate_is_said_to_be_none(data):
    inflater = Inflater(keeps_context=True)
    assert not (inflater.feed(data, lambda _: True, end=False) and inflater.feed(b"", lambda _: True, end=True))
