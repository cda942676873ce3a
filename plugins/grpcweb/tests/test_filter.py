"""Calls of gRPC-Web through the filter, alone and in a whole gateway."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest

from gw.testing import check_filter, drive, in_memory
from gw.testing.gateway import Upstream
from gw_grpcweb.filter import GrpcWeb

MESSAGE = b"\x00\x00\x00\x00\x05hello"
REPLY = b"\x00\x00\x00\x00\x05world"
STATUS = b"\x80\x00\x00\x00\x0fgrpc-status:0\r\n"
GRPC = {"content-type": "application/grpc+proto"}
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc+proto\r\ntrailer: grpc-status\r\ntransfer-encoding: chunked\r\n"
    b"\r\na\r\n" + REPLY + b"\r\n0\r\ngrpc-status: 0\r\n\r\n"
)
CONFIG = {
    "plugins": ["grpcweb"],
    "grpcweb": {},
    "upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}],
}


def call(body, kind, *lines, path="/a.B/C"):
    fields = "".join(f"{line}\r\n" for line in lines)
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/{kind}\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
    return head.encode() + body


async def test_a_binary_call_goes_on_as_grpc_and_its_trailers_come_back_in_the_body():
    upstream = Upstream(ANSWER)
    async with in_memory(CONFIG, upstream) as gateway:
        got = await gateway.request(call(MESSAGE, "grpc-web+proto"))
        assert (got.status, got.headers.get("content-type")) == (200, "application/grpc-web+proto")
        assert got.body == REPLY + STATUS
        assert got.trailers is None
        assert got.headers.get("trailer") is None
        (asked,) = upstream.asked
        assert asked.body == MESSAGE
        assert asked.head.headers.get("content-type") == "application/grpc+proto"
        assert asked.head.headers.get("te") == "trailers"


async def test_a_text_call_is_decoded_and_its_answer_encoded():
    upstream = Upstream(ANSWER)
    text = b64encode(MESSAGE[:4]) + b64encode(MESSAGE[4:])
    async with in_memory(CONFIG, upstream) as gateway:
        got = await gateway.request(call(text, "grpc-web-text+proto"))
        assert got.headers.get("content-type") == "application/grpc-web-text+proto"
        decoded = b""
        for at in range(0, len(got.body), 4):
            decoded += b64decode(got.body[at : at + 4])
        assert decoded == REPLY + STATUS
        assert upstream.asked[0].body == MESSAGE


async def test_the_client_may_want_its_answer_in_the_other_form():
    async with in_memory(CONFIG, Upstream(ANSWER)) as gateway:
        got = await gateway.request(call(MESSAGE, "grpc-web+proto", "accept: application/grpc-web-text"))
        assert got.headers.get("content-type") == "application/grpc-web-text+proto"


async def test_an_error_without_a_body_stays_in_the_head():
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n"
    async with in_memory(CONFIG, Upstream(answer)) as gateway:
        got = await gateway.request(call(MESSAGE, "grpc-web"))
        assert (got.headers.get("grpc-status"), got.body) == ("5", b"")
        assert got.headers.get("content-type") == "application/grpc-web"


async def test_our_own_failures_are_a_status_that_the_client_understands():
    async with in_memory(
        CONFIG | {"upstreams": [{"name": "up", "host": "192.0.2.9", "proxy": {"route_prefix": "/"}}]}
    ) as gateway:
        got = await gateway.request(call(MESSAGE, "grpc-web+proto"))
        assert (got.status, got.headers.get("grpc-status")) == (200, "14")
        assert got.headers.get("content-type") == "application/grpc-web+proto"


@pytest.mark.parametrize("text", [b"!!!!", b"abc"])
async def test_text_that_is_no_base64_is_refused(text):
    async with in_memory(CONFIG) as gateway:
        got = await gateway.request(call(text, "grpc-web-text"))
        # It became gRPC before its body was looked at, and is answered as such.
        assert (got.headers.get("grpc-status"), got.headers.get("grpc-message")) == ("13", "The body is not base64")


async def test_what_is_no_grpc_passes_untouched():
    played = await drive(
        GrpcWeb(), method="POST", body=b"{}", headers={"content-type": "application/json"}, upstream=b"ok"
    )
    assert played.upstream_body == b"{}"
    assert played.upstream_headers.get("content-length") == "2"
    assert (played.body, played.headers.get("content-length")) == (b"ok", "2")


async def test_an_answer_that_is_no_grpc_passes_untouched():
    played = await drive(
        GrpcWeb(),
        method="POST",
        body=MESSAGE,
        headers={"content-type": "application/grpc-web"},
        upstream=b"<h1>",
        status=503,
        upstream_headers={"content-type": "text/html"},
    )
    assert (played.status, played.body, played.headers.get("content-type")) == (503, b"<h1>", "text/html")


async def test_a_message_of_a_stream_does_not_wait_for_the_next():
    played = await drive(
        GrpcWeb(),
        method="POST",
        body=b64encode(MESSAGE),
        headers={"content-type": "application/grpc-web-text"},
        upstream=[b"a", b"bc"],
        upstream_headers=GRPC,
    )
    assert [line for line in played.log if line.startswith("down.s")] == [
        "down.start 200 0",
        "down.send 4",
        "down.send 4 end",
    ]
    assert played.body == b64encode(b"a") + b64encode(b"bc")


async def test_it_keeps_the_promises_of_filters():
    await check_filter(GrpcWeb, body=MESSAGE, headers={"content-type": "application/grpc-web"})
    await check_filter(GrpcWeb, body=b64encode(MESSAGE * 3), headers={"content-type": "application/grpc-web-text"})
