"""gRPC through the gateway, by gRPC's own client and server: in cleartext and over TLS, on both engines."""

import base64
import contextlib
import http.client
import ssl
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from started import free_port, start_gateway

from gw.testing import PATIENCE

METHODS = "/gw.Test/"


def echo(request, context):
    context.set_trailing_metadata([("x-trailer", "1"), ("x-binary-bin", b"\0\1")])
    return request


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def add_up(requests, context):
    return b"%d" % sum(int(each) for each in requests)


def talk(requests, context):
    for each in requests:
        yield each.upper()


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: \u00e9")


def metadata(request, context):
    got = dict(context.invocation_metadata())
    context.send_initial_metadata([("x-back", got["x-large"])])
    return b"%d" % len(got["x-large"])


def deadline(request, context):
    return b"%.1f" % context.time_remaining()


class Waiting:
    """A call that goes on until it is cancelled."""

    def __init__(self):
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, request, context):
        context.add_callback(self.ended.set)
        self.begun.set()
        yield b"begun"
        self.ended.wait(PATIENCE)


class Service(grpc.GenericRpcHandler):
    def __init__(self):
        self.waiting = Waiting()
        self.handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(echo),
            "Count": grpc.unary_stream_rpc_method_handler(count),
            "AddUp": grpc.stream_unary_rpc_method_handler(add_up),
            "Talk": grpc.stream_stream_rpc_method_handler(talk),
            "Fail": grpc.unary_unary_rpc_method_handler(fail),
            "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
            "Deadline": grpc.unary_unary_rpc_method_handler(deadline),
            "Wait": grpc.unary_stream_rpc_method_handler(self.wait),
        }

    def wait(self, request, context):
        return self.waiting(request, context)

    def service(self, details):
        return self.handlers.get(details.method.removeprefix(METHODS))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["cleartext", "tls"])
def secure(request):
    return request.param == "tls"


@pytest.fixture(scope="module")
def service():
    return Service()


@pytest.fixture(scope="module")
def upstream(authority, secure, service):
    """The port of gRPC's own server."""
    server = grpc.server(
        futures.ThreadPoolExecutor(8), handlers=(service,), options=[("grpc.max_metadata_size", 60_000)]
    )
    if secure:
        files = authority.issue("up.test")
        key, chain = (Path(files[name]).read_bytes() for name in ("key_file", "cert_file"))
        credentials = grpc.ssl_server_credentials([(key, chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait(PATIENCE)


@pytest.fixture(scope="module")
def gateway(variant, upstream, secure, authority, tmp_path_factory):
    settings = {
        "name": "up",
        "host": "127.0.0.1",
        "port": upstream,
        "http2": {"enabled": True, "prefer": "always" if secure else "h2c"},
        "proxy": {"route_prefix": "/gw.Test/*rest"},
    }
    configuration = variant | {"bind_port": 0, "max_header_size": 60_000, "upstreams": [settings]}
    configuration |= {"plugins": ["grpcweb"], "grpcweb": {}}
    if secure:
        settings["tls"] = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
        configuration["tls"] = {"enabled": True, **authority.issue("gw.test")}
    with contextlib.closing(start_gateway(configuration, folder=tmp_path_factory.mktemp("grpc"))) as started:
        yield started


@pytest.fixture
def channel(gateway, secure, authority):
    options = [("grpc.max_metadata_size", 60_000), ("grpc.ssl_target_name_override", "gw.test")]
    address = f"127.0.0.1:{gateway.port}"
    if secure:
        credentials = grpc.ssl_channel_credentials(Path(authority.ca_file).read_bytes())
        made = grpc.secure_channel(address, credentials, options)
    else:
        made = grpc.insecure_channel(address, options)
    with made:
        yield made


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize(("method", "status"), [("Echo", b"grpc-status:0"), ("Fail", b"grpc-status:9")])
def test_grpc_web_becomes_grpc_for_the_server(gateway, secure, authority, method, status, text):
    if secure:
        context = ssl.create_default_context(cafile=authority.ca_file)
        context.check_hostname = False
        client = http.client.HTTPSConnection("127.0.0.1", gateway.port, timeout=PATIENCE, context=context)
    else:
        client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    message = b"\0\0\0\0\5hello"
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    with contextlib.closing(client):
        client.request("POST", METHODS + method, base64.b64encode(message) if text else message, {"content-type": kind})
        answer = client.getresponse()
        body = answer.read()
    assert answer.status == 200
    assert answer.getheader("content-type").startswith("application/grpc-web-text" if text else "application/grpc-web")
    if text:
        body = b"".join(base64.b64decode(body[at : at + 4]) for at in range(0, len(body), 4))
    if method == "Echo":
        assert body.startswith(message + b"\x80")
        assert status in body
    else:  # trailers only
        assert status in body or answer.getheader("grpc-status") == "9"


def test_a_unary_call_is_answered(channel):
    reply, call = channel.unary_unary(METHODS + "Echo").with_call(b"hello", timeout=PATIENCE)
    assert reply == b"hello"
    assert call.code() is grpc.StatusCode.OK
    trailing = dict(call.trailing_metadata())
    assert (trailing["x-trailer"], trailing["x-binary-bin"]) == ("1", b"\0\1")


def test_large_messages(channel):
    body = bytes(range(256)) * 4000
    assert channel.unary_unary(METHODS + "Echo")(body, timeout=PATIENCE) == body


def test_many_calls_at_once(channel):
    call = channel.unary_unary(METHODS + "Echo")
    calls = [call.future(b"%d" % number, timeout=PATIENCE) for number in range(300)]
    assert [each.result() for each in calls] == [b"%d" % number for number in range(300)]


def test_the_server_streams(channel):
    assert list(channel.unary_stream(METHODS + "Count")(b"500", timeout=PATIENCE)) == [b"%d" % n for n in range(500)]


def test_the_client_streams(channel):
    numbers = (b"%d" % number for number in range(500))
    assert channel.stream_unary(METHODS + "AddUp")(numbers, timeout=PATIENCE) == b"124750"


def test_both_stream_and_each_waits_for_the_other(channel):
    said = threading.Semaphore(1)
    heard = []

    def words():
        for word in (b"one", b"two", b"three"):
            assert said.acquire(timeout=PATIENCE)
            yield word

    for answer in channel.stream_stream(METHODS + "Talk")(words(), timeout=PATIENCE):
        heard.append(answer)
        said.release()
    assert heard == [b"ONE", b"TWO", b"THREE"]


def test_an_error_that_is_only_trailers(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS + "Fail")(b"", timeout=PATIENCE)
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "not today: \u00e9",
    )


def test_a_method_that_is_not_there(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS + "Nothing")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_large_metadata_goes_both_ways(channel):
    large = "x" * 20_000
    reply, call = channel.unary_unary(METHODS + "Metadata").with_call(
        b"", metadata=[("x-large", large)], timeout=PATIENCE
    )
    assert reply == b"20000"
    assert dict(call.initial_metadata())["x-back"] == large


def test_the_server_hears_of_the_deadline(channel):
    left = float(channel.unary_unary(METHODS + "Deadline")(b"", timeout=15))
    assert 5 < left < 16


def test_a_client_that_cancels_cancels_at_the_server(channel, service):
    service.waiting = Waiting()
    call = channel.unary_stream(METHODS + "Wait")(b"", timeout=PATIENCE)
    assert next(call) == b"begun"
    call.cancel()
    assert service.waiting.ended.wait(PATIENCE)


def test_a_deadline_that_passes_ends_it_on_both_sides(channel, service):
    service.waiting = Waiting()
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(METHODS + "Wait")(b"", timeout=1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.waiting.ended.wait(PATIENCE)


def test_a_route_that_is_not_there_is_a_grpc_status(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/other.Service/Method")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_upstream_that_is_not_there_is_a_grpc_status(serve, variant):
    settings = {"name": "up", "host": "127.0.0.1", "port": free_port(), "http2": {"enabled": True, "prefer": "h2c"}}
    started = serve(variant | {"bind_port": 0, "upstreams": [settings | {"proxy": {"route_prefix": "/"}}]})
    with grpc.insecure_channel(f"127.0.0.1:{started.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS + "Echo")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
