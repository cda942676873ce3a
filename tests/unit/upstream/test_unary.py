"""Unary calls over gRPC, against a server of a few lines on a real socket, and everything that such a server may do wrong."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.streams.tls import TLSListener
from certificates import Authority

from gw.filters import Headers
from gw.http.engines import choose
from gw.http.h2 import Code, Data, Head, SessionSettings
from gw.testing import PATIENCE
from gw.upstream import unary
from gw.upstream.control import Caller, CallFailed

METHOD = "/gw.Test/Echo"
OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]
FINE = [(b"grpc-status", b"0")]


def framed(body, flag=0):
    return bytes((flag,)) + len(body).to_bytes(4) + body


class Server:
    """Answers calls with what *answer* does to its session; remembers heads, bodies, and how many connections came."""

    def __init__(self, answer):
        self.answer, self.heads, self.bodies, self.connections = answer, [], [], 0

    async def serve(self, stream):
        self.connections += 1
        session = choose("pure").server_session(SessionSettings())
        bodies = {}
        async with stream:
            try:
                while True:
                    session.feed(await stream.receive())
                    while session.events:
                        event = session.events.popleft()
                        if isinstance(event, Head):
                            self.heads.append(dict(event.fields))
                            bodies[event.stream] = b""
                        elif isinstance(event, Data):
                            bodies[event.stream] += event.data
                            session.give_back(event.stream, event.flow)
                            if event.end:
                                self.bodies.append(bodies[event.stream])
                                if self.answer(session, event.stream, bodies[event.stream]) == "close":
                                    return
                    while data := session.outgoing(65536):
                        await stream.send(data)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass


def respond(*parts, head=OK, trailers=FINE):
    def answer(session, stream, body):
        session.respond(stream, head, end=False)
        for part in parts or (body,):
            session.send(stream, part, end=False)
        session.trail(stream, trailers)

    return answer


def refuse(*fields):
    return lambda session, stream, body: session.respond(stream, [(b":status", b"200"), *fields], end=True)


@asynccontextmanager
async def serving(answer, tls=None):
    server = Server(answer)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    if tls is not None:
        listener = TLSListener(listener, tls, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        with anyio.fail_after(PATIENCE):
            yield server, port
        tasks.cancel_scope.cancel()


async def called(port, message=b"hello", *, caller=None, most=1000, **rest):
    own = caller or Caller(("127.0.0.1", port))
    try:
        return await own.unary(METHOD, message, timeout=10, most=most, **rest)
    finally:
        if caller is None:
            await own.aclose()


async def test_a_message_goes_out_and_one_comes_back():
    async with serving(respond(trailers=[*FINE, (b"x-more", b"1")])) as (server, port):
        answer = await called(port, headers=[("X-Key", "k")])
    assert (answer.status, answer.message, answer.body, answer.trailers.get("x-more")) == (0, "", b"hello", "1")
    (head,) = server.heads
    assert head == {
        b":method": b"POST",
        b":scheme": b"http",
        b":authority": b"127.0.0.1:%d" % port,
        b":path": METHOD.encode(),
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"grpc-timeout": b"10000m",
        b"grpc-accept-encoding": b"identity",
        b"x-key": b"k",
    }
    assert server.bodies == [framed(b"hello")]


async def test_what_is_compressed_says_so():
    async with serving(respond(framed(b""))) as (server, port):
        await called(port, b"zipped", headers=[("grpc-encoding", "gzip")], compressed=True)
    assert server.bodies == [framed(b"zipped", 1)]
    assert server.heads[0][b"grpc-encoding"] == b"gzip"


async def test_a_message_that_is_larger_than_any_window_arrives_whole():
    async with serving(respond()) as (_, port):
        answer = await called(port, b"x" * 1_000_000, most=1_000_000)
    assert answer.body == b"x" * 1_000_000


async def test_window_is_given_back_before_it_is_waited_for():
    """The answer comes in pieces of a whole window each, and nothing comes in between."""
    first = choose("pure").server_session(SessionSettings())

    class Stingy:
        def __init__(self):
            self.out, self.sent = b"", 0

        async def send(self, data):
            await anyio.lowlevel.checkpoint()
            first.feed(data)
            while first.events:
                event = first.events.popleft()
                if isinstance(event, Head):
                    first.respond(event.stream, OK, end=False)
                    first.send(event.stream, framed(b"z" * 300_000), end=False)
                    first.trail(event.stream, FINE)

        async def receive(self, most):
            await anyio.lowlevel.checkpoint()
            self.out += b"".join(iter(lambda: first.outgoing(65536), b""))
            assert self.out, "both ends wait for one another"
            piece, self.out = self.out[:most], self.out[most:]
            return piece

        async def aclose(self):
            pass

    reply = await unary._Connection(Stingy()).call(
        unary.head_of("a", METHOD, 1.0, (), tls=False), framed(b"a"), 300_000
    )
    assert reply.body == b"z" * 300_000


async def test_the_connection_is_kept_and_calls_at_once_have_one_each():
    async with serving(respond()) as (server, port):
        caller = Caller(("127.0.0.1", port))
        for _ in range(3):
            await called(port, caller=caller)
        assert server.connections == 1
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lambda: called(port, caller=caller))
        assert server.connections <= 5
        await caller.aclose()
    assert len(server.bodies) == 8


async def test_a_connection_that_was_closed_meanwhile_is_replaced():
    def once(session, stream, body):
        respond()(session, stream, body)
        session.goaway(Code.NO_ERROR)

    async with serving(once) as (server, port):
        caller = Caller(("127.0.0.1", port))
        for number in range(1, 4):
            assert (await called(port, caller=caller)).status == 0
            assert server.connections == number
        await caller.aclose()


async def test_a_call_that_was_not_answered_on_a_kept_connection_is_made_again():
    calls = []

    def every_other(session, stream, body):
        calls.append(body)
        return "close" if len(calls) == 2 else respond()(session, stream, body)

    async with serving(every_other) as (server, port):
        caller = Caller(("127.0.0.1", port))
        assert [(await called(port, caller=caller)).status for _ in range(2)] == [0, 0]
        await caller.aclose()
    assert (len(calls), server.connections) == (3, 2)


async def test_one_that_was_idle_for_long_is_not_used(monkeypatch):
    monkeypatch.setattr(unary, "CALLER_IDLE_TIME", 0.0)
    async with serving(respond()) as (server, port):
        caller = Caller(("127.0.0.1", port))
        for _ in range(2):
            await called(port, caller=caller)
        await caller.aclose()
    assert server.connections == 2


async def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(unary, "CALLER_CONNECTIONS", 2)
    async with serving(respond()) as (server, port):
        caller = Caller(("127.0.0.1", port))
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: called(port, caller=caller))
        await caller.aclose()
    assert (len(server.bodies), server.connections) == (20, 2)


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (refuse((b"content-type", b"application/grpc"), (b"grpc-status", b"14"), (b"grpc-message", b"full%3A %E2%82%AC")), 14, "full: \u20ac"),
        (respond(trailers=[(b"grpc-status", b"8"), (b"grpc-message", b"later")]), 8, "later"),
        (respond(trailers=[(b"x", b"y")]), 2, "no grpc-status; status 200"),
        (respond(head=[(b":status", b"503")], trailers=[(b"x", b"y")]), 14, "no grpc-status; status 503"),
        (respond(head=[(b":status", b"404")], trailers=[(b"x", b"y")]), 12, "no grpc-status; status 404"),
    ],
)  # fmt: skip
async def test_a_status_is_an_answer(answer, status, message):
    async with serving(answer) as (_, port):
        found = await called(port)
    assert (found.status, found.message, found.body) == (status, message, b"")


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (lambda session, stream, body: session.reset(stream, Code.REFUSED_STREAM), "protocol", "it reset the call: REFUSED_STREAM"),
        (lambda session, stream, body: "close", "protocol", "it closed the connection"),
        (respond(b"abc"), "protocol", "its body is not one message without compression"),
        (respond(framed(b"a") + framed(b"b")), "protocol", "its body is not one message without compression"),
        (respond(framed(b"a", 1)), "protocol", "its body is not one message without compression"),
        (respond(head=[(b":status", b"200"), (b"content-type", b"text/html")]), "protocol", "it is no answer of gRPC"),
        (respond(trailers=[(b"grpc-status", b"x")]), "protocol", "its grpc-status is 'x'"),
        (respond(framed(b"y" * 1001)), "too_large", "the answer has more than 1000 bytes"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_a_failure(answer, kind, why):
    async with serving(answer) as (_, port):
        with pytest.raises(CallFailed) as failed:
            await called(port)
    assert failed.value.kind == kind
    assert why in str(failed.value)


class Silent:
    """A connection whose other end takes everything and says nothing."""

    def __init__(self):
        self.is_closed = False

    async def send(self, data):
        await anyio.lowlevel.checkpoint()

    async def receive(self, most):
        await anyio.sleep_forever()

    async def aclose(self):
        self.is_closed = True
        await anyio.lowlevel.checkpoint()


async def test_one_who_is_silent_is_given_up_and_the_connection_with_it(monkeypatch):
    silent = Silent()

    async def connect(*_):
        await anyio.lowlevel.checkpoint()
        return silent

    monkeypatch.setattr(unary, "_connect", connect)
    caller = Caller(("192.0.2.1", 1))
    with pytest.raises(CallFailed, match=r"no answer within 0\.05 s") as failed:
        await caller.unary(METHOD, b"", timeout=0.05, most=10)
    assert failed.value.kind == "timeout"
    assert silent.is_closed
    assert caller._unary._idle == {}
    await caller.aclose()


async def test_one_who_is_not_there_is_named():
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with pytest.raises(CallFailed, match=r"cannot connect to 127\.0\.0\.1") as failed:
        await called(port)
    assert failed.value.kind == "connect"


@pytest.mark.parametrize(("offered", "fine"), [(["h2"], True), (["http/1.1"], False)])
async def test_tls_is_verified_and_has_to_agree_on_http_2(tmp_path, offered, fine):
    authority = Authority(tmp_path)
    files = authority.issue("collector.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert_file"], files["key_file"])
    context.set_alpn_protocols(offered)
    async with serving(respond(), context) as (server, port):
        own = authority.trusting(alpn=("h2",))
        caller = Caller(("127.0.0.1", port), tls=own, server_name="collector.test")
        if fine:
            assert (await called(port, caller=caller)).body == b"hello"
            assert server.heads[0][b":scheme"] == b"https"
        else:
            with pytest.raises(CallFailed):
                await called(port, caller=caller)
        await caller.aclose()


async def test_without_an_address_the_url_says_where():
    async with serving(respond()) as (_, port):
        caller = Caller()
        answer = await caller.unary(f"http://127.0.0.1:{port}{METHOD}", b"a", timeout=10, most=10)
        await caller.aclose()
    assert answer.body == b"a"


async def test_a_call_that_ends_after_everything_was_closed_leaves_no_connection(monkeypatch):
    silent, asked, goes_on = Silent(), anyio.Event(), anyio.Event()

    async def connect(*_):
        await anyio.lowlevel.checkpoint()
        return silent

    async def answered(*_):
        asked.set()
        await goes_on.wait()
        return unary.Reply(0, "", b"", Headers([]))

    monkeypatch.setattr(unary, "_connect", connect)
    monkeypatch.setattr(unary._Connection, "call", answered)
    caller = Caller(("192.0.2.1", 1))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(called, 1, caller=caller))
            await asked.wait()
            await caller.aclose()
            goes_on.set()
    assert silent.is_closed
