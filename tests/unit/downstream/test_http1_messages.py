"""Whole conversations with one client connection, in memory: what it is answered, in which framing, and whether it stays open."""

from __future__ import annotations

import pytest

from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: example.test\r\n\r\n"


def response(head: str, body: bytes = b"") -> bytes:
    """Return an upstream's response: *head* has its lines parted by a single LF."""
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


class TestOneAfterAnother:
    async def test_a_connection_carries_many_requests(self, engine):
        upstream = Upstream(OK)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            for number in range(3):
                client.write(f"GET /{number} HTTP/1.1\r\nhost: example.test\r\n\r\n".encode())
                assert (await read_answer(client)).body == b"ok"
            assert [asked.head.target for asked in upstream.asked] == ["/0", "/1", "/2"]
            assert upstream.connections == 1

    async def test_pipelined_requests_are_answered_in_their_order(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: example.test\r\n\r\n" % n for n in range(3)))
            peer = await upstream.accept()
            for number in range(3):
                assert (await peer.read_until(b"\r\n\r\n")).startswith(b"GET /%d " % number)
                await gateway.network.settle()
                assert not peer.has_data, "the next request waits for this one's answer"
                peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
                assert (await read_answer(client)).body == b"%d" % number

    async def test_pipelined_bodies_go_to_their_own_requests(self, engine):
        upstream = Upstream(OK)
        sent = (
            b"POST /1 HTTP/1.1\r\nhost: example.test\r\ncontent-length: 3\r\n\r\none"
            b"POST /2 HTTP/1.1\r\nhost: example.test\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
            b"GET /3 HTTP/1.1\r\nhost: example.test\r\n\r\n"
        )
        for step in (len(sent), 1, 7):
            upstream.asked.clear()
            async with in_memory(upstream=upstream, engine=engine) as gateway:
                client = gateway.connect()
                for at in range(0, len(sent), step):
                    client.write(sent[at : at + step])
                for _ in range(3):
                    await read_answer(client)
            assert [asked.body for asked in upstream.asked] == [b"one", b"two", b""]

    @pytest.mark.parametrize(
        ("request_lines", "stays", "says"),
        [
            ("GET / HTTP/1.1\nhost: a", True, None),
            ("GET / HTTP/1.1\nhost: a\nconnection: close", False, "close"),
            ("GET / HTTP/1.1\nhost: a\nconnection: CLOSE, x-other", False, "close"),
            ("GET / HTTP/1.0\nhost: a", False, "close"),
            ("GET / HTTP/1.0", False, "close"),
            ("GET / HTTP/1.0\nhost: a\nconnection: keep-alive", True, "keep-alive"),
        ],
    )
    async def test_whether_it_stays_open_is_the_clients_choice(self, engine, request_lines, stays, says):
        async with in_memory(engine=engine) as gateway:
            client = gateway.connect()
            client.write(request_lines.replace("\n", "\r\n").encode() + b"\r\n\r\n")
            answer = await read_answer(client)
            assert answer.headers.get("connection") == says
            await gateway.network.settle()
            assert client.at_eof is not stays

    async def test_the_upstreams_wish_to_close_is_not_the_clients_concern(self):
        upstream = Upstream(response("HTTP/1.1 200 OK\nconnection: close\ncontent-length: 2", b"ok"))
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET + GET)
            for _ in range(2):
                assert "connection" not in (await read_answer(client)).headers
            assert upstream.connections == 2

    async def test_the_last_request_a_connection_may_carry_says_so(self):
        async with in_memory({"max_requests_per_connection": 2}) as gateway:
            client = gateway.connect()
            client.write(GET * 3)
            assert "connection" not in (await read_answer(client)).headers
            assert (await read_answer(client)).headers.get("connection") == "close"
            assert await client.read_until_end() == b""


class TestFraming:
    @pytest.mark.parametrize("version", ["1.1", "1.0"])
    async def test_a_body_read_until_close_is_framed_anew(self, engine, version):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(f"GET / HTTP/{version}\r\nhost: a\r\nconnection: keep-alive\r\n\r\n".encode())
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst ")
            await gateway.network.settle()
            peer.write(b"second")
            peer.close()
            answer = await read_answer(client)
            assert answer.body == b"first second"
            chunked = version == "1.1"
            assert answer.headers.get("transfer-encoding") == ("chunked" if chunked else None)
            assert answer.headers.get("connection") == (None if chunked else "close")

    async def test_chunks_are_relayed_as_they_come(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await client.read_until(b"\r\n\r\n5\r\nhello\r\n")
            peer.write(b"6;ext=1\r\n world\r\n")
            assert await client.read_until(b"\n world\r\n") == b"6\r\n world\r\n"
            peer.write(b"0\r\n\r\n")
            assert await client.read_until(b"\r\n\r\n") == b"0\r\n\r\n"

    async def test_a_declared_length_is_kept_in_both_directions(self, engine):
        upstream = Upstream(OK)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            answer = await gateway.request(
                b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", method="POST"
            )
            assert answer.headers.get("content-length") == "2"
            assert "transfer-encoding" not in answer.headers
            head = upstream.asked[0].head.headers
            assert (head.get("content-length"), head.get("transfer-encoding")) == ("5", None)

    async def test_trailers_pass_in_both_directions(self, engine):
        upstream = Upstream(
            b"HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"
        )
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            answer = await gateway.request(
                b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-client: 1\r\n\r\n"
            )
            assert answer.trailers is not None
            assert list(answer.trailers) == [("x-sum", "7")]
            assert upstream.asked[0].trailers is not None
            assert list(upstream.asked[0].trailers) == [("x-client", "1")]

    async def test_trailers_that_are_not_to_be_forwarded_end_here(self):
        config = {
            "upstreams": [
                {"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/", "forward_trailers": False}},
            ]
        }
        upstream = Upstream(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
        async with in_memory(config, upstream) as gateway:
            answer = await gateway.request(
                b"POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n"
                b"1\r\nx\r\n0\r\nx-client: 1\r\n\r\n"
            )
            assert (answer.body, answer.trailers, upstream.asked[0].trailers) == (b"ok", None, None)
            assert "te" not in upstream.asked[0].head.headers

    @pytest.mark.parametrize(
        ("method", "answer", "framing"),
        [
            ("HEAD", "HTTP/1.1 200 OK\ncontent-length: 1000", {"content-length": "1000"}),
            ("HEAD", "HTTP/1.1 200 OK\ntransfer-encoding: chunked", {}),
            ("GET", "HTTP/1.1 204 No Content", {}),
            ("GET", "HTTP/1.1 304 Not Modified\ncontent-length: 1000", {"content-length": "1000"}),
            ("GET", "HTTP/1.1 304 Not Modified", {}),
            ("GET", "HTTP/1.1 200 OK\ncontent-length: 0", {"content-length": "0"}),
        ],
    )
    async def test_responses_without_a_body_end_with_their_head(self, engine, method, answer, framing):
        upstream = Upstream(response(answer))
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            for _ in range(2):  # the second shows that both connections are where they should be
                client.write(f"{method} / HTTP/1.1\r\nhost: a\r\n\r\n".encode())
                got = await read_answer(client, method)
                fields = {name: value for name, value in got.headers if name in ("content-length", "transfer-encoding")}
                assert (got.body, fields) == (b"", framing)
            assert upstream.connections == 1

    async def test_a_response_that_says_by_other_means_that_it_has_no_body_gets_a_length(self, engine):
        async with in_memory(engine=engine) as gateway:  # such as gRPC's, whose own means are HTTP/2's
            answer = await gateway.request(
                b"POST /%00 HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n"
            )
            assert (answer.status, answer.headers.get("grpc-status")) == (200, "13")
            assert answer.headers.get_all("content-length") == ["0"]

    async def test_an_answer_of_our_own_to_head_has_no_body(self):
        async with in_memory({"routes": [{"match": {"path": "/only"}}]}) as gateway:
            client = gateway.connect()
            client.write(b"HEAD /only HTTP/1.1\r\nhost: a\r\n\r\n" + GET)
            answer = await read_answer(client, "HEAD")
            assert (answer.status, answer.headers.get("content-length")) == (404, "9")
            assert (await read_answer(client)).status == 200


class TestFields:
    async def test_order_and_duplicates_are_kept_both_ways(self, engine):
        upstream = Upstream(
            response("HTTP/1.1 200 OK\nset-cookie: a=1\nx-b: 2\nset-cookie: c=3\ncontent-length: 2", b"ok")
        )
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            answer = await gateway.request(
                b"GET / HTTP/1.1\r\nhost: a\r\nCookie: x=1\r\nX-Z: 9\r\ncookie: y=2\r\nx-z: \xe9t\xe9\r\n\r\n"
            )
            assert list(answer.headers)[:4] == [
                ("set-cookie", "a=1"),
                ("x-b", "2"),
                ("set-cookie", "c=3"),
                ("content-length", "2"),
            ]
            assert list(upstream.asked[0].head.headers)[1:5] == [
                ("cookie", "x=1"),
                ("x-z", "9"),
                ("cookie", "y=2"),
                ("x-z", "été"),
            ]

    async def test_what_concerns_one_connection_goes_no_further(self, engine):
        hops = (
            "keep-alive: timeout=5\nproxy-connection: x\nproxy-authenticate: x\nproxy-authorization: x\n"
            "te: gzip\nupgrade: h2c\nx-private: x\nconnection: x-private, Keep-Alive"
        )
        upstream = Upstream(response(f"HTTP/1.1 200 OK\n{hops}\ncontent-length: 2", b"ok"))
        async with in_memory({"request_id": {"enabled": False}}, upstream, engine=engine) as gateway:
            answer = await gateway.request(response(f"GET / HTTP/1.1\nhost: a\n{hops}"))
            assert sorted(name for name, _ in answer.headers) == ["content-length", "date", "via"]
            assert sorted(name for name, _ in upstream.asked[0].head.headers) == [
                "host",
                "via",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
            ]

    async def test_a_date_is_added_only_where_there_is_none(self):
        dated = response("HTTP/1.1 200 OK\ndate: Sun, 06 Nov 1994 08:49:37 GMT\ncontent-length: 0")
        async with in_memory(upstream=Upstream(dated, OK)) as gateway:
            assert (await gateway.get("/")).headers.get_all("date") == ["Sun, 06 Nov 1994 08:49:37 GMT"]
            assert len((await gateway.get("/")).headers.get_all("date")) == 1

    async def test_the_reason_phrase_is_the_upstreams(self):
        async with in_memory(upstream=Upstream(b"HTTP/1.1 200 Fine By Me\r\ncontent-length: 0\r\n\r\n")) as gateway:
            client = gateway.connect()
            client.write(GET)
            assert await client.read_until(b"\r\n") == b"HTTP/1.1 200 Fine By Me\r\n"


class TestInterimResponses:
    async def test_expect_is_asked_of_the_upstream_and_its_100_is_passed_on(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            peer = await upstream.accept()
            assert b"\r\nexpect: 100-continue\r\n" in await peer.read_until(b"\r\n\r\n")
            await gateway.network.settle()
            assert not client.has_data
            peer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.write(b"body")
            assert await peer.read_until(b"body") == b"body"
            peer.write(OK)
            assert (await read_answer(client)).body == b"ok"
            client.write(GET)
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"GET / ")

    async def test_a_final_answer_instead_of_100_ends_the_connection(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
            answer = await read_answer(client)
            assert (answer.status, answer.headers.get("connection")) == (401, "close")
            assert await client.read_until_end() == b""

    async def test_another_expectation_is_refused(self, engine):
        async with in_memory(engine=engine) as gateway:
            answer = await gateway.request(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: a-miracle\r\n\r\n")
            assert (answer.status, answer.body) == (417, b"Expectation Failed")
            assert answer.headers.get("connection") == "close"
            assert gateway.network.dialled == []

    async def test_early_hints_are_passed_on_with_their_fields(self, engine):
        hints = "HTTP/1.1 103 Early Hints\nlink: </a.css>; rel=preload\nconnection: x-hop"
        upstream = Upstream(response(hints) + OK)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            answer = await gateway.get("/")
            assert [(hint.status, list(hint.headers)) for hint in answer.interim] == [
                (103, [("link", "</a.css>; rel=preload")])
            ]
            assert answer.body == b"ok"

    async def test_a_client_of_http_1_0_gets_no_interim_response(self):
        async with in_memory(upstream=Upstream(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)) as gateway:
            answer = await gateway.request(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
            assert (answer.interim, answer.body) == ([], b"ok")

    async def test_only_so_many_are_passed_on(self):
        async with in_memory(upstream=Upstream(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40 + OK)) as gateway:
            answer = await gateway.get("/")
            assert (len(answer.interim), answer.body) == (32, b"ok")


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "path", "host"),
        [
            ("/a/./b/../c?q=/../", "/a/c?q=/../", "example.test"),
            ("http://other.test/x?y", "/x?y", "other.test"),
            ("HTTP://other.test:8080", "/", "other.test:8080"),
        ],
    )
    async def test_what_was_matched_is_what_is_forwarded(self, engine, target, path, host):
        upstream = Upstream(OK)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            await gateway.get(target)
            asked = upstream.asked[0].head
            assert (asked.target, asked.headers.get("x-forwarded-host")) == (path, host)

    async def test_options_asterisk_is_answered_with_the_methods_there_are(self, engine):
        config = {"routes": [{"match": {"path": "/", "methods": ["PUT", "GET"]}}], "upstreams": []}
        async with in_memory(config, engine=engine) as gateway:
            answer = await gateway.request(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (answer.status, answer.body, answer.headers.get("content-length")) == (200, b"", "0")
            assert {"GET", "PUT"} <= set(answer.headers.get("allow", "").split(", "))
