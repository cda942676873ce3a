"""TLS: contexts made from files, who gets which certificate, and streams that carry it, on every loop."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from certificates import Authority, fingerprint_of

from gw.limits import TLS_HANDSHAKE_TIME, TLS_WATCH_PERIOD
from gw.listening import certificate_of
from gw.net.deadlines import Deadlines
from gw.net.network import Network
from gw.net.stream import StreamLost
from gw.net.tls import (
    ClientTls,
    ClientTlsSettings,
    KeyPair,
    ServerTls,
    ServerTlsSettings,
    TlsError,
    Watch,
)
from gw.testing import PATIENCE


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def pair(files, *hosts):
    return KeyPair(files["cert_file"], files["key_file"], hosts)


def server_tls(authority, **settings):
    pairs = settings.pop("pairs", None) or (pair(authority.issue("gw.test")),)
    return ServerTls("secure", ServerTlsSettings(pairs=pairs, **settings))


def client_tls(authority, **settings):
    return ClientTls(ClientTlsSettings(**{"ca_file": authority.ca_file, "server_name": "gw.test"} | settings))


def shaken(server, client, name):
    """Shake hands in memory; return both ends, or raise what the first to fail raises."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    left = list(ends)
    while left:
        for end in tuple(left):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            left.remove(end)
    return ends


def subject_seen(server, authority, name, **client):
    context = authority.trusting()
    context.check_hostname = False
    ends = shaken(server.context, context, name)
    return [value for kind, value in ends[0].getpeercert()["subjectAltName"] if kind == "DNS"]


class Ends:
    def __init__(self):
        self.accepted = []
        self.came = anyio.Event()


@asynccontextmanager
async def listening(tls, **options):
    """Listen with *tls*; give the network, the address and what was accepted."""
    ends, over = Ends(), anyio.Event()

    async def serve(stream):
        ends.accepted.append(stream)
        ends.came.set()
        await over.wait()

    async with anyio.create_task_group() as tasks:
        network = Network(tasks)
        tasks.start_soon(network.deadlines.run)
        listener = await network.listen(("127.0.0.1", 0), serve, tls, **options)
        try:
            with anyio.fail_after(PATIENCE):
                yield network, listener.address, ends
        finally:
            listener.close()
            over.set()
            for stream in ends.accepted:
                stream.abort()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()


class TestServerContext:
    def test_the_whole_chain_is_sent(self, authority):
        assert subject_seen(server_tls(authority), authority, "gw.test") == ["gw.test"]

    def test_the_name_asked_for_chooses_the_certificate_and_any_other_gets_the_first(self, authority):
        tls = server_tls(
            authority,
            pairs=(
                pair(authority.issue("first.test")),
                pair(authority.issue("other.test"), "other.test"),
                pair(authority.issue("*.wild.test"), "*.wild.test", "Also.test"),
            ),
        )
        seen = {
            name: subject_seen(tls, authority, name)[0]
            for name in (
                "first.test",
                "other.test",
                "OTHER.test",
                "a.wild.test",
                "also.test",
                "x.test",
                "a.b.wild.test",
            )
        }
        assert seen == {
            "first.test": "first.test",
            "other.test": "other.test",
            "OTHER.test": "other.test",
            "a.wild.test": "*.wild.test",
            "also.test": "*.wild.test",
            "x.test": "first.test",
            "a.b.wild.test": "first.test",
        }

    def test_versions_below_the_least_are_refused(self, authority):
        client = authority.trusting()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
            shaken(server_tls(authority, min_version="1.3").context, client, "gw.test")
        ends = shaken(server_tls(authority).context, client, "gw.test")
        assert ends[0].version() == "TLSv1.2"

    def test_ciphers_are_those_of_the_settings(self, authority):
        client = authority.trusting()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        tls = server_tls(authority, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        assert shaken(tls.context, client, "gw.test")[0].cipher()[0].endswith("AES128-GCM-SHA256")

    @pytest.mark.parametrize(
        ("offered", "served", "agreed"),
        [
            (("h2", "http/1.1"), ("h2", "http/1.1"), "h2"),
            (("http/1.1", "h2"), ("h2", "http/1.1"), "h2"),  # the server's order counts (behaviour 7.1)
            (("http/1.1",), ("h2", "http/1.1"), "http/1.1"),
            (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
            ((), ("h2", "http/1.1"), None),
        ],
    )
    def test_alpn_is_agreed_on_in_our_order(self, authority, offered, served, agreed):
        ends = shaken(server_tls(authority, alpn=served).context, authority.trusting(alpn=offered), "gw.test")
        assert ends[1].selected_alpn_protocol() == agreed

    def test_files_that_cannot_be_used_are_named(self, authority, tmp_path):
        good, other = authority.issue("gw.test"), authority.issue("other.test")
        garbage = tmp_path / "garbage.pem"
        garbage.write_text("nothing")
        mixed = pair({"cert_file": good["cert_file"], "key_file": other["key_file"]})
        for settings, message in [
            ({"pairs": (KeyPair("/nowhere.pem", good["key_file"]),)}, r"^/nowhere\.pem cannot be read: No such file"),
            ({"pairs": (mixed,)}, r"are no certificate and its key: key values mismatch$"),
            ({"pairs": (KeyPair(str(garbage), good["key_file"]),)}, r"garbage\.pem and .* no start line$|: "),
            ({"verify": "required", "ca_file": str(garbage)}, r"garbage\.pem has no certificates of authorities"),
            ({"ciphers": "NONE-SUCH"}, r"^ciphers: OpenSSL knows none of 'NONE-SUCH'$"),
        ]:
            with pytest.raises(TlsError, match=message):
                server_tls(authority, **settings)

    def test_a_key_with_a_passphrase_is_an_error_and_asks_nobody(self, authority, tmp_path):
        from cryptography.hazmat.primitives import serialization

        files = authority.issue("gw.test")
        key = serialization.load_pem_private_key(Path(files["key_file"]).read_bytes(), None)
        locked = tmp_path / "locked.key"
        locked.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(TlsError, match="the key is encrypted"):
            server_tls(authority, pairs=(KeyPair(files["cert_file"], str(locked)),))


class TestReload:
    def test_new_files_are_for_new_connections(self, authority, caplog):
        files = authority.issue("gw.test", "old.test", to="live")
        tls = server_tls(authority, pairs=(pair(files),))
        old = tls.context
        assert not tls.refresh()
        authority.issue("gw.test", "new.test", to="live")
        os.utime(files["cert_file"], (1, 1))  # a clock may stand still between two writes
        with caplog.at_level(logging.INFO):
            assert tls.refresh()
        assert (tls.context is not old, tls.reloads) == (True, 1)
        assert subject_seen(tls, authority, "gw.test") == ["gw.test", "new.test"]
        assert caplog.messages == ["listener secure: new certificates"]

    def test_files_that_are_no_good_leave_the_old_ones_and_are_said_once(self, authority, caplog):
        files = authority.issue("gw.test", to="broken")
        tls = server_tls(authority, pairs=(pair(files),))
        Path(files["cert_file"]).write_text("half a")
        assert [tls.refresh(), tls.refresh()] == [False, False]
        assert subject_seen(tls, authority, "gw.test") == ["gw.test"]
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("listener secure keeps its certificates: ")

    def test_the_ticker_looks_every_few_seconds(self, authority):
        now = [1000.0]
        deadlines = Deadlines(lambda: now[0])
        tls = server_tls(authority)
        looks = []
        tls.refresh = lambda: looks.append(now[0])
        deadlines.every_tick(Watch([tls], deadlines).look)
        for _ in range(int(TLS_WATCH_PERIOD) * 2 + 2):
            now[0] += 1.0
            deadlines.turn()
        assert looks == [1000 + TLS_WATCH_PERIOD, 1000 + 2 * TLS_WATCH_PERIOD]


class TestStreams:
    async def test_bytes_go_both_ways_and_both_ends_know_what_was_agreed(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            dialled = await network.dial(*address, client_tls(authority, alpn=("h2", "http/1.1")))
            await ends.came.wait()
            accepted = ends.accepted[0]
            dialled.write(b"ping" * 50_000)
            got = b""
            while len(got) < 200_000:
                got += await accepted.receive()
            assert got == b"ping" * 50_000
            accepted.write_parts([b"po", b"ng"])
            assert await dialled.receive() == b"pong"
            assert (dialled.alpn, accepted.alpn) == ("h2", "h2")
            assert accepted.peer[0] == "127.0.0.1"
            sock = accepted.extra_attributes[anyio.abc.SocketAttribute.raw_socket]()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            dialled.abort()

    async def test_an_end_in_good_order_is_an_end(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            dialled = await network.dial(*address, client_tls(authority))
            await ends.came.wait()
            ends.accepted[0].write(b"last words")
            ends.accepted[0].close()
            assert await dialled.receive() == b"last words"
            with pytest.raises(anyio.EndOfStream):
                await dialled.receive()
            dialled.close()

    async def test_a_connection_that_was_cut_is_not_taken_for_one_that_ended(self, authority):
        """Whoever can drop packets could otherwise shorten a response that ends with the connection."""
        tls = server_tls(authority)
        async with listening(tls) as (_, address, ends):
            raw = await anyio.to_thread.run_sync(socket.create_connection, address)
            context = authority.trusting()
            secure = await anyio.to_thread.run_sync(lambda: context.wrap_socket(raw, server_hostname="gw.test"))
            secure.sendall(b"half of")
            await ends.came.wait()
            accepted = ends.accepted[0]
            assert await accepted.receive() == b"half of"
            os.close(secure.detach())  # FIN, and no close_notify
            with pytest.raises(StreamLost):
                await accepted.receive()

    async def test_it_may_be_closed_twice(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            dialled = await network.dial(*address, client_tls(authority))
            await ends.came.wait()
            dialled.write(b"last words")
            dialled.close()
            dialled.close()
            assert dialled.unsent >= 0
            assert await ends.accepted[0].receive() == b"last words"

    async def test_a_peer_that_does_not_close_is_cut_off_with_the_network(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            raw = await anyio.to_thread.run_sync(socket.create_connection, address)
            context = authority.trusting()
            with await anyio.to_thread.run_sync(lambda: context.wrap_socket(raw, server_hostname="gw.test")):
                await ends.came.wait()
                ends.accepted[0].close()
                await network.aclose()
                if network._asyncio is not None:
                    assert (ends.accepted[0].lost, network._asyncio._outbox.closing) == (True, set())

    async def test_write_eof_does_nothing(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            dialled = await network.dial(*address, client_tls(authority))
            await ends.came.wait()
            dialled.write_eof()
            ends.accepted[0].write(b"still here")
            assert await dialled.receive() == b"still here"
            dialled.abort()

    async def test_the_next_connection_resumes_the_session(self, authority):
        async with listening(server_tls(authority)) as (network, address, ends):
            tls = client_tls(authority)
            seen = []
            for number in range(2):
                dialled = await network.dial(*address, tls)
                while len(ends.accepted) == number:
                    await anyio.lowlevel.checkpoint()
                ends.accepted[number].write(b"hello")  # the tickets come with the first data
                assert await dialled.receive() == b"hello"
                seen.append(dialled.tls.session_reused)
                tls.remember(dialled.tls)
                dialled.abort()
            assert seen == [False, True]


async def told(client):
    """Read what the gateway says until it has closed."""
    try:
        while True:
            await client.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        pass


class TestHandshakes:
    @pytest.mark.parametrize(
        ("sent", "why"), [(b"GET / HTTP/1.1\r\n\r\n", "http request"), (b"\x16\x03\x01\x00\x05hello", "")]
    )
    async def test_garbage_is_counted_and_said_without_a_traceback(self, authority, sent, why, caplog):
        tls = server_tls(authority)
        async with listening(tls) as (_, address, ends):
            with caplog.at_level(logging.INFO):
                async with await anyio.connect_tcp(*address) as client:
                    await client.send(sent)
                    await told(client)
                await anyio.wait_all_tasks_blocked()
            assert (tls.failures, tls.pending, ends.accepted) == (1, 0, [])
            (record,) = caplog.records
            assert record.exc_info is None
            assert record.message.startswith("listener secure: 1 TLS handshakes failed; the last, with 127.0.0.1: ")
            assert why in record.message

    async def test_a_flood_of_failures_is_said_ever_more_rarely(self, authority, caplog):
        tls = server_tls(authority)
        with caplog.at_level(logging.INFO):
            for _ in range(100):
                tls.failed("192.0.2.1", ConnectionResetError())
        assert (tls.failures, len(caplog.records)) == (100, 7)

    async def test_a_client_that_says_nothing_is_cut_off_in_time(self, authority):
        tls = server_tls(authority, handshake_timeout=0.2)
        async with listening(tls) as (_, address, _ends), await anyio.connect_tcp(*address) as client:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()
            await anyio.wait_all_tasks_blocked()
            assert tls.failures == 1

    def test_there_is_always_a_time(self, authority):
        assert server_tls(authority).handshake_timeout == TLS_HANDSHAKE_TIME

    async def test_nobody_is_shaken_hands_with_when_there_is_no_room(self, authority):
        tls = server_tls(authority)
        async with (
            listening(tls, admit=lambda: False) as (_, address, ends),
            await anyio.connect_tcp(*address) as client,
        ):
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()
            assert (ends.accepted, tls.failures) == ([], 0)

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"server_name": "other.test"}, "Hostname mismatch"),
            ({"ca_file": ""}, "unable to get local issuer"),
            ({"min_version": "1.3"}, None),
        ],
    )
    async def test_an_upstream_that_is_not_who_it_should_be_is_refused(self, authority, settings, why):
        served = server_tls(authority)
        if settings.get("min_version"):
            served.context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with listening(served) as (network, address, _):
            with pytest.raises(OSError, match=why):  # ssl.SSLError, or a reset
                await network.dial(*address, client_tls(authority, **settings))

    async def test_without_verification_anybody_will_do(self, authority):
        async with listening(server_tls(authority)) as (network, address, _):
            tls = client_tls(authority, verify_peer=False, server_name="", ca_file="")
            dialled = await network.dial(*address, tls)
            assert dialled.tls.version() == "TLSv1.3"
            dialled.abort()


class TestClientCertificates:
    @pytest.mark.parametrize(
        ("verify", "shows", "works"),
        [
            ("required", True, True),
            ("required", False, False),
            ("optional", True, True),
            ("optional", False, True),
            ("none", True, True),
        ],
    )
    async def test_who_is_let_in(self, authority, verify, shows, works):
        tls = server_tls(authority, verify=verify, ca_file=authority.ca_file)
        shown = authority.issue("client.test", common_name="a client") if shows else {}
        async with listening(tls) as (network, address, ends):
            dialled = None
            try:
                dialled = await network.dial(*address, client_tls(authority, **shown))
                if works:
                    await ends.came.wait()
                    found = certificate_of(ends.accepted[0].tls)
                    assert (found is not None) == (shows and verify != "none")
                    if found is not None:
                        assert found.names == ("DNS:client.test",)
                        assert found.subject.startswith("CN=a client,")
                        assert found.sha256 == fingerprint_of(shown)
                else:
                    with pytest.raises((StreamLost, anyio.EndOfStream)):  # TLS 1.3: the client learns it when it reads
                        await dialled.receive()
                    assert ends.accepted == []
                    assert tls.failures == 1
            finally:
                if dialled is not None:
                    dialled.abort()

    async def test_one_of_another_authority_is_refused(self, authority, tmp_path):
        tls = server_tls(authority, verify="optional", ca_file=authority.ca_file)
        shown = Authority(tmp_path).issue("client.test")
        async with listening(tls) as (network, address, ends):
            dialled = await network.dial(*address, client_tls(authority, **shown))
            with pytest.raises((StreamLost, anyio.EndOfStream)):
                await dialled.receive()
            assert ends.accepted == []
            dialled.abort()
