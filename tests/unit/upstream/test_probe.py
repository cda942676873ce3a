"""What a check says, and what it makes of answers, over HTTP/2 and in gRPC's words. The gateway is real, time is virtual."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from gw.http.h2 import Code
from gw.limits import CHECK_BYTES
from gw.net.stream import StreamLost
from gw.testing.gateway import in_memory
from gw.testing.http2 import Http2Upstream

SERVING = b"\0\0\0\0\2\x08\1"
GRPC = [("content-type", "application/grpc")]
FINE = [("grpc-status", "0")]


def config(active, **http2):
    upstream = {
        "name": "up",
        "host": "192.0.2.1",
        "port": 80,
        "http2": {"enabled": True, "prefer": "h2c", **http2},
        "health": {"active": {"interval_ms": 1000, "jitter_percent": 0, "timeout_ms": 500, **active}},
        "proxy": {"route_prefix": "/"},
    }
    return {"upstreams": [upstream]}


@asynccontextmanager
async def checked(upstream, engine, **active):
    """Run a gateway in front of *upstream* and yield its only endpoint, once that was checked."""
    async with in_memory(config(active), upstream, engine=engine) as gateway:
        await gateway.network.advance(0.7)
        service = gateway.gateway._current.now.services["up"]
        assert service.checks.done == 1
        yield service.endpoints.members[0]


def says(text, caplog):
    return re.search(r"is unhealthy: (.*) \(checks: 1\)", caplog.text)[1] == text


class TestOverHttp2:
    @pytest.mark.parametrize(
        ("status", "active", "healthy"),
        [("200", {}, True), ("204", {}, True), ("503", {}, False), ("503", {"expected_statuses": [503]}, True)],
    )
    async def test_the_status_decides(self, engine, status, active, healthy):
        upstream = Http2Upstream(lambda peer, stream: peer.respond(stream, int(status)), engine=engine)
        async with checked(upstream, engine, **active) as member:
            assert member.healthy is healthy

    async def test_what_is_asked_is_what_the_settings_say(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with checked(upstream, engine, path="/healthz?deep=1", host="svc.example", headers={"x-probe": "gw"}):
            (asked,) = upstream.asked
        head = asked.head
        assert (head.method, head.target, head.host, head.scheme) == ("GET", "/healthz?deep=1", "svc.example", "http")
        assert dict(head.headers) == {"user-agent": "gw-health", "x-probe": "gw"}

    async def test_the_head_is_enough(self, engine):
        upstream = Http2Upstream(lambda peer, stream: peer.respond(stream, body=b"x", more=True), engine=engine)
        async with checked(upstream, engine) as member:
            assert member.healthy

    async def test_interim_answers_decide_nothing(self, engine):
        def answer(peer, stream):
            peer.interim(stream, 103)
            peer.respond(stream, 500)

        async with checked(Http2Upstream(answer, engine=engine), engine) as member:
            assert not member.healthy

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (lambda peer, stream: peer.reset(stream, Code.INTERNAL_ERROR), "it reset the stream: INTERNAL_ERROR"),
            (lambda peer, _: peer.goaway(0), "it said GOAWAY"),
            (lambda peer, _: peer.stream.close(), "it closed the connection without an answer"),
            (lambda *_: None, "no answer within 0.5 s"),
        ],
    )
    async def test_what_is_no_answer_is_unhealthy(self, engine, answer, told, caplog):
        async with checked(Http2Upstream(answer, engine=engine), engine) as member:
            assert not member.healthy
        assert says(told, caplog)

    async def test_what_does_not_speak_it_is_unhealthy(self, engine, caplog):
        async def script(stream):
            stream.write(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n")
            with suppress(anyio.EndOfStream, StreamLost):
                await stream.read_until_end()

        async with checked(script, engine) as member:
            assert not member.healthy
        assert "endpoint 192.0.2.1:80 is unhealthy: " in caplog.text

    async def test_checks_use_no_place_of_the_pool(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with in_memory(config({}), upstream, engine=engine) as gateway:
            await gateway.network.advance(5)
            service = gateway.gateway._current.now.services["up"]
            assert (service.pool.open, len(upstream.peers) >= 5) == (0, True)
            assert all(stream.lost for stream in gateway.network.peers)


class TestGrpc:
    async def test_what_is_asked_is_what_its_document_says(self, engine):
        upstream = Http2Upstream(
            lambda peer, stream: peer.respond(stream, 200, GRPC, SERVING, trailers=FINE), engine=engine
        )
        async with checked(upstream, engine, type="grpc", service="a.b.C") as member:
            assert member.healthy
            (asked,) = upstream.asked
        assert (asked.head.method, asked.head.target) == ("POST", "/grpc.health.v1.Health/Check")
        assert asked.head.headers.get("content-type") == "application/grpc"
        assert asked.head.headers.get("te") == "trailers"
        assert asked.body == b"\0\0\0\0\x07\x0a\x05a.b.C"

    async def test_without_a_service_the_message_is_empty(self, engine):
        upstream = Http2Upstream(
            lambda peer, stream: peer.respond(stream, 200, GRPC, SERVING, trailers=FINE), engine=engine
        )
        async with checked(upstream, engine, type="grpc"):
            assert upstream.asked[0].body == b"\0\0\0\0\0"

    async def test_a_long_name_has_a_long_length(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with checked(upstream, engine, type="grpc", service="x" * 200):
            assert upstream.asked[0].body == b"\0\0\0\0\xcb\x0a\xc8\1" + b"x" * 200

    @pytest.mark.parametrize(
        ("status", "body", "trailers", "told"),
        [
            (200, b"\0\0\0\0\2\x08\2", FINE, "it is NOT_SERVING"),
            (200, b"\0\0\0\0\2\x08\3", FINE, "it is SERVICE_UNKNOWN"),
            (200, b"\0\0\0\0\0", FINE, "it is UNKNOWN"),
            (200, b"\0\0\0\0\2\x08\x09", FINE, "it is in state 9"),
            (200, SERVING, [("grpc-status", "5")], "it answered grpc-status 5"),
            (200, SERVING, [("x", "y")], "it answered grpc-status none"),
            (503, SERVING, FINE, "it answered 503"),
            (200, b"", FINE, "its answer is no message of gRPC"),
            (200, SERVING[:-1], FINE, "its answer is no message of gRPC"),
            (200, b"\1" + SERVING[1:], FINE, "its answer is no message of gRPC"),
            (200, b"\0\0\0\0\1\x08", FINE, "its answer is no HealthCheckResponse"),
            (200, b"\0\0\0\0\1\x0f", FINE, "its answer is no HealthCheckResponse"),
            (200, b"\0\0\0\0\2\x12\x09", FINE, "its answer is no HealthCheckResponse"),
            (200, b"\0\0\0\0\x0c\x08" + b"\xff" * 11, FINE, "its answer is no HealthCheckResponse"),
            (200, b"x" * (CHECK_BYTES + 1), FINE, f"its answer is longer than {CHECK_BYTES} bytes"),
        ],
    )
    async def test_what_is_not_serving_is_unhealthy(self, engine, status, body, trailers, told, caplog):
        upstream = Http2Upstream(
            lambda peer, stream: peer.respond(stream, status, GRPC, body, trailers=trailers), engine=engine
        )
        async with checked(upstream, engine, type="grpc") as member:
            assert not member.healthy
        assert says(told, caplog)

    @pytest.mark.parametrize(
        "body",
        [
            b"\0\0\0\0\4\x08\2\x08\1",  # the last one counts
            b"\0\0\0\0\x06\x12\2ab\x08\1",  # other fields are passed over
            b"\0\0\0\0\x14\x10\7\x19" + b"z" * 8 + b"\x25" + b"z" * 4 + b"\x08\1\x10\0",
        ],
    )
    async def test_any_message_that_says_serving_is_healthy(self, engine, body):
        upstream = Http2Upstream(
            lambda peer, stream: peer.respond(stream, 200, GRPC, body, trailers=FINE), engine=engine
        )
        async with checked(upstream, engine, type="grpc") as member:
            assert member.healthy

    async def test_an_error_that_is_only_a_head(self, engine, caplog):
        upstream = Http2Upstream(
            lambda peer, stream: peer.respond(stream, 200, [*GRPC, ("grpc-status", "12")], None), engine=engine
        )
        async with checked(upstream, engine, type="grpc") as member:
            assert not member.healthy
        assert says("it answered grpc-status 12", caplog)
