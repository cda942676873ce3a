"""What must be refused, sent over raw sockets: a 4xx or 505 and the end of the connection; the upstream never hears of it.

Each refused message is followed by a harmless request, as a smuggler would have it: nothing may follow what was refused.
"""

import contextlib
import socket

import pytest
from conftest import to
from started import start_gateway
from wire import Recorder, ask, connect, read_all, statuses

GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(*lines, body=b"0\r\n\r\n"):
    return b"POST / HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(*lines):
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


CL, TE = b"Content-Length: 5", b"Transfer-Encoding: chunked"

REFUSED_HEADS = {
    # Two lengths, and two ways to say where a message ends.
    "CL then TE": post(CL, TE),
    "TE then CL": post(TE, CL),
    "CL and TE in other spellings": post(b"cONTENT-lENGTH: 5", b"tRANSFER-eNCODING: chunked"),
    "CL 0 and TE": post(b"Content-Length: 0", TE),
    "two CL that differ": post(CL, b"Content-Length: 6"),
    "two CL that agree": post(CL, CL),
    "a list of CL": post(b"Content-Length: 5, 5"),
    "a signed CL": post(b"Content-Length: +5"),
    "a negative CL": post(b"Content-Length: -5"),
    "a hexadecimal CL": post(b"Content-Length: 0x5"),
    "a CL with an underscore": post(b"Content-Length: 1_0"),
    "an empty CL": post(b"Content-Length:"),
    "a CL of letters": post(b"Content-Length: five"),
    "a CL with a fraction": post(b"Content-Length: 5.0"),
    "a CL beyond 63 bits": post(b"Content-Length: 9223372036854775808"),
    "a CL beyond 64 bits": post(b"Content-Length: 18446744073709551621"),
    "a CL of other digits": post(b"Content-Length: \xd9\xa5"),
    # Transfer-Encoding, obfuscated.
    "TE twice": post(TE, TE),
    "TE chunked, chunked": post(b"Transfer-Encoding: chunked, chunked"),
    "TE identity": post(b"Transfer-Encoding: identity"),
    "TE identity, chunked": post(b"Transfer-Encoding: identity, chunked"),
    "TE gzip, chunked": post(b"Transfer-Encoding: gzip, chunked"),
    "TE chunked, gzip": post(b"Transfer-Encoding: chunked, gzip"),
    "TE xchunked": post(b"Transfer-Encoding: xchunked"),
    "TE quoted": post(b'Transfer-Encoding: "chunked"'),
    "TE with a parameter": post(b"Transfer-Encoding: chunked;q=1"),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked"),
    "TE with a form feed": post(b"Transfer-Encoding: chunked\x0c"),
    "TE with a NUL": post(b"Transfer-Encoding: chunked\0"),
    "TE with a no-break space": post(b"Transfer-Encoding: \xa0chunked"),
    "TE, space before colon": post(b"Transfer-Encoding : chunked"),
    "TE, tab before colon": post(b"Transfer-Encoding\t: chunked"),
    "TE, space before name": post(b" Transfer-Encoding: chunked"),
    "TE, folded": post(b"Transfer-Encoding:\r\n chunked"),
    "TE after a folded line": post(b"X: y\r\n Transfer-Encoding: chunked"),
    "TE, empty": post(b"Transfer-Encoding:"),
    "TE, no colon": post(b"Transfer-Encoding chunked"),
    "TE behind a bare CR": post(b"X: y\rTransfer-Encoding: chunked"),
    "TE behind a bare LF": post(b"X: y\nTransfer-Encoding: chunked"),
    "TE with HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Connection takes TE away": post(b"Connection: Transfer-Encoding", TE),
    "Connection takes CL away": post(b"Connection: Content-Length", CL, body=b"12345"),
    "Connection takes Host away": get(b"Connection: close, Host"),
    # Lines and characters.
    "bare LF line ends": b"GET / HTTP/1.1\nHost: a\n\n",
    "one bare LF": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "LF LF for the empty line": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\n",
    "bare CR in a value": get(b"X: a\rb"),
    "CR CR LF": b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    "obs-fold": get(b"X: a\r\n b"),
    "obs-fold with a tab": get(b"X: a\r\n\tb"),
    "a first line that is folded": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "space before colon": get(b"X : y"),
    "a space in a name": get(b"X Y: z"),
    "an empty name": get(b": y"),
    "no colon": get(b"XY"),
    "NUL in a value": get(b"X: a\0b"),
    "NUL in a name": get(b"X\0: y"),
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "DEL in a value": get(b"X: a\x7fb"),
    "ESC in a value": get(b"X: \x1b[31m"),
    "a byte above 127 in a name": get(b"X\xe9: y"),
    "a byte above 127 in the target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a separator in a name": get(b"X(y): z"),
    # The request line.
    "no version (HTTP/0.9)": b"GET /\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab for a space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space at the end": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space at the beginning": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2's preface, misspelt": b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n",
    "a target without a slash": b"GET good HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asterisk for GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "credentials in the target": b"GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "noise": bytes(range(256)),
    # Versions.
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "HTTP/01.1": b"GET / HTTP/01.1\r\nHost: a\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "ICY/1.1": b"GET / ICY/1.1\r\nHost: a\r\n\r\n",
    # Host.
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host with credentials": b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n",
    "a list of Hosts": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    # Sizes.
    "a target of 9 KiB": b"GET /" + b"a" * 9216 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a value of 9 KiB": get(b"X: " + b"a" * 9216),
    "a name of 9 KiB": get(b"a" * 9216 + b": x"),
    "101 lines": get(*[b"X: y"] * 100),
    "a head of 1 MiB": get(*[b"X: " + b"y" * 1000] * 1000),
    # Others.
    "an unknown expectation": get(b"Expect: 200-maybe"),
    "two Content-Types": get(b"Content-Type: a/b", b"Content-Type: c/d"),
    "two Authorizations": get(b"Authorization: a", b"Authorization: b"),
}

STATUS = {
    "HTTP/1.2": 505,
    "HTTP/2.0": 505,
    "HTTP/2's preface, misspelt": 505,
    "a target of 9 KiB": 431,
    "a value of 9 KiB": 431,
    "a name of 9 KiB": 431,
    "101 lines": 431,
    "a head of 1 MiB": 431,
    "an unknown expectation": 417,
}
"""What is not 400."""

BAD_BODIES = {
    "no size": b"\r\n",
    "a size of letters": b"xyz\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "a size behind a space": b" 5\r\nhello\r\n0\r\n\r\n",
    "a size before a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size that is too small": b"4\r\nhello\r\n0\r\n\r\n",
    "a size that is too large": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a control character in an extension": b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;a=\0\r\nhello\r\n0\r\n\r\n",
    "endless extensions": b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
    "a trailer that frames": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer that routes": b"5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
    "a trailer with obs-fold": b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n",
    "a trailer with a space before its colon": b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "a bare LF among trailers": b"5\r\nhello\r\n0\r\nX: y\n\r\n\r\n",
}


@contextlib.contextmanager
def gateway_and_recorder(variant, folder):
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(contextlib.closing(Recorder()))
        started = stack.enter_context(contextlib.closing(start_gateway(to(recorder) | variant, folder=folder)))
        yield started.port, recorder


@pytest.fixture(scope="module")
def pair(variant, tmp_path_factory):
    """A gateway and the recorder behind it, for tests whose requests reach it whole or not at all."""
    with gateway_and_recorder(variant, tmp_path_factory.mktemp("garbage")) as made:
        yield made


@pytest.fixture(scope="module")
def torn_pair(variant, tmp_path_factory):
    """Another pair, for requests that may reach it in part: the recorder may hear of those when a test is over."""
    with gateway_and_recorder(variant, tmp_path_factory.mktemp("torn")) as made:
        yield made


@pytest.fixture
def port(pair):
    port, recorder = pair
    recorder.requests.clear()
    return port


@pytest.fixture
def recorder(pair):
    return pair[1]


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_a_head_that_is_wrong_is_refused_and_ends_the_connection(port, recorder, name):
    received = ask(port, REFUSED_HEADS[name] + SMUGGLED)
    assert statuses(received) == [STATUS.get(name, 400)], received
    assert b"\r\nconnection: close\r\n" in received
    assert recorder.requests == []


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_what_came_before_it_is_answered_first(port, recorder, name):
    received = ask(port, GOOD + REFUSED_HEADS[name] + SMUGGLED)
    assert statuses(received) == [200, STATUS.get(name, 400)], received
    assert recorder.lines == [b"GET /good HTTP/1.1"]


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_chunked_body_that_is_wrong_is_refused_and_never_completed(torn_pair, name):
    port, recorder = torn_pair
    received = ask(port, CHUNKED + BAD_BODIES[name] + SMUGGLED)
    assert statuses(received) == [400], received
    # Its head may have gone out already.
    assert not any(request.endswith(b"0\r\n\r\n") or b"smuggled" in request for request in recorder.requests)


@pytest.mark.parametrize("name", ["a size of letters", "a size that is too small", "bare LF after the data"])
def test_a_body_that_turns_bad_on_the_way_ends_the_upstream_connection(torn_pair, name):
    port, recorder = torn_pair
    received = ask(port, CHUNKED, b"3\r\nabc\r\n", BAD_BODIES[name], SMUGGLED)
    assert statuses(received) == [400], received
    assert not any(request.endswith(b"0\r\n\r\n") or b"smuggled" in request for request in recorder.requests)


def test_a_request_that_is_cut_at_any_byte_reaches_nobody_whole(torn_pair):
    port, recorder = torn_pair
    request = b"POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    for end in range(len(request)):
        with connect(port) as connection:
            connection.sendall(request[:end])
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b""
    assert not any(each.endswith(b"body") for each in recorder.requests)


def test_a_chunked_request_that_is_cut_at_any_byte_is_never_completed(torn_pair):
    port, recorder = torn_pair
    body = b"4;a=b\r\nbody\r\n0\r\nX: y\r\n\r\n"
    for end in range(len(body)):
        with connect(port) as connection:
            connection.sendall(CHUNKED + body[:end])
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b""
    assert not any(each.endswith(b"\r\n0\r\n\r\n") or b"x: y" in each for each in recorder.requests)


def test_what_follows_a_last_request_is_not_a_request(port, recorder):
    received = ask(port, b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + SMUGGLED)
    assert statuses(received) == [200]
    assert recorder.lines == [b"GET /last HTTP/1.1"]


def test_a_body_that_nobody_announced_is_read_as_the_next_request_and_refused(port, recorder):
    received = ask(port, GOOD + b"0\r\n\r\n" + SMUGGLED)
    assert statuses(received) == [200, 400]
    assert recorder.lines == [b"GET /good HTTP/1.1"]


def test_requests_in_one_piece_are_answered_in_order(port, recorder):
    paths = [b"/%d" % n for n in range(100)]
    pipelined = b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths)
    received = ask(port, pipelined + b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert statuses(received) == [200] * 101
    assert recorder.lines == [b"GET %b HTTP/1.1" % path for path in [*paths, b"/end"]]


def test_a_request_that_comes_byte_by_byte_is_one_request(port, recorder):
    request = b"POST /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    received = ask(port, *[request[i : i + 1] for i in range(len(request))])
    assert statuses(received) == [200]
    assert recorder.lines == [b"POST /slow HTTP/1.1"]


def test_fields_keep_their_order_and_their_duplicates(port, recorder):
    ask(port, get(b"B: 1", b"A: 2", b"B: 3", b"Cookie: x", b"Cookie: y", b"Connection: close"))
    lines = recorder.requests[0].split(b"\r\n")
    assert lines[2:7] == [b"b: 1", b"a: 2", b"b: 3", b"cookie: x", b"cookie: y"]
