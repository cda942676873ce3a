"""Opening handshakes: what is refused and how, and what two sides agree on."""

from __future__ import annotations

import pytest
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import generate_accept_token

from gw.filters import Headers, Request, Response
from gw.http.handshake import (
    Compression,
    HandshakeError,
    accept_of,
    answer_offers,
    compression_of,
    known_offers,
    make_key,
    normalised_origin,
    protocol_of,
    refusal_of,
)

KEY = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
VERSION = ("sec-websocket-version", "13")


def asked(*fields, method="GET", version="1.1"):
    request = Request(method, "/", Headers.of(fields), version=version)
    request.upgrade = "websocket"
    return request


def test_the_example_of_the_rfc_is_answered_as_it_says():
    assert accept_of(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_key_of_ours_is_good_and_never_the_same():
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert refusal_of(asked(VERSION, ("sec-websocket-key", key.decode()))) is None
        assert accept_of(key) == generate_accept_token(key)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (asked(VERSION, KEY, method="POST"), 400, "A WebSocket begins with a GET that has no body"),
        (asked(VERSION), 400, "Sec-WebSocket-Key must be 24 characters of base64"),
        (asked(VERSION, KEY, KEY), 400, "Sec-WebSocket-Key must be 24 characters of base64"),
        (
            asked(VERSION, ("sec-websocket-key", "short==")),
            400,
            "Sec-WebSocket-Key must be 24 characters of base64",
        ),
        (
            asked(VERSION, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=*")),
            400,
            "Sec-WebSocket-Key must be 24 characters of base64",
        ),
        (asked(VERSION, VERSION, KEY), 400, "Duplicate Sec-WebSocket-Version header"),
        (asked(KEY), 426, "Sec-WebSocket-Version must be 13"),
        (asked(KEY, ("sec-websocket-version", "8")), 426, "Sec-WebSocket-Version must be 13"),
        (asked(VERSION, KEY, ("sec-websocket-protocol", "a b")), 400, "Invalid Sec-WebSocket-Protocol header"),
        (asked(VERSION, KEY, ("sec-websocket-protocol", "")), 400, "Invalid Sec-WebSocket-Protocol header"),
    ],
)
def test_a_handshake_that_is_wrong_is_refused(request_, status, message):
    reply = refusal_of(request_)
    assert (reply.status, reply.body.decode()) == (status, message)
    assert (("sec-websocket-version", "13") in reply.headers) is (status == 426)


def test_over_http2_there_is_no_key():
    assert refusal_of(asked(VERSION, version="2")) is None
    assert refusal_of(asked(version="2")).status == 426


class TestSubprotocols:
    def test_the_upstream_chooses_one_of_those_offered(self):
        request = asked(("sec-websocket-protocol", "a, b"), ("sec-websocket-protocol", "c"))
        for name in "abc":
            assert protocol_of(request, Response(101, Headers.of([("sec-websocket-protocol", name)]))) == name
        assert protocol_of(request, Response(101)) == ""

    @pytest.mark.parametrize("lines", [["d"], ["A"], ["a, b"], ["a", "b"], [""]])
    def test_another_one_is_an_error(self, lines):
        fields = Headers.of([("sec-websocket-protocol", line) for line in lines])
        with pytest.raises(HandshakeError, match="subprotocol that was not offered"):
            protocol_of(asked(("sec-websocket-protocol", "a, b")), Response(101, fields))


class TestCompression:
    @pytest.mark.parametrize(
        ("line", "offers"),
        [
            ("permessage-deflate", (Compression(),)),
            ("permessage-deflate; client_max_window_bits", (Compression(client_bits_open=True),)),
            (
                'permessage-deflate; server_max_window_bits="10"; client_no_context_takeover',
                (Compression(server_bits=10, client_no_context=True),),
            ),
            ("x-webkit-deflate-frame, permessage-deflate", (Compression(),)),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate",
                (Compression(server_bits=8), Compression()),
            ),
            ("permessage-deflate; server_max_window_bits", ()),
            ("permessage-deflate; server_max_window_bits=7", ()),
            ("permessage-deflate; server_max_window_bits=010", ()),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", ()),
            ("permessage-deflate; server_no_context_takeover=1", ()),
            ("permessage-deflate; unheard_of", ()),
            ("", ()),
        ],
    )
    def test_offers_that_are_known_are_kept(self, line, offers):
        assert known_offers([line]) == offers
        assert known_offers([offer.line.decode() for offer in offers]) == offers

    @pytest.mark.parametrize(
        ("offer", "answer", "fits"),
        [
            ("permessage-deflate", "permessage-deflate", True),
            ("permessage-deflate", "permessage-deflate; server_max_window_bits=10; server_no_context_takeover", True),
            ("permessage-deflate", "permessage-deflate; client_max_window_bits=10", False),
            ("permessage-deflate; client_max_window_bits", "permessage-deflate; client_max_window_bits=10", True),
            ("permessage-deflate; client_max_window_bits=10", "permessage-deflate; client_max_window_bits=9", True),
            ("permessage-deflate; client_max_window_bits=10", "permessage-deflate; client_max_window_bits=11", False),
            ("permessage-deflate; server_max_window_bits=10", "permessage-deflate", False),
            ("permessage-deflate; server_max_window_bits=10", "permessage-deflate; server_max_window_bits=12", False),
            ("permessage-deflate; server_no_context_takeover", "permessage-deflate", False),
            ("permessage-deflate", "permessage-deflate, permessage-deflate", False),
            ("permessage-deflate", "permessage-deflate; client_max_window_bits", False),
            ("permessage-deflate", "x-other", False),
            ("", "permessage-deflate", False),
        ],
    )
    def test_the_answer_is_held_against_the_offers(self, offer, answer, fits):
        if fits:
            assert compression_of(known_offers([offer]), [answer]) == known_offers([answer])[0]
        else:
            with pytest.raises(HandshakeError, match="extension that was not offered"):
                compression_of(known_offers([offer]), [answer])

    def test_no_answer_is_no_compression(self):
        assert compression_of(known_offers(["permessage-deflate"]), []) is None

    @pytest.mark.parametrize(
        "offer",
        [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=9; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=15",
        ],
    )
    def test_what_a_handler_answers_is_what_a_client_takes(self, offer):
        answer = answer_offers(known_offers([offer]))
        assert compression_of(known_offers([offer]), [answer.line.decode()]) == answer
        PerMessageDeflate().finalize(answer.line.decode())
        assert answer.deflater(as_client=False) is not None

    def test_a_window_that_zlib_cannot_make_is_declined(self):
        assert answer_offers(known_offers(["permessage-deflate; server_max_window_bits=8"])) is None
        assert Compression(client_bits=8).deflater(as_client=True) is None


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://a:80", "http://a"),
        ("http://a:8080", "http://a:8080"),
        ("https://a:80", "https://a:80"),
        ("null", "null"),
    ],
)
def test_an_origin_has_one_spelling(origin, normal):
    assert normalised_origin(origin) == normal
