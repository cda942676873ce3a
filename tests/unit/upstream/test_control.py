"""The gateway's own calls, against a server of a few lines on a real socket."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

import anyio
import pytest

from gw.upstream.control import Caller, CallFailed


@asynccontextmanager
async def server(answer: bytes, *, hangs: bool = False):
    """Serve *answer* to whatever comes; yields the port and the list of requests."""
    asked = []

    async def handle(stream):
        async with stream:
            try:
                request = await stream.receive()
                while request.startswith(b"POST") and not request.endswith(b"q=1"):
                    request += await stream.receive()
                asked.append(request)
                if hangs:
                    await anyio.sleep_forever()
                await stream.send(answer)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(anyio.abc.SocketAttribute.local_port), asked
        tasks.cancel_scope.cancel()


HELLO = b"HTTP/1.1 201 Created\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello"


async def test_a_call_brings_status_headers_and_body():
    async with server(HELLO) as (port, asked):
        caller = Caller()
        answer = await caller.call("GET", f"http://127.0.0.1:{port}/a?b=c", timeout=5, most=100)
        await caller.aclose()
    assert (answer.status, answer.headers.get("x-a"), answer.body) == (201, "1", b"hello")
    assert asked[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"host: 127.0.0.1:%d\r\n" % port in asked[0].lower()


async def test_a_body_goes_out_with_its_length_and_the_headers_given():
    async with server(HELLO) as (port, asked):
        caller = Caller()
        await caller.call(
            "POST", f"http://127.0.0.1:{port}/", headers=[("accept", "text/x")], body=b"q=1", timeout=5, most=100
        )
        await caller.aclose()
    assert re.search(rb"(?i)content-length: 3\r\n", asked[0])
    assert b"accept: text/x\r\n" in asked[0]
    assert asked[0].endswith(b"\r\n\r\nq=1")


async def test_a_caller_of_an_upstream_goes_there_whatever_the_url_says():
    async with server(HELLO) as (port, asked):
        caller = Caller(("127.0.0.1", port))
        answer = await caller.call("GET", "https://idp.example/keys", timeout=5, most=100)
        await caller.aclose()
    assert answer.status == 201
    assert b"host: idp.example\r\n" in asked[0].lower()


async def test_an_answer_larger_than_allowed_is_none():
    async with server(HELLO) as (port, _):
        caller = Caller()
        with pytest.raises(CallFailed, match="the answer has more than 4 bytes") as failed:
            await caller.call("GET", f"http://127.0.0.1:{port}/", timeout=5, most=4)
        await caller.aclose()
    assert failed.value.kind == "too_large"


@pytest.mark.parametrize(
    ("answer", "hangs", "kind"),
    [(b"", False, "protocol"), (b"\x16\x03\x01", False, "protocol"), (b"", True, "timeout")],
    ids=["closed", "not HTTP", "silence"],
)
async def test_what_is_no_answer_has_a_kind(answer, hangs, kind):
    async with server(answer, hangs=hangs) as (port, _):
        caller = Caller()
        with pytest.raises(CallFailed) as failed:
            await caller.call("GET", f"http://127.0.0.1:{port}/", timeout=0.2, most=100)
        await caller.aclose()
    assert failed.value.kind == kind


async def test_where_nobody_listens_the_address_is_named():
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    await listener.aclose()
    caller = Caller()
    with pytest.raises(CallFailed, match=rf"^cannot connect to 127\.0\.0\.1:{port}: ") as failed:
        await caller.call("GET", f"http://127.0.0.1:{port}/", timeout=5, most=100)
    assert failed.value.kind == "connect"


async def test_after_being_closed_it_opens_again():
    async with server(HELLO) as (port, asked):
        caller = Caller()
        for _ in range(2):
            await caller.call("GET", f"http://127.0.0.1:{port}/", timeout=5, most=100)
            await caller.aclose()
    assert len(asked) == 2


async def test_a_path_is_asked_for_under_the_name_of_the_address():
    async with server(HELLO) as (port, asked):
        caller = Caller(("127.0.0.1", port))
        await caller.call("GET", "/a?b=c", timeout=5, most=100)
        await caller.aclose()
    assert asked[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"host: 127.0.0.1:%d\r\n" % port in asked[0].lower()
