"""Every row of behaviour 11.4, over HTTP/1.1 and HTTP/2: what an upstream does, and what the client and the log are told."""

from __future__ import annotations

import socket
from types import ModuleType

import anyio
import pytest

from gw import Filter, hookimpl
from gw.http.h2 import Code, SessionSettings
from gw.net.stream import StreamLost
from gw.plugins import PluginSet
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Client, StreamReset
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BODY = b"x" * 3_000_000


def answers(*data, then="wait"):
    """Return an upstream that says *data* once it was asked, and then waits, closes or resets."""

    async def script(stream):
        try:
            await stream.read_until(b"\r\n\r\n")
            for piece in data:
                stream.write(piece)
            if then == "close":
                stream.close()
            elif then == "reset":
                stream.abort()
            await stream.read_until_end()
        except (StreamLost, anyio.EndOfStream):
            pass

    return script


class Watch(Filter):
    """Remembers how exchanges ended."""

    name = "watch"

    def __init__(self):
        self.reasons = []

    def on_complete(self, ex):
        self.reasons.append(ex.reason)


def watched():
    module, watch = ModuleType("watch"), Watch()
    module.GW_API = 1
    module.gw_filters = hookimpl(lambda route, ctx: [watch])
    plugins = PluginSet()
    plugins.add("watch", module)
    return plugins, watch


def config(host="192.0.2.1", pool=None, **proxy):
    upstream = {"name": "up", "host": host, "pool": pool or {}, "proxy": {"route_prefix": "/", **proxy}}
    return {"upstreams": [upstream], "max_body_size": 10_000_000}


NO_RETRIES = {"max_retries": 1, "budget": {"percent": 0, "min_concurrency": 0}}
LATE = {"response_timeout_ms": 1000}

ROWS = {
    "refused": (config("192.0.2.66"), None, "GET", 502, "gw.connect_failure", {}),
    "no such name": (config("gone.example"), None, "GET", 502, "gw.resolve_failure", {}),
    "disconnect": (config(), answers(then="close"), "GET", 502, "gw.upstream_disconnect", {}),
    "reset": (config(), answers(then="reset"), "GET", 502, "gw.upstream_disconnect", {}),
    "truncated head": (config(), answers(b"HTTP/1.1 200 O", then="close"), "GET", 502, "gw.upstream_truncated", {}),
    "garbage": (config(), answers(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"), "GET", 502, "gw.upstream_parse_error", {}),
    "two lengths": (
        config(),
        answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n"),
        "GET",
        502,
        "gw.upstream_parse_error",
        {},
    ),
    "silent": (config(**LATE), answers(), "GET", 504, "gw.upstream_timeout", {}),
    "silent after an interim": (
        config(**LATE),
        answers(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        "GET",
        504,
        "gw.upstream_timeout",
        {},
    ),
    "takes no body": (config(send_timeout_ms=1000), Backlog(), "POST", 504, "gw.upstream_send_stalled", {}),
    "too long in all": (config(exchange_timeout_ms=1000), answers(), "GET", 504, "gw.exchange_timeout", {}),
    "too long a try": (
        config(retry={"per_try_timeout_ms": 500}),
        answers(),
        "GET",
        504,
        "gw.per_try_timeout",
        {},
    ),
    "retry budget empty": (
        config(retry=NO_RETRIES),
        answers(then="close"),
        "GET",
        503,
        "gw.retry_budget_exhausted",
        {"x-retry-budget-exhausted": "1"},
    ),
    "not to be repeated": (
        config(retry={"max_retries": 1}),
        answers(then="close"),
        "POST",
        502,
        "gw.upstream_disconnect",
        {"x-proxy-retry-denied": "non-idempotent-headers-queued"},
    ),
    "body too large to be kept": (
        config(retry={"max_retries": 1, "buffer_bytes": 10}),
        answers(then="close"),
        "PUT",
        502,
        "gw.upstream_disconnect",
        {"x-proxy-retry-denied": "streaming-body-on-wire"},
    ),
}


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("row", ROWS)
async def test_what_an_upstream_does_is_answered_as_it_should_be(row, version):
    settings, script, method, status, reason, fields = ROWS[row]
    plugins, watch = watched()
    upstreams = {"192.0.2.1:80": script} if script is not None else {}
    if "gone.example" in str(settings):
        settings = {**settings, "dns": {"refresh_sec": 0}}
    async with in_memory(settings, upstreams=upstreams, plugins=plugins) as gateway:
        gateway.network.names["gone.example"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        for names in [service.names for service in gateway.gateway._current.now.services.values() if service.names]:
            names._stale = False
            await names.resolve()
        answer = await exchanged(gateway, version, method)
        assert (answer.status, watch.reasons) == (status, [reason])
        assert {name: answer.headers.get(name) for name in fields} == fields


async def exchanged(gateway, version, method):
    """Send a request, let time pass, and return the answer."""
    got = []
    async with anyio.create_task_group() as tasks:

        async def one():
            stream = gateway.connect()
            if version == "2":
                client = Http2Client(stream)
                asked = client.request(method=method, body=None if method == "GET" else BODY)
                got.append(await client.answer(asked))
            else:
                length = b"" if method == "GET" else b"content-length: %d\r\n" % len(BODY)
                stream.write(f"{method} / HTTP/1.1\r\nhost: a\r\n".encode() + length + b"\r\n")
                stream.write(b"" if method == "GET" else BODY)
                got.append(await read_answer(stream, method))

        tasks.start_soon(one)
        await gateway.network.settle()
        for _ in range(60):
            if got:
                break
            await gateway.network.advance(0.1)
        tasks.cancel_scope.cancel()
    (answer,) = got
    return answer


@pytest.mark.parametrize(
    ("pool", "waits", "reason"),
    [
        ({"max_connections": 1, "max_idle_connections": 1, "max_queue": 0}, 0.0, "gw.pool_queue_full"),
        ({"max_connections": 1, "max_idle_connections": 1, "queue_timeout_ms": 500}, 0.7, "gw.pool_queue_timeout"),
    ],
)
async def test_a_pool_that_is_exhausted_is_503(pool, waits, reason):
    plugins, watch = watched()
    async with in_memory(config(pool=pool), Backlog(), plugins=plugins) as gateway:
        first, second = gateway.connect(), gateway.connect()
        for stream in (first, second):
            stream.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await gateway.network.settle()
        await gateway.network.advance(waits)
        assert (await read_answer(second)).status == 503
        assert watch.reasons == [reason]


async def test_a_body_over_the_limit_is_413_on_its_way():
    plugins, watch = watched()
    settings = {**config(), "max_body_size": 10}
    async with in_memory(settings, Backlog(), plugins=plugins) as gateway:
        data = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n20\r\n" + b"x" * 32 + b"\r\n0\r\n\r\n"
        answer = await gateway.request(data, method="POST")
        assert (answer.status, answer.headers.get("x-request-body-limit-exceeded")) == (413, "true")
        assert watch.reasons == ["gw.body_too_large"]


LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nok"
"""More than `auto` holds."""

CUT = {
    "reset": (answers(LONG, then="reset"), {}, "gw.upstream_truncated"),
    "close": (answers(LONG, then="close"), {}, "gw.upstream_truncated"),
    "bad chunk": (
        answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n"),
        {},
        "gw.upstream_parse_error",
    ),
    "idle": (
        answers(LONG),
        {"stream_idle_timeout_sec": 1},
        "gw.upstream_idle",
    ),
    "too long": (
        answers(LONG),
        {"stream_idle_timeout_sec": 0, "stream_max_duration_sec": 1},
        "gw.upstream_too_long",
    ),
}


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("row", CUT)
async def test_what_fails_after_the_head_is_broken_off_visibly_and_never_retried(row, version):
    script, proxy, reason = CUT[row]
    plugins, watch = watched()
    retry = {"max_retries": 3, "retry_on_timeout": True, "retry_on_5xx": True}
    async with in_memory(config(retry=retry, **proxy), script, plugins=plugins) as gateway:
        stream = gateway.connect()
        if version == "2":
            client = Http2Client(stream, SessionSettings())
            asked = client.request()
            await gateway.network.advance(2.0)
            with pytest.raises(StreamReset) as told:
                await client.answer(asked)
            assert told.value.code == Code.INTERNAL_ERROR
        else:
            stream.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await gateway.network.advance(2.0)
            with pytest.raises(StreamLost):
                await stream.read_until_end()
        assert watch.reasons == [reason]
        assert len(gateway.network.dialled) == 1
