"""Handlers in this process: the bodies they read, what they send before the answer, and what they push."""

from __future__ import annotations

from types import ModuleType

import pytest
from frames import DATA, GET, PUSH_PROMISE, START, head, parsed

from gw.config.load import load
from gw.filters import Body, Filter, Headers, Reply
from gw.hookspecs import LocalRoute, hookimpl
from gw.limits import MAX_INTERIM_RESPONSES
from gw.plugins import PluginSet
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Client

ALONE = {"plugins": [], "upstreams": []}
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\n"


async def echo(ex):
    return Reply(200, b"<" + await ex.read() + b">")


def program(*filters, **handlers):
    """Return what sets up a gateway with handlers at the paths of their names."""

    def prepare(gateway):
        gateway.use(*filters)
        for path, handler in handlers.items():
            gateway.get(f"/{path}", handler)
            gateway.post(f"/{path}", handler)

    return prepare


class TestBodies:
    async def test_it_is_whole_however_it_comes(self):
        async with in_memory(ALONE, prepare=program(echo=echo)) as gateway:
            for head, body in (
                (b"content-length: 5\r\n", b"hello"),
                (b"transfer-encoding: chunked\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
            ):
                assert (await gateway.request(POST + head + b"\r\n" + body, method="POST")).body == b"<hello>"
            assert (await gateway.get("/echo")).body == b"<>"
            assert (await gateway.request(b"HEAD /echo HTTP/1.1\r\nhost: a\r\n\r\n", method="HEAD")).status == 200
            assert (await gateway.request(b"PUT /echo HTTP/1.1\r\nhost: a\r\n\r\n")).status == 405

    async def test_it_can_be_read_twice_and_need_not_be_read_at_all(self):
        async def twice(ex):
            return Reply(200, await ex.read() + await ex.read(1))

        async def never(_ex):
            return Reply(200, b"no need")

        async with in_memory(ALONE, prepare=program(twice=twice, never=never)) as gateway:
            stream = gateway.connect()
            for path, body in ((b"twice", b"hihi"), (b"never", b"no need"), (b"twice", b"hihi")):
                stream.write(b"POST /" + path + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
                assert (await read_answer(stream, "POST")).body == body

    async def test_filters_see_it_first(self):
        class Upper(Filter):
            name = "upper"
            body = Body.STREAM

            async def on_body(self, ex, chunk, end):
                return chunk.upper()

        class Doubled(Filter):
            name = "doubled"
            body = Body.BUFFER

            async def on_body(self, ex, chunk, end):
                return chunk * 2

        data = POST + b"content-length: 2\r\n\r\nab"
        for filters, body in (
            ((Upper(),), b"<AB>"),
            ((Upper(), Doubled()), b"<ABAB>"),
            ((Doubled(), Upper()), b"<ABAB>"),
        ):
            async with in_memory(ALONE, prepare=program(*filters, echo=echo)) as gateway:
                assert (await gateway.request(data, method="POST")).body == body

    async def test_a_filter_may_answer_instead_while_it_is_read(self):
        class Refuses(Filter):
            name = "refuses"
            body = Body.OBSERVE

            async def on_body(self, ex, chunk, end):
                return Reply(422, reason="refuses.it")

        async with in_memory(ALONE, prepare=program(Refuses(), echo=echo)) as gateway:
            assert (await gateway.request(POST + b"content-length: 2\r\n\r\nab", method="POST")).status == 422

    async def test_a_client_that_waits_to_be_told_is_told_when_it_is_wanted(self):
        async with in_memory(ALONE, prepare=program(echo=echo)) as gateway:
            stream = gateway.connect()
            stream.write(POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            seen = b""
            while not seen.endswith(b"\r\n\r\n"):
                seen += await stream.receive()
            assert seen == b"HTTP/1.1 100 Continue\r\n\r\n"
            stream.write(b"ok")
            assert (await read_answer(stream, "POST")).body == b"<ok>"

    async def test_a_client_that_waits_with_too_long_a_body_is_told_so_at_once(self):
        async def short(ex):
            return Reply(200, await ex.read(4))

        async with in_memory(ALONE, prepare=program(short=short)) as gateway:
            head = b"POST /short HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
            answer = await gateway.request(head, method="POST")
            assert (answer.status, answer.interim) == (413, [])

    async def test_one_that_is_too_long_is_a_413_and_the_handler_is_over(self):
        went_on = []

        async def short(ex):
            await ex.read(4)
            went_on.append(ex)

        async with in_memory({**ALONE, "max_body_size": 10}, prepare=program(echo=echo, short=short)) as gateway:
            chunked = b" HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            for path, body in ((b"/short", b"5\r\n12345\r\n0\r\n\r\n"), (b"/echo", b"b\r\n12345678901\r\n0\r\n\r\n")):
                answer = await gateway.request(b"POST " + path + chunked + body, method="POST")
                assert (answer.status, answer.headers.get("connection")) == (413, "close")
            assert went_on == []

    async def test_what_may_be_held_is_bounded_whatever_the_handler_says(self, monkeypatch):
        monkeypatch.setattr("gw.handlers.MAX_HELD_BODY", 3)

        async def asks_for_more(ex):
            return Reply(200, await ex.read(100))

        async with in_memory(ALONE, prepare=program(echo=echo, more=asks_for_more)) as gateway:
            for path in (b"echo", b"more"):
                data = b"POST /" + path + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nabcd"
                assert (await gateway.request(data, method="POST")).status == 413

    async def test_a_client_that_leaves_ends_it(self):
        ended = []

        async def waits(ex):
            try:
                return Reply(200, await ex.read())
            finally:
                ended.append(ex)

        async with in_memory(ALONE, prepare=program(waits=waits)) as gateway:
            stream = gateway.connect()
            stream.write(b"POST /waits HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc")
            await gateway.network.settle()
            stream.abort()
            await gateway.network.settle()
            assert [ex.outcome.value for ex in ended] == ["cancelled"]
            assert await gateway.leftovers() == []

    async def test_handlers_of_plugins_read_it_too(self):
        plugins, module = PluginSet(), ModuleType("own")
        module.GW_API = 1
        module.gw_endpoints = hookimpl(lambda ctx: [LocalRoute("/echo", echo, ("POST",))], specname="gw_endpoints")
        plugins.add("own", module)
        async with in_memory({"upstreams": []}, plugins=plugins) as gateway:
            assert (await gateway.request(POST + b"content-length: 2\r\n\r\nab", method="POST")).body == b"<ab>"

    async def test_filters_have_hooks_for_that(self):
        class Reads(Filter):
            name = "reads"

            async def on_request_headers(self, ex):
                await ex.read()

        async with in_memory(ALONE, prepare=program(Reads(), echo=echo)) as gateway:
            assert (await gateway.get("/echo")).status == 500


class TestInterim:
    @staticmethod
    async def hinting(ex):
        await ex.send_interim(103, Headers.of([("link", "</a.css>; rel=preload"), ("connection", "close")]))
        await ex.send_interim(102)
        return Reply(200, b"page")

    async def test_it_comes_before_the_answer(self):
        async with in_memory(ALONE, prepare=program(page=self.hinting)) as gateway:
            answer = await gateway.get("/page")
            client = Http2Client(gateway.connect())
            for each in (answer, await client.get("/page")):
                assert (each.status, each.body) == (200, b"page")
                assert [(one.status, one.headers.raw) for one in each.interim] == [
                    (103, [(b"link", b"</a.css>; rel=preload")]),
                    (102, []),
                ]

    async def test_a_client_of_http_1_0_does_not_get_it(self):
        async with in_memory(ALONE, prepare=program(page=self.hinting)) as gateway:
            answer = await gateway.request(b"GET /page HTTP/1.0\r\n\r\n")
            assert (answer.status, answer.interim, answer.body) == (200, [], b"page")

    async def test_a_client_gets_no_more_than_so_many(self):
        async def endless(ex):
            for _ in range(MAX_INTERIM_RESPONSES + 5):
                await ex.send_interim(102)
            return Reply(200)

        async with in_memory(ALONE, prepare=program(endless=endless)) as gateway:
            assert len((await gateway.get("/endless")).interim) == MAX_INTERIM_RESPONSES

    @pytest.mark.parametrize("status", [100, 101, 200, 99])
    async def test_other_statuses_are_refused(self, status):
        async def wrong(ex):
            with pytest.raises(ValueError, match=f"^{status} is not the status of an interim response"):
                await ex.send_interim(status)
            return Reply(204)

        async with in_memory(ALONE, prepare=program(wrong=wrong)) as gateway:
            assert (await gateway.get("/wrong")).status == 204


async def test_a_handler_pushes():
    asked = []

    async def page(ex):
        return Reply(200, str(ex.push("/style")).encode())

    async def style(ex):
        asked.append(ex.request.method)
        return Reply(200, b"css")

    async with in_memory({**ALONE, "http2": {"enable_push": True}}, prepare=program(page=page, style=style)) as gateway:
        assert (await gateway.get("/page")).body == b"False"
        stream = gateway.connect()
        stream.write(START + head(1, [*GET[:3], (":path", "/page")]))
        await gateway.network.settle()
        frames = parsed(stream.take())
        assert [number for kind, _, number, _ in frames if kind == PUSH_PROMISE] == [1]
        assert {number: payload for kind, _, number, payload in frames if kind == DATA} == {1: b"True", 2: b"css"}
        assert asked == ["GET"]


async def test_what_it_reads_stays_over_reloads():
    async with in_memory(ALONE, prepare=program(echo=echo)) as gateway:
        await gateway.gateway.reload(load(ALONE, environ={}))
        assert (await gateway.request(POST + b"content-length: 2\r\n\r\nab", method="POST")).body == b"<ab>"
