"""What a head means, rule by rule, without an engine: `frame_request`, `frame_response`, `frame_trailers`."""

import pytest

from gw.filters import Request, Response
from gw.http.framing import METHODS, Refusal, frame_request, frame_response, frame_trailers
from gw.http.h1 import ReaderLimits

AMPLE = ReaderLimits(8192, 100, 8192)


def lines(*fields: str) -> list[tuple[bytes, bytes]]:
    pairs = (field.partition(": ") for field in fields)
    return [(name.lower().encode(), value.encode("latin-1")) for name, _, value in pairs]


def request(*fields: str, method="GET", target="/", version="1.1", limits=AMPLE, size=8192) -> Request:
    return frame_request(method.encode(), target.encode(), version, lines(*fields), limits, size)


def with_host(*fields: str, **rest) -> Request:
    return request("Host: a", *fields, **rest)


def response(*fields: str, status=200, method="GET", version="1.1", limits=AMPLE, size=8192) -> tuple[Response, bool]:
    return frame_response(status, b"OK", version, lines(*fields), limits, size, method)


def verdict(frame, *fields: str, **rest) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        frame(*fields, **rest)
    return caught.value.status, caught.value.message


def test_a_plain_request_has_no_body_and_keeps_the_connection():
    got = request("Host: Example.com:8080", "Accept: */*", target="/a?b=c")

    assert (got.method, got.target, got.path, got.query, got.host) == ("GET", "/a?b=c", "/a", "b=c", "Example.com:8080")
    assert got.headers.raw == [(b"host", b"Example.com:8080"), (b"accept", b"*/*")]
    assert (got.has_body, got.content_length, got.keep_alive, got.expects_continue) == (False, None, True, False)
    assert (got.upgrade, got.named_hops) == (None, None)


def test_a_fields_list_is_handed_over_not_copied():
    fields = lines("Host: a")

    assert frame_request(b"GET", b"/", "1.1", fields, AMPLE, 40).headers.raw is fields


@pytest.mark.parametrize(
    ("fields", "has_body", "length"),
    [
        (["Content-Length: 5"], True, 5),
        (["Content-Length: 0"], False, 0),
        (["Content-Length: 007"], True, 7),
        (["Content-Length: 9223372036854775807"], True, 2**63 - 1),
        (["Transfer-Encoding: chunked"], True, None),
        (["Transfer-Encoding: CHUNKed"], True, None),
    ],
)
def test_a_request_body_is_framed_by_length_or_chunks(fields, has_body, length):
    got = with_host(*fields)

    assert (got.has_body, got.content_length) == (has_body, length)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["Content-Length: 5", "Transfer-Encoding: chunked"], "Content-Length and Transfer-Encoding together"),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], "Content-Length and Transfer-Encoding together"),
        (["Content-Length: 5", "Content-Length: 5"], "Duplicate Content-Length header"),
        *[
            ([f"Content-Length: {bad}"], "Invalid Content-Length header")
            for bad in ["5, 5", "+5", "-5", "5 5", "0x5", "5.", "5_0", "", "²", "9223372036854775808", "0" * 20]
        ],
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "Duplicate Transfer-Encoding header"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], "Duplicate Transfer-Encoding header"),
        *[
            ([f"Transfer-Encoding: {bad}"], "Transfer-Encoding is not exactly chunked")
            for bad in ["gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1", "", "chunked,"]
        ],
    ],
)
def test_ambiguous_framing_is_refused_both_ways(fields, message):
    assert verdict(with_host, *fields) == (400, message)
    assert verdict(response, *fields) == (400, message)


def test_transfer_encoding_is_refused_in_http_1_0():
    expected = (400, "Transfer-Encoding in an HTTP/1.0 message")

    assert verdict(with_host, "Transfer-Encoding: chunked", version="1.0") == expected
    assert verdict(response, "Transfer-Encoding: chunked", version="1.0") == expected


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "Content-Type", "Content-Length", "Content-Range", "Content-Disposition"]
)
def test_a_second_line_of_a_singleton_is_refused(name):
    fields = ["Host: a"] if name != "Host" else []

    assert verdict(request, *fields, f"{name}: 1", f"{name}: 1") == (400, f"Duplicate {name} header")


def test_other_lines_keep_their_order_and_their_duplicates():
    fields = ["Cookie: a=1", "Host: a", "Cookie: b=2", "X: 1", "X: 1"]

    assert request(*fields).headers.raw == lines(*fields)


@pytest.mark.parametrize("host", ["", "a b", "a,b", "a/b", "a@b", "[::1", "[zz]", "a:", "a:99999", "\xe9", "a:b"])
def test_an_invalid_host_is_refused(host):
    assert verdict(request, f"Host: {host}") == (400, "Invalid Host header")
    assert verdict(request, f"Host: {host}", version="1.0") == (400, "Invalid Host header")


def test_only_http_1_0_may_come_without_a_host():
    assert verdict(request) == (400, "Missing Host header")
    assert request(version="1.0").host == ""


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "//a/../b?x=|"),
        ("OPTIONS", "*"),
        ("GET", "http://a"),
        ("GET", "HTTPS://a.b:8/c?d"),
        ("GET", "http://[::1]:80?q"),
        ("CONNECT", "a:443"),
        ("CONNECT", "[::1]:443"),
    ],
)
def test_a_target_of_each_form_is_accepted(method, target):
    assert with_host(method=method, target=target).target == target


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "*"),
        ("OPTIONS", "*a"),
        ("GET", "a"),
        ("GET", "?a"),
        ("GET", "a:80"),
        ("GET", "ftp://a/"),
        ("GET", "http:///a"),
        ("GET", "http://u@a/"),
        ("GET", "http://a|b/"),
        ("CONNECT", "/"),
        ("CONNECT", "a"),
        ("CONNECT", "http://a/"),
    ],
)
def test_a_target_of_no_form_is_refused(method, target):
    assert verdict(with_host, method=method, target=target) == (400, "Invalid request target")


@pytest.mark.parametrize("method", ["PRI", "get", "GETS", "DESCRIBE", "SOURCE", "BREW"])
def test_an_unknown_method_is_refused(method):
    assert verdict(with_host, method=method) == (400, "Unknown method")


def test_every_method_is_spelled_as_on_the_wire():
    assert all(name.encode() == spelling for spelling, name in METHODS.items())
    assert {"GET", "PATCH", "PROPFIND", "M-SEARCH"} <= set(METHODS.values())


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive", True),
        ("1.1", "keep-alive, CLOSE", False),
        ("1.1", "x, ,close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive", True),
        ("1.0", "close, keep-alive", False),
    ],
)
def test_keep_alive_follows_version_and_connection(version, connection, keep_alive):
    fields = [f"Connection: {connection}"] if connection else []

    assert with_host(*fields, version=version).keep_alive is keep_alive
    assert response("Content-Length: 0", *fields, version=version)[0].keep_alive is keep_alive


def test_several_connection_lines_count_as_one():
    got = with_host("Connection: X-A", "Connection: close, x-b")

    assert (got.keep_alive, got.named_hops) == (False, {b"x-a", b"x-b"})


@pytest.mark.parametrize("bad", ["a b", "close;x", '"close"', "x\xe9", "a=b"])
def test_connection_options_must_be_tokens(bad):
    assert verdict(with_host, f"Connection: {bad}") == (400, "Invalid Connection header")


@pytest.mark.parametrize(
    "name", ["Host", "Content-Length", "Transfer-Encoding", "Authorization", "Content-Type", "Content-Range"]
)
def test_a_client_cannot_have_a_critical_field_removed(name):
    message = f"Connection names {name.lower()}, which is not hop-by-hop"

    assert verdict(with_host, f"Connection: close, {name}") == (400, message)


def test_a_client_cannot_erase_what_the_gateway_adds():
    got = with_host("Connection: X-Forwarded-For, X-Forwarded-Anything, Forwarded, Via, X-Real-IP, TE, viable")

    assert got.named_hops == {b"viable"}  # TE is read, and never passed on as it came
    assert with_host("Connection: via").named_hops is None


def test_a_response_cannot_have_its_framing_removed():
    assert response("Connection: Content-Length, X-A", "Content-Length: 1")[0].named_hops == {b"x-a"}


@pytest.mark.parametrize(
    ("fields", "version", "upgrade"),
    [
        (["Connection: Upgrade", "Upgrade: WebSocket"], "1.1", "websocket"),
        (["Upgrade: h2c", "Connection: keep-alive, upgrade"], "1.1", "h2c"),
        (["Connection: upgrade", "Upgrade: h2c, websocket"], "1.1", "websocket"),
        (["Upgrade: h2c"], "1.1", None),
        (["Connection: upgrade"], "1.1", None),
        (["Connection: upgrade", "Upgrade: h2c"], "1.0", None),
    ],
)
def test_an_upgrade_is_asked_for_with_both_fields_on_http_1_1(fields, version, upgrade):
    assert with_host(*fields, version=version).upgrade == upgrade


@pytest.mark.parametrize(
    ("fields", "version", "expects"),
    [
        (["Expect: 100-Continue", "Content-Length: 1"], "1.1", True),
        (["Expect: 100-continue", "Transfer-Encoding: chunked"], "1.1", True),
        (["Expect: 100-continue", "Expect: 100-continue", "Content-Length: 1"], "1.1", True),
        (["Expect: 100-continue"], "1.1", False),
        (["Expect: 100-continue", "Content-Length: 0"], "1.1", False),
        (["Expect: 100-continue", "Content-Length: 1"], "1.0", False),
    ],
)
def test_a_continue_is_expected_where_there_is_a_body_to_wait_for(fields, version, expects):
    assert with_host(*fields, version=version).expects_continue is expects


@pytest.mark.parametrize("bad", ["", "200-ok", "100-continue, other", "100-continue; q=1"])
def test_any_other_expectation_fails(bad):
    assert verdict(with_host, f"Expect: {bad}", "Content-Length: 1") == (417, "Expectation Failed")


@pytest.mark.parametrize(
    ("fields", "version"),
    [(["Upgrade: WebSocket"], "1.1"), (["Connection: upgrade", "Upgrade: websocket"], "1.0")],
)
def test_a_websocket_that_is_half_asked_for_is_refused(fields, version):
    message = "Upgrade: websocket needs HTTP/1.1 and Connection: upgrade"
    assert verdict(with_host, *fields, version=version) == (400, message)


def test_an_expectation_beside_a_websocket_upgrade_is_refused():
    fields = ["Connection: upgrade", "Upgrade: websocket", "Expect: 100-continue"]

    assert verdict(with_host, *fields) == (400, "Expect cannot go together with a WebSocket upgrade")


def test_a_head_is_accounted_as_target_names_values_and_four_a_line():
    exact = len("/") + len("host") + len("a") + 4 + len("x") + len("12345") + 4
    fields = ["Host: a", "X: 12345"]

    assert with_host("X: 12345", limits=ReaderLimits(exact, 0, 0)).headers.raw == lines(*fields)
    assert verdict(request, *fields, limits=ReaderLimits(exact - 1, 0, 0)) == (431, "Request Header Fields Too Large")
    assert verdict(response, *fields, limits=ReaderLimits(exact, 0, 0)) == (431, "Request Header Fields Too Large")


def test_the_quick_look_at_a_head_never_lets_a_large_one_pass():
    """A line without a blank after its colon is accounted as one byte more than was sent."""
    sent = b"GET / HTTP/1.0\r\n" + b"a:\r\n" * 40 + b"\r\n"
    fields = [(b"a", b"")] * 40

    with pytest.raises(Refusal):
        frame_request(b"GET", b"/", "1.0", fields, ReaderLimits(200, 0, 0), len(sent))
    assert frame_request(b"GET", b"/", "1.0", fields, ReaderLimits(201, 0, 0), len(sent)).path == "/"


def test_field_lines_are_counted():
    two = ReaderLimits(0, 2, 0)

    assert len(with_host("A: b", limits=two).headers) == 2
    assert verdict(with_host, "A: b", "A: b", limits=two) == (431, "Request Header Fields Too Large")
    assert len(with_host("A: b", "A: b", limits=ReaderLimits(0, 0, 0)).headers) == 3


def test_a_bad_request_is_told_so_before_its_size_and_its_size_before_its_expectation():
    small = ReaderLimits(8, 0, 0)

    assert verdict(with_host, "Content-Length: x", "Expect: x", limits=small)[0] == 400
    assert verdict(with_host, "Expect: x", limits=small)[0] == 431
    assert verdict(with_host, "Expect: x")[0] == 417


@pytest.mark.parametrize(
    ("status", "method", "fields", "has_body", "length", "chunked", "keep_alive"),
    [
        (200, "GET", ["Content-Length: 5"], True, 5, False, True),
        (200, "GET", ["Content-Length: 0"], False, 0, False, True),
        (200, "GET", ["Transfer-Encoding: chunked"], True, None, True, True),
        (200, "GET", [], True, None, False, False),
        (200, "GET", ["Connection: keep-alive"], True, None, False, False),
        (200, "HEAD", ["Content-Length: 5"], False, 5, False, True),
        (200, "HEAD", ["Transfer-Encoding: chunked"], False, None, False, True),
        (200, "HEAD", [], False, None, False, True),
        (304, "GET", ["Content-Length: 5"], False, 5, False, True),
        (304, "GET", [], False, None, False, True),
        (204, "GET", [], False, None, False, True),
        (204, "GET", ["Content-Length: 0"], False, None, False, True),
        (103, "GET", ["Link: x"], False, None, False, True),
        (205, "GET", ["Content-Length: 0"], False, 0, False, True),
        (200, "CONNECT", [], False, None, False, True),
        (403, "CONNECT", ["Content-Length: 5"], True, 5, False, True),
    ],
)
def test_a_response_body_is_framed_by_status_method_and_fields(
    status, method, fields, has_body, length, chunked, keep_alive
):
    got, is_chunked = response(*fields, status=status, method=method)

    assert (got.has_body, got.content_length, is_chunked, got.keep_alive) == (has_body, length, chunked, keep_alive)


@pytest.mark.parametrize("status", [100, 103, 204])
@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_body_where_none_can_be_is_refused(status, field):
    assert verdict(response, field, status=status) == (400, f"A {status} response cannot have a body")


def test_switching_protocols_is_refused_since_nobody_asked():
    message = "Switching Protocols, which nobody asked for"

    assert verdict(response, "Connection: upgrade", "Upgrade: x", status=101) == (400, message)


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding", "Host", "Authorization", "Connection", "TE"])
def test_a_field_that_frames_or_routes_cannot_be_a_trailer(name):
    with pytest.raises(Refusal, match=f"The field {name.lower()} cannot be a trailer"):
        frame_trailers(lines(f"{name}: 1"), AMPLE)


def test_trailers_are_accounted_as_a_head_of_their_own():
    fields = lines("Grpc-Status: 0", "X: y")
    exact = sum(len(name) + len(value) + 4 for name, value in fields)

    assert frame_trailers(fields, ReaderLimits(1, 2, exact)).raw == fields
    for limits in (ReaderLimits(0, 2, exact - 1), ReaderLimits(0, 1, exact)):
        with pytest.raises(Refusal, match="Request Header Fields Too Large"):
            frame_trailers(fields, limits)
