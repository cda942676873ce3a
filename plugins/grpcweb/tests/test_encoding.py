"""Base64 that is cut and padded anywhere, content types, and the frame of trailers."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given, strategies as st

from gw_grpcweb.encoding import (
    BadText,
    TextDecoder,
    as_grpc,
    as_web,
    encode_text,
    is_grpc,
    trailer_frame,
    web_kind,
)


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(1, 9))
def test_pieces_that_were_padded_one_by_one_come_back_however_they_are_cut(pieces, cut):
    text = b"".join(map(b64encode, pieces))
    decoder = TextDecoder()
    out = b"".join(decoder.feed(text[at : at + cut], end=False) for at in range(0, len(text), cut))
    assert out + decoder.feed(b"", end=True) == b"".join(pieces)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_what_we_encode_is_what_we_decode(pieces):
    assert TextDecoder().feed(b"".join(map(encode_text, pieces)), end=True) == b"".join(pieces)


@pytest.mark.parametrize("text", [b"a", b"ab", b"abc", b"abc!", b"a===", b"=abc", b"ab=c", b"ab c", b"abcd\r\n"])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(BadText):
        TextDecoder().feed(text, end=True)


@pytest.mark.parametrize(
    ("content_type", "kind", "grpc"),
    [
        ("application/grpc-web", "binary", "application/grpc"),
        ("application/grpc-web+proto", "binary", "application/grpc+proto"),
        ("application/grpc-web; charset=utf-8", "binary", "application/grpc; charset=utf-8"),
        ("Application/gRPC-Web-Text+proto", "text", "application/grpc+proto"),
        ("application/grpc-web-text", "text", "application/grpc"),
        ("application/grpc-webby", None, None),
        ("application/grpc", None, None),
        ("", None, None),
    ],
)
def test_content_types_are_told_apart_and_translated(content_type, kind, grpc):
    assert web_kind(content_type) == kind
    if grpc is not None:
        assert as_grpc(content_type) == grpc
        assert is_grpc(grpc)
        assert as_web(grpc, kind) == content_type.lower()


def test_trailers_are_a_frame_whose_first_bit_is_set():
    frame = trailer_frame([("grpc-status", "0"), ("grpc-message", "fine")])
    assert frame == b"\x80\x00\x00\x00\x22grpc-status:0\r\ngrpc-message:fine\r\n"
