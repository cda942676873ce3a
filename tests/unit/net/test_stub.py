"""The stub resolver against a name server on the loopback: what it finds, how long that holds, and what it does not believe."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import anyio
import pytest
from dns.rcode import Rcode
from name_server import name_server

from gw.limits import MAX_ADDRESSES, MAX_TARGETS, RESOLVE_AGAIN
from gw.net.deadlines import Deadlines
from gw.net.resolve import Answer, LookupFailed, NotResolved, Resolver, ResolverSettings, Services, Target
from gw.net.stub import Stub

ANY = socket.AF_UNSPEC
A1, A2, AAAA = "300 A 192.0.2.1", "300 A 192.0.2.2", "60 AAAA 2001:db8::1"


def stub(server, patience=20.0):
    host, _, port = server.address.rpartition(":")
    return Stub([(host, int(port))], patience)


async def look(zone, name="api.example", family=ANY, patience=20.0):
    with name_server(zone) as server:
        found = await stub(server, patience).lookup(name, family)
    return Answer(sorted(found.addresses), found.ttl)


@pytest.mark.parametrize(
    ("lines", "family", "found"),
    [
        ([A1, A2], socket.AF_INET, Answer(["192.0.2.1", "192.0.2.2"], 300)),
        ([A1, AAAA], socket.AF_INET, Answer(["192.0.2.1"], 300)),
        ([A1, AAAA], socket.AF_INET6, Answer(["2001:db8::1"], 60)),
        ([A1, AAAA], ANY, Answer(["192.0.2.1", "2001:db8::1"], 60)),
        ([AAAA], ANY, Answer(["2001:db8::1"], 60)),
        (["0 A 192.0.2.1"], ANY, Answer(["192.0.2.1"], 0)),
        (["2147483647 A 192.0.2.1"], ANY, Answer(["192.0.2.1"], 2**31 - 1)),
        (["2147483648 A 192.0.2.1"], ANY, Answer(["192.0.2.1"], 0)),  # RFC 2181 section 8
        ([], ANY, Answer([], None)),
        (["300 TXT nothing"], ANY, Answer([], None)),
    ],
)
async def test_addresses_and_how_long_they_hold(lines, family, found):
    assert await look({"api.example": lines}, family=family) == found


async def test_an_alias_is_followed_and_its_own_time_counts():
    zone = {"api.example": ["7 CNAME front.example."], "front.example": [A1]}
    assert await look(zone, family=socket.AF_INET) == Answer(["192.0.2.1"], 7)


@pytest.mark.parametrize(
    ("known", "outcome", "message"),
    [
        (Rcode.NXDOMAIN, "nxdomain", "there is no such name"),
        (Rcode.SERVFAIL, "servfail", "every name server failed"),
        (Rcode.REFUSED, "servfail", "every name server failed"),
        (Rcode.FORMERR, "servfail", "every name server failed"),
        (Rcode.YXDOMAIN, "other_error", "too long"),
        (["60 CNAME api.example."], "servfail", "gave an answer that is none"),
    ],
)
async def test_what_is_no_answer(known, outcome, message):
    with pytest.raises(LookupFailed, match=message) as failed:
        await look({"api.example": known})
    assert failed.value.outcome == outcome


async def test_names_that_loop_or_go_on_for_ever_are_left():
    zone = {f"n{number}.example": [f"60 CNAME n{number + 1}.example."] for number in range(30)}
    zone["n30.example"] = [A1]
    zone |= {"ping.example": ["60 CNAME pong.example."], "pong.example": ["60 CNAME ping.example."]}
    for name in ("n0.example", "ping.example"):
        with pytest.raises(LookupFailed, match="gave an answer that is none"):
            await look(zone, name)


async def test_an_answer_too_long_for_udp_is_fetched_over_tcp():
    lines = [f"60 A 192.0.2.{number}" for number in range(100)]
    with name_server({"api.example": lines}) as server:
        found = await stub(server).lookup("api.example", socket.AF_INET)
        assert len(found.addresses) == 100
        assert [over for *_, over in server.asked] == ["udp", "tcp"]


async def test_thousands_of_addresses_are_cut_to_what_is_used():
    lines = [f"60 A 10.0.{number // 250}.{number % 250}" for number in range(4000)]
    with name_server({"api.example": lines}) as server:
        async with resolving(stub(server)) as resolver:
            found = await resolver.resolve("api.example")
    assert (len(found.addresses), found.ttl) == (MAX_ADDRESSES, 60)


async def test_silence_has_an_end():
    with pytest.raises(LookupFailed, match=r"no name server answered within 0\.15 s") as failed:
        await look({"api.example": None}, patience=0.2)
    assert failed.value.outcome == "timeout"


async def test_garbage_is_no_answer():
    with pytest.raises(LookupFailed) as failed:
        await look({"api.example": b"\x81\x80" + b"\xff" * 40}, patience=0.4)
    assert failed.value.outcome in {"servfail", "timeout"}


async def test_one_family_that_is_not_answered_does_not_take_the_other_one_with_it():
    for trouble in (Rcode.SERVFAIL, None):
        zone = {"api.example": {"A": [A1], "AAAA": trouble}}
        assert await look(zone, patience=1.0) == Answer(["192.0.2.1"], RESOLVE_AGAIN)


async def test_a_name_that_cannot_be_asked_for():
    with pytest.raises(LookupFailed) as failed:
        await look({}, "a." * 130 + "example")
    assert failed.value.outcome == "other_error"


@asynccontextmanager
async def resolving(asks, told=None, **settings):
    async with anyio.create_task_group() as tasks:
        deadlines = Deadlines()
        tasks.start_soon(deadlines.run)
        told = [] if told is None else told
        yield Resolver(ResolverSettings(**settings), asks.lookup, tasks, deadlines, told.append)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("known", "outcome", "late"),
    [(None, "timeout", True), (Rcode.NXDOMAIN, "nxdomain", False), (Rcode.SERVFAIL, "servfail", False)],
)
async def test_failures_are_called_as_those_of_the_system_are(known, outcome, late):
    told = []
    with name_server({"api.example": known}) as server:
        async with resolving(stub(server, 0.2), told) as resolver:
            with pytest.raises(NotResolved, match=r"cannot resolve api.example: ") as failed:
                await resolver.resolve("api.example")
    assert (told, failed.value.late, resolver.timeouts) == ([outcome], late, int(late))


SRV = "_http._tcp.api.example"


async def services(zone, name=SRV):
    with name_server(zone) as server:
        async with anyio.create_task_group() as tasks:
            asked = stub(server)
            resolver = Resolver(
                ResolverSettings(timeout=20.0),
                asked.lookup,
                tasks,
                Deadlines(anyio.current_time),
                services=asked.services,
            )
            try:
                return await resolver.services(name)
            except NotResolved as error:
                return str(error)


async def test_a_service_has_targets_and_an_alias_of_it_the_same():
    zone = {
        SRV: ["60 SRV 10 5 8080 a.example.", "60 SRV 0 0 8081 b.example.", "60 SRV 10 5 8080 a.example."],
        "_alias._tcp.api.example": [f"30 CNAME {SRV}."],
    }
    found = [Target("a.example", 8080, 10, 5), Target("b.example", 8081, 0, 0)]
    assert await services(zone) == Services(found, 60)
    assert await services(zone, "_alias._tcp.api.example") == Services(found, 30)


async def test_a_service_that_is_decidedly_not_there_has_no_target():
    assert await services({SRV: ["60 SRV 0 0 0 ."]}) == Services([], 60)


async def test_of_more_targets_than_are_used_the_preferred_ones_are():
    lines = [f"60 SRV {number} 1 80 t{number:03}.example." for number in reversed(range(MAX_TARGETS + 10))]
    found = await services({SRV: lines})
    assert {each.priority for each in found.targets} == set(range(MAX_TARGETS))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (Rcode.NXDOMAIN, "there is no such name"),
        ([A1], "it has no SRV record"),
        (Rcode.SERVFAIL, "every name server failed, refused, or gave an answer that is none"),
        (["60 SRV 0 0 80 a\\013\\010x.example."], "its target 'a\\\\013\\\\010x.example' is no host name"),
    ],
)
async def test_a_service_that_cannot_be_found_says_why(lines, message):
    assert await services({SRV: lines}) == f"cannot resolve {SRV}: {message}"
