"""ASGI applications behind the gateway: what they are told, what clients get of what they say, and what they do wrong."""

from __future__ import annotations

import json
from types import ModuleType

import anyio
import pytest
from asgi_in_memory import Living, body_of, mounted, only_http, say, tells

from gw.applications import App
from gw.config.load import load
from gw.filters import Filter, Reply
from gw.gateway import Gateway
from gw.hookspecs import hookimpl
from gw.limits import APP_LEAVES
from gw.net.stream import StreamLost
from gw.plugins import PluginSet
from gw.testing import PATIENCE
from gw.testing.gateway import read_answer
from gw.testing.http2 import Http2Client


async def test_an_application_is_told_everything_and_answers():
    request = (
        b"POST /app/caf%C3%A9?a=%20b HTTP/1.1\r\nHost: example.test:8080\r\nX-One: 1\r\nTE: trailers\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    async with mounted(tells) as gateway:
        answer = await gateway.request(request, method="POST")
    assert (answer.status, answer.headers.get("x-app"), answer.headers.get("connection")) == (201, "yes", None)
    seen = json.loads(answer.body)
    client = seen.pop("client")
    assert client[0] == "198.51.100.7"
    assert seen == {
        "method": "POST",
        "scheme": "http",
        "path": "/app/café",
        "raw_path": "/app/caf%C3%A9",
        "root_path": "/app",
        "query_string": "a=%20b",
        "http_version": "1.1",
        "server": ["example.test", 8080],
        "headers": [["host", "example.test:8080"], ["x-one", "1"], ["content-length", "5"]],
        "body": "hello",
    }


async def test_it_has_its_path_and_what_is_below_and_nothing_else():
    async with mounted(tells) as gateway:
        assert [(await gateway.get(path)).status for path in ("/app", "/app/", "/app/a/b")] == [201] * 3
        assert (await gateway.get("/apple")).body == b"ok"  # the upstream's
    async with mounted(tells, "/", {"upstreams": []}) as gateway:
        assert json.loads((await gateway.get("/a")).body)["root_path"] == ""


async def test_over_http2_too():
    async with mounted(tells) as gateway:
        client = Http2Client(gateway.connect())
        stream = client.request("/app/x", method="POST", body=b"hello")
        answer = await client.answer(stream)
        assert answer.status == 201
        seen = json.loads(answer.body)
        assert (seen["http_version"], seen["body"], seen["headers"][0][0]) == ("2", "hello", "host")


async def test_both_directions_flow_at_once():
    @only_http
    async def echo(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            event = await receive()
            await send({"type": "http.response.body", "body": event["body"].upper(), "more_body": event["more_body"]})
            if not event["more_body"]:
                return

    async with mounted(echo) as gateway:
        stream = gateway.connect()
        stream.write(b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert (await stream.read_until(b"ONE\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        stream.write(b"3\r\ntwo\r\n")
        await stream.read_until(b"TWO\r\n")
        stream.write(b"0\r\n\r\n")
        await stream.read_until(b"0\r\n\r\n")


async def test_a_client_that_waits_is_told_to_go_on_when_the_application_asks():
    async with mounted(tells) as gateway:
        stream = gateway.connect()
        stream.write(b"POST /app HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await stream.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        stream.write(b"hi")
        assert json.loads((await read_answer(stream, "POST")).body)["body"] == "hi"


async def test_one_that_does_not_read_may_answer():
    @only_http
    async def refuses(scope, receive, send):
        await say(send, b"no", 403)

    async with mounted(refuses) as gateway:
        stream = gateway.connect()
        stream.write(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(10))
        assert (await read_answer(stream, "POST")).status == 403


@pytest.mark.parametrize("status", [204, 304])
async def test_what_has_no_body_has_none(status):
    @only_http
    async def app(scope, receive, send):
        await say(send, b"ignored", status)

    async with mounted(app) as gateway:
        stream = gateway.connect()
        for _ in range(2):
            stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await read_answer(stream)).status == status


async def test_the_head_of_a_get_is_what_head_gets():
    async with mounted(tells) as gateway:
        stream = gateway.connect()
        stream.write(b"HEAD /app HTTP/1.1\r\nHost: a\r\n\r\nGET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await read_answer(stream, "HEAD")).body == b""
        assert (await read_answer(stream)).status == 201


async def raises(scope, receive, send):
    raise KeyError("oh")


async def says_nothing(scope, receive, send):
    return


async def splits(scope, receive, send):
    await say(send, headers=[(b"x", b"a\r\nset-cookie: b")])


async def has_no_such_status(scope, receive, send):
    await say(send, status=700)


async def speaks_too_soon(scope, receive, send):
    await send({"type": "http.response.body", "body": b"x"})


async def has_two_lengths(scope, receive, send):
    await say(send, headers=[(b"content-length", b"2"), (b"content-length", b"3")])


async def says_too_much(scope, receive, send):
    await say(send, b"four", headers=[(b"content-length", b"3")])


@pytest.mark.parametrize(
    "app", [raises, says_nothing, splits, has_no_such_status, speaks_too_soon, has_two_lengths, says_too_much]
)
async def test_one_that_goes_wrong_is_a_500(app):
    async with mounted(only_http(app)) as gateway:
        answer = await gateway.get("/app")
        assert (answer.status, b"oh" in answer.body) == (500, False)
        assert await gateway.leftovers() == []


@pytest.mark.parametrize("declared", [[], [(b"content-length", b"10")]])
async def test_one_that_stops_in_mid_answer_is_broken_off(declared):
    @only_http
    async def app(scope, receive, send):
        await say(send, b"half", headers=declared, more=True)

    async with mounted(app) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises((StreamLost, AssertionError)):
            await read_answer(stream)
        assert await gateway.leftovers() == []


async def test_it_hears_when_the_client_leaves():
    heard, began = [], anyio.Event()

    @only_http
    async def app(scope, receive, send):
        await body_of(receive)
        began.set()
        heard.append((await receive())["type"])
        with pytest.raises(OSError, match="the client has gone"):
            await say(send)
        heard.append("told")

    async with mounted(app) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        await began.wait()
        stream.abort()
        await gateway.network.settle()
        assert heard == ["http.disconnect", "told"]
        assert await gateway.leftovers() == []


async def passes_on(send):
    await say(send)


async def names_it_anew(send):
    try:
        await say(send)
    except OSError:
        raise RuntimeError("disconnected")  # noqa: B904  # as frameworks do


async def has_a_task_for_it(send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say, send)


async def has_a_fault_of_its_own(_send):
    raise LookupError("a fault")


@pytest.mark.parametrize("says", [passes_on, names_it_anew, has_a_task_for_it, has_a_fault_of_its_own])
async def test_a_client_that_leaves_is_no_error_of_the_application(says, caplog):
    began = anyio.Event()

    @only_http
    async def app(scope, receive, send):
        await body_of(receive)
        began.set()
        await receive()
        await says(send)

    async with mounted(app) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        await began.wait()
        stream.abort()
        await gateway.network.settle()
    raised = [each.message for each in caplog.records if each.levelname == "ERROR"]
    assert len(raised) == (says is has_a_fault_of_its_own), raised


async def test_one_that_does_not_care_is_cancelled(monkeypatch):
    assert APP_LEAVES == 5
    monkeypatch.setattr("gw.applications.APP_LEAVES", 0.01)
    began, ended = anyio.Event(), anyio.Event()

    @only_http
    async def app(scope, receive, send):
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with mounted(app) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        await began.wait()
        stream.abort()
        with anyio.fail_after(PATIENCE):
            await ended.wait()


async def test_a_slow_client_holds_it_back():
    said = []

    @only_http
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(1000):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            said.append(number)

    async with mounted(app) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        await gateway.network.settle()
        assert len(said) < 50
        stream.abort()


async def test_filters_are_before_it():
    class Guard(Filter):
        async def on_request_headers(self, ex):
            return Reply(401, b"no") if ex.request.path.endswith("/secret") else None

        def on_response_headers(self, ex):
            ex.response.headers.set("x-seen", "yes")

    plugins, module = PluginSet(), ModuleType("guard")
    module.GW_API = 1
    module.gw_filters = hookimpl(lambda route, ctx: [Guard()], specname="gw_filters")
    plugins.add("guard", module)
    async with mounted(tells, plugins=plugins) as gateway:
        assert (await gateway.get("/app/secret")).status == 401
        answer = await gateway.get("/app")
        assert (answer.status, answer.headers.get("x-seen")) == (201, "yes")


# --- its lifespan ------------------------------------------------------------------------------------


async def test_it_starts_up_before_and_shuts_down_after_everything():
    app = Living()
    async with mounted(app) as gateway:
        assert app.steps == ["lifespan.startup"]
        assert [(await gateway.get("/app")).body for _ in range(2)] == [b"open"] * 2
        await gateway.gateway.reload(load({}, environ={}))
        assert (await gateway.get("/app")).body == b"open"
        assert app.steps == ["lifespan.startup"]
    assert app.steps == ["lifespan.startup", "lifespan.shutdown"]


async def test_one_that_cannot_start_keeps_the_gateway_from_serving():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    other = Living()
    gateway = Gateway(load({"bind_port": 0, "plugins": []}, environ={}))
    gateway.mount("/other", other)
    gateway.mount("/app", app)
    with anyio.fail_after(PATIENCE), pytest.raises(ValueError, match="application app /app cannot start: no database"):
        await gateway.serve()
    assert other.steps == ["lifespan.startup", "lifespan.shutdown"]


async def test_one_that_does_not_shut_down_is_not_waited_for_long():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            living = App("app", app)
            await living.begin(tasks)
            await living.end(anyio.current_time() + 0.01)
            tasks.cancel_scope.cancel()
