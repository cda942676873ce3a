"""Several listeners, plain and TLS, on one gateway: over sockets, with TLS toward the upstream as well."""

from __future__ import annotations

import contextlib
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

import anyio
import pytest
from anyio.streams.tls import TLSStream
from certificates import Authority

from gw.config.load import load
from gw.context import PluginContext, Shared
from gw.gateway import Gateway
from gw.keys import Certificate
from gw.listening import certificate_of, places
from gw.net.tls import TlsError
from gw.testing import PATIENCE


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def running(config):
    """Run a gateway over sockets; the answer of its upstream is the request's own head."""
    gateway = Gateway(load({"bind_port": 0, **config}, environ={}))
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def serve():
            await gateway.serve(ready=ready.set)

        tasks.start_soon(serve)
        with anyio.fail_after(PATIENCE):
            await ready.wait()
            yield gateway
        gateway.stop()
        tasks.cancel_scope.cancel()


@dataclass
class Seen:
    """What an upstream saw of the TLS that a request came over."""

    connection: int
    session_reused: bool
    certificate: dict


@asynccontextmanager
async def mirror(context=None):
    """Listen, with TLS if given a context, and answer each request with its head; give the port and what was seen."""
    seen = []

    async def handle(connection):
        async with connection:
            try:
                while True:
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += await connection.receive()
                    tls = connection.extra(anyio.streams.tls.TLSAttribute.ssl_object, None)
                    if tls is not None:
                        seen.append(Seen(id(connection), tls.session_reused, tls.getpeercert()))
                    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    if context is not None:
        listener = anyio.streams.tls.TLSListener(listener, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield port, seen
        tasks.cancel_scope.cancel()


async def get(address, context=None, *, fields=(), name="gw.test", path="/"):
    """Send one GET; return the answer, head and body in one, lower-case."""
    stream = await anyio.connect_tcp(*address)
    if context is not None:
        stream = await TLSStream.wrap(stream, hostname=name, ssl_context=context, standard_compatible=False)
    async with stream:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        await stream.send(f"GET {path} HTTP/1.1\r\nhost: gw.test\r\nconnection: close\r\n{lines}\r\n".encode())
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            return answer.decode().lower()


def upstream(port, **settings):
    return {
        "upstreams": [
            {"name": "up", "host": "127.0.0.1", "port": port, "proxy": {"route_prefix": "/"}} | settings,
        ]
    }


def served_with(authority, *names):
    files = authority.issue(*names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert_file"], files["key_file"])
    return context


class TestListeners:
    async def test_plain_and_tls_on_one_gateway(self, authority):
        async with mirror() as (port, _):
            tls = {"enabled": True, **authority.issue("gw.test")}
            config = upstream(port) | {"listeners": [{"name": "secure", "bind_port": 0, "tls": tls}]}
            async with running(config) as gateway:
                assert list(gateway.addresses) == ["main", "secure"]
                plain = await get(gateway.addresses["main"])
                secure = await get(gateway.addresses["secure"], authority.trusting())
        assert "x-forwarded-proto: http\r\n" in plain
        assert "x-forwarded-proto: https\r\n" in secure

    async def test_handshakes_are_a_figure_by_how_they_ended(self, authority):
        async with mirror() as (port, _):
            tls = {"enabled": True, **authority.issue("gw.test")}
            config = upstream(port) | {"listeners": [{"name": "secure", "bind_port": 0, "tls": tls}]}
            async with running(config) as gateway:
                secure = gateway.addresses["secure"]
                for _ in range(2):
                    await get(secure, authority.trusting())
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    async with await anyio.connect_tcp(*secure) as stranger:
                        await stranger.send(b"GET / HTTP/1.1\r\n\r\n")
                        while True:
                            await stranger.receive()
                await anyio.wait_all_tasks_blocked()
                (handshakes,) = [each for each in gateway.figures if each.name == "gw.tls.handshakes"]
                assert {labels: count.value for labels, count in handshakes.rows().items()} == {
                    ("success",): 2,
                    ("failure",): 1,
                }

    async def test_names_that_are_looked_up_are_a_figure_by_what_came_of_it(self):
        async with mirror() as (port, _), running(upstream(port, host="localhost")) as gateway:
            await get(gateway.addresses["main"])
            (resolves,) = [each for each in gateway.figures if each.name == "gw.dns.resolves"]
            assert {labels: count.value for labels, count in resolves.rows().items()} == {("success",): 1}

    def test_listeners_alone_are_all_there_are(self):
        names = {
            "listeners only": [{"name": "a", "bind_port": 1}],
            "and bind_port": [{"name": "a", "bind_port": 1}],
        }
        found = {
            what: [place.name for place in places(load({"listeners": listed, **more}, environ={}).config)]
            for (what, listed), more in zip(names.items(), [{}, {"bind_port": 2}], strict=True)
        }
        assert found == {"listeners only": ["a"], "and bind_port": ["main", "a"]}

    async def test_the_reference_s_keys_make_the_first(self, authority):
        async with mirror() as (port, _):
            tls = {"enabled": True, **authority.issue("gw.test"), "min_version": "1.3"}
            async with running(upstream(port) | {"tls": tls}) as gateway:
                assert list(gateway.addresses) == ["main"]
                assert "x-forwarded-proto: https\r\n" in await get(gateway.address, authority.trusting())

    @pytest.mark.parametrize(("enabled", "agreed"), [(True, "h2"), (False, "http/1.1")])
    async def test_http2_is_offered_where_it_is_on(self, authority, enabled, agreed):
        tls = {"enabled": True, **authority.issue("gw.test")}
        async with running({"tls": tls, "http2": {"enabled": enabled}}) as gateway:
            raw = await anyio.connect_tcp(*gateway.address)
            context = authority.trusting(alpn=("h2", "http/1.1"))
            async with await TLSStream.wrap(
                raw, hostname="gw.test", ssl_context=context, standard_compatible=False
            ) as stream:
                assert stream.extra(anyio.streams.tls.TLSAttribute.alpn_protocol) == agreed

    async def test_certificates_are_read_again_and_connections_live_on(self, authority):
        files = authority.issue("gw.test", "old.test", to="live")
        async with running({"tls": {"enabled": True, **files}}) as gateway:
            raw = await anyio.connect_tcp(*gateway.address)
            stream = await TLSStream.wrap(
                raw, hostname="gw.test", ssl_context=authority.trusting(), standard_compatible=False
            )
            async with stream:
                authority.issue("gw.test", "new.test", to="live")
                gateway.refresh_certificates()
                await stream.send(b"GET / HTTP/1.1\r\nhost: gw.test\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 404 ")
            assert (await get(gateway.address, authority.trusting(), name="new.test")).startswith("http/1.1 404 ")

    def test_a_certificate_that_is_none_keeps_it_from_starting(self, authority, tmp_path):
        (tmp_path / "none.pem").write_text("none")
        tls = {"enabled": True, **authority.issue("gw.test"), "cert_file": str(tmp_path / "none.pem")}
        with pytest.raises(TlsError, match=r"none\.pem and .* are no certificate and its key"):
            places(load({"tls": tls}, environ={}).config)


class TestClientCertificates:
    async def test_the_upstream_is_told_and_what_the_client_says_itself_is_dropped(self, authority):
        async with mirror() as (port, _):
            tls = {
                "enabled": True,
                **authority.issue("gw.test"),
                "client_certificates": {"verify": "optional", "ca_file": authority.ca_file},
            }
            told = {"client_subject": "X-Client-Subject", "client_names": "X-Client-Names"}
            config = upstream(port, proxy={"route_prefix": "/", "header_rewrite": told}) | {"tls": tls}
            async with running(config) as gateway:
                context = authority.trusting()
                lies = [("x-client-subject", "CN=admin"), ("X-Client-Names", "DNS:admin")]
                without = await get(gateway.address, context, fields=lies)
                shown = authority.issue("client.test", "10.0.0.1", common_name="someone")
                context.load_cert_chain(shown["cert_file"], shown["key_file"])
                shown = await get(gateway.address, context, fields=lies)
        assert "admin" not in without + shown
        assert "x-client" not in without
        assert "x-client-subject: cn=someone," in shown
        assert "x-client-names: dns:client.test, ip address:10.0.0.1\r\n" in shown


class TestUpstreamTls:
    async def test_it_is_verified_and_called_by_its_name(self, authority):
        async with mirror(served_with(authority, "up.test")) as (port, seen):
            tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test."}
            async with running(upstream(port, tls=tls)) as gateway:
                answer = await get(gateway.address)
                assert await get(gateway.address)
        assert f"host: up.test:{port}\r\n" in answer
        assert len({each.connection for each in seen}) == 1  # one connection for both

    @pytest.mark.parametrize(
        ("tls", "why"),
        [
            ({"sni_hostname": "other.test"}, "Hostname mismatch"),
            ({"sni_hostname": "up.test", "ca_file": ""}, "unable to get local issuer certificate"),
        ],
    )
    async def test_one_that_cannot_be_verified_is_a_502(self, authority, tls, why):
        async with mirror(served_with(authority, "up.test")) as (port, seen):
            settings = {"enabled": True, "ca_file": authority.ca_file} | tls
            async with running(upstream(port, tls=settings)) as gateway:
                told = []
                gateway._told = lambda ex: told.append((ex.reason, str(ex.attempts[0].error)))
                assert (await get(gateway.address)).startswith("http/1.1 502 bad gateway\r\n")
        assert (told[0][0], seen) == ("gw.upstream_tls", [])
        assert told[0][1].startswith(f"no TLS with 127.0.0.1:{port}: ")
        assert why in told[0][1]

    async def test_our_own_certificate_is_shown(self, authority):
        context = served_with(authority, "up.test")
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca_file)
        async with mirror(context) as (port, seen):
            tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
            async with running(upstream(port, tls=tls | authority.issue("gw.client.test"))) as gateway:
                assert (await get(gateway.address)).startswith("http/1.1 200 ")
        assert seen[0].certificate["subjectAltName"] == (("DNS", "gw.client.test"),)

    async def test_sessions_are_resumed(self, authority):
        async with mirror(served_with(authority, "up.test")) as (port, seen):
            tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
            pool = {"max_requests_per_conn": 1}
            async with running(upstream(port, tls=tls, pool=pool)) as gateway:
                for _ in range(3):
                    assert (await get(gateway.address)).startswith("http/1.1 200 ")
        assert [each.session_reused for each in seen] == [False, True, True]

    async def test_a_plugin_calls_it_with_its_tls(self, authority):
        async with mirror(served_with(authority, "up.test")) as (port, _), AsyncExitStack() as stack:
            tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
            loaded = load(upstream(port, tls=tls) | {"plugins": ["rewrite"]}, environ={})
            caller = PluginContext("rewrite", loaded, Shared(), stack, {}).caller("up")
            answer = await caller.call("GET", "http://idp.test/keys", timeout=PATIENCE, most=10_000)
        assert answer.body.startswith(b"GET /keys HTTP/1.1\r\nhost: idp.test\r\n")


class Shown:
    """What `ssl` says of a certificate."""

    def __init__(self, subject, names=()):
        self.found = {"subject": subject, "subjectAltName": names, "serialNumber": "0A"}

    def getpeercert(self, binary_form=False):
        return b"der" if binary_form else self.found


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        ((), ""),
        (
            ((("countryName", "DE"),), (("organizationName", "A, B+C"),), (("commonName", "x"),)),
            r"CN=x,O=A\, B\+C,C=DE",
        ),
        (((("commonName", "a"), ("userId", "b")),), "CN=a+UID=b"),
        (((("commonName", "#a "),),), r"CN=\#a\ "),
        (((("title", 'q"\\'),),), r"title=q\"\\"),
        (((("commonName", "a\r\nx-evil: 1"),),), "CN=a??x-evil: 1"),
    ],
)
def test_a_subject_is_written_as_rfc_4514_says(subject, written):
    assert certificate_of(Shown(subject)) == Certificate(written, (), "0A", sha256(b"der").hexdigest())


def test_no_certificate_is_none():
    assert certificate_of(None) is None
    shown = Shown(())
    shown.found = {}
    assert certificate_of(shown) is None
