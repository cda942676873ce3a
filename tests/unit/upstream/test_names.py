"""Upstreams with names: their addresses are endpoints, and follow. The gateway is real, time is virtual."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import anyio
import pytest

from gw.config.load import load
from gw.gateway import Gateway
from gw.limits import TTL_LEAST, TTL_MOST
from gw.net.resolve import Answer, LookupFailed, Services, Target
from gw.testing import PATIENCE
from gw.testing.gateway import InMemory, Upstream, read_answer
from gw.testing.memory import Backlog, MemoryNetwork

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
CONFIG = {"upstreams": [{"name": "up", "host": "api.example", "port": 80, "proxy": {"route_prefix": "/"}}]}


@asynccontextmanager
async def named(names, upstreams, config=CONFIG, **dns):
    """Run a gateway whose names are *names*; a mapping that the test may change."""
    gateway = Gateway(load({**config, "dns": dns}, environ={}))
    made = []
    async with anyio.create_task_group() as tasks:
        listening = anyio.Event()

        def network(group):
            made.append(MemoryNetwork(group, upstreams))
            made[0].names = names
            return made[0]

        async def serve():
            await gateway.serve(ready=listening.set, network=network)

        tasks.start_soon(serve)
        while not made:
            await anyio.lowlevel.checkpoint()
        while not listening.is_set():
            await made[0].advance(0.05)
        yield InMemory(gateway, made[0])
        tasks.cancel_scope.cancel()


def service(gateway):
    return gateway.gateway._current.now.services["up"]


def addresses(gateway):
    return [str(member.endpoint) for member in service(gateway).endpoints.members]


async def test_several_addresses_are_several_endpoints():
    one, two = Upstream(OK), Upstream(OK)
    upstreams = {"192.0.2.1:80": one, "192.0.2.2:80": two}
    async with named({"api.example": ["192.0.2.1", "192.0.2.2"]}, upstreams) as gateway:
        for _ in range(6):
            assert (await gateway.get("/")).status == 200
        assert (len(one.asked), len(two.asked)) == (3, 3)
        assert {asked.head.headers.get("host") for asked in one.asked + two.asked} == {"api.example"}


async def test_a_name_that_moves_is_followed():
    one, two = Upstream(OK), Upstream(OK)
    names = {"api.example": ["192.0.2.1"]}
    async with named(names, {"192.0.2.1:80": one, "192.0.2.2:80": two}) as gateway:
        await gateway.get("/")
        names["api.example"] = ["192.0.2.2"]
        await gateway.network.advance(40)
        assert addresses(gateway) == ["192.0.2.2:80"]
        assert service(gateway).pool.idle == 0  # the one to the old address was closed
        await gateway.get("/")
        assert (len(one.asked), len(two.asked)) == (1, 1)


async def test_a_request_that_is_under_way_is_finished_where_it_was_and_its_connection_not_kept():
    backlog = Backlog()
    names = {"api.example": ["192.0.2.1"]}
    async with named(names, {"192.0.2.1:80": backlog}, refresh_sec=5) as gateway:
        client = gateway.connect()
        client.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        upstream = await backlog.accept()
        names["api.example"] = ["192.0.2.2"]
        await gateway.network.advance(6)
        assert addresses(gateway) == ["192.0.2.2:80"]
        upstream.write(OK)
        assert (await read_answer(client)).status == 200
        await gateway.network.settle()
        assert (service(gateway).pool.open, upstream.lost) == (0, True)


@pytest.mark.parametrize(
    ("ttl", "least", "most"),
    [(60.0, 60, 66), (0.0, TTL_LEAST, TTL_LEAST * 1.1), (2.0**31, TTL_MOST, TTL_MOST * 1.1)],
)
async def test_a_name_is_looked_up_again_when_its_answer_holds_no_longer(ttl, least, most):
    names = {"api.example": Answer(["192.0.2.1"], ttl)}
    async with named(names, {}, refresh_sec=1) as gateway:
        names["api.example"] = Answer(["192.0.2.2"], ttl)
        await gateway.network.advance(least - 1)
        assert (addresses(gateway), gateway.network.lookups) == (["192.0.2.1:80"], ["api.example"])
        await gateway.network.advance(most - least + 2)
        assert (addresses(gateway), gateway.network.lookups) == (["192.0.2.2:80"], ["api.example"] * 2)


async def test_each_name_is_looked_up_in_its_own_time():
    endpoints = [{"host": "short.example"}, {"host": "long.example"}, {"host": "lost.example"}]
    config = {"upstreams": [{"name": "up", "endpoints": endpoints, "proxy": {"route_prefix": "/"}}]}
    names = {"short.example": Answer(["192.0.2.1"], 10), "long.example": Answer(["192.0.2.2"], 1000)}
    async with named({**names, "lost.example": GONE}, {}, config, refresh_sec=0) as gateway:
        await gateway.network.advance(100)
        asked = gateway.network.lookups
        assert 9 <= asked.count("short.example") <= 11
        assert asked.count("long.example") == 1
        assert 18 <= asked.count("lost.example") <= 21


@pytest.mark.parametrize(("refresh", "asked"), [(30, 1), (0, 2)])
async def test_a_reload_looks_up_only_what_nobody_would_look_up_again(refresh, asked):
    dns = {"refresh_sec": refresh}
    async with named({"api.example": ["192.0.2.1"]}, {"192.0.2.1:80": Upstream(OK)}, **dns) as gateway:
        before = service(gateway).names
        await gateway.gateway.reload(load({**CONFIG, "dns": dns, "max_body_size": 5}, environ={}))
        assert service(gateway).names is before
        assert gateway.network.lookups == ["api.example"] * asked
        assert (await gateway.get("/")).status == 200


async def test_a_reload_does_not_wait_for_a_resolver_that_is_silent():
    names = {"api.example": ["192.0.2.1"]}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}) as gateway:
        names["api.example"] = None
        with anyio.fail_after(PATIENCE):  # time stands still: waiting would be for ever
            await gateway.gateway.reload(load({**CONFIG, "dns": {}, "max_body_size": 5}, environ={}))
        assert (await gateway.get("/")).status == 200


async def test_a_name_that_does_not_change_changes_nothing():
    names = {"api.example": ["192.0.2.1", "192.0.2.2"]}
    async with named(names, {}) as gateway:
        before = service(gateway).endpoints.members
        await gateway.network.advance(100)
        assert len(gateway.network.lookups) >= 3
        assert service(gateway).endpoints.members == before


async def test_the_last_addresses_stay_when_a_name_is_lost(caplog):
    names = {"api.example": ["192.0.2.1"]}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}) as gateway:
        names["api.example"] = GONE
        await gateway.network.advance(60)
        assert (await gateway.get("/")).status == 200
        assert service(gateway).names.stale_served >= 1
        assert caplog.text.count("upstream up: cannot resolve api.example: Name or service not known") == 1


async def test_unless_they_are_not_to(caplog):
    names = {"api.example": ["192.0.2.1"]}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}, stale_on_error=False) as gateway:
        names["api.example"] = GONE
        await gateway.network.advance(60)
        told = await gateway.get("/")
        assert (told.status, addresses(gateway)) == (502, [])


async def test_a_bad_name_does_not_keep_the_gateway_from_starting_and_is_found_when_it_is_there():
    names = {"api.example": GONE}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}, refresh_sec=0) as gateway:
        assert (await gateway.get("/")).status == 502
        names["api.example"] = ["192.0.2.1"]
        assert (await gateway.get("/")).status == 200  # asked for by the request itself


async def test_it_is_looked_for_in_the_background_too():
    names = {"api.example": GONE}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}, refresh_sec=0) as gateway:
        names["api.example"] = ["192.0.2.1"]
        await gateway.network.advance(6)
        assert addresses(gateway) == ["192.0.2.1:80"]


async def test_a_name_that_is_not_answered_holds_the_start_up_for_so_long_only():
    async with named({"api.example": None}, {}, resolve_timeout_ms=1000, overall_timeout_ms=1500) as gateway:
        assert gateway.network.clock.now < 1002.0
        client = gateway.connect()
        client.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await gateway.network.advance(1.2)
        assert (await read_answer(client)).status == 502


async def test_a_name_that_is_required_does():
    gateway = Gateway(load({**CONFIG, "dns": {"required": True}}, environ={}))

    def network(tasks):
        made = MemoryNetwork(tasks, {})
        made.names["api.example"] = GONE
        return made

    with pytest.raises(OSError, match=r"names of upstreams that cannot be resolved: api.example: cannot resolve"):
        await gateway.serve(network=network)


async def test_names_and_addresses_may_be_mixed():
    endpoints = [{"host": "192.0.2.9"}, {"host": "api.example", "weight": 2}]
    config = {"upstreams": [{"name": "up", "endpoints": endpoints, "proxy": {"route_prefix": "/"}}]}
    async with named({"api.example": ["192.0.2.1", "192.0.2.2"]}, {}, config) as gateway:
        assert addresses(gateway) == ["192.0.2.9:80", "192.0.2.1:80", "192.0.2.2:80"]
        assert [member.endpoint.weight for member in service(gateway).endpoints.members] == [1, 2, 2]


async def test_the_other_family_is_tried_where_the_preferred_one_refuses():
    upstream = Upstream(OK)
    names = {"api.example": ["192.0.2.1", "2001:db8::1"]}
    async with named(names, {"2001:db8::1:80": upstream}) as gateway:
        assert (await gateway.get("/")).status == 200
        assert gateway.network.dialled == ["192.0.2.1:80", "2001:db8::1:80"]


async def test_a_retry_goes_to_another_address_of_the_name():
    config = {"upstreams": [{**CONFIG["upstreams"][0], "proxy": {"route_prefix": "/", "retry": {"max_retries": 1}}}]}
    async with named({"api.example": ["192.0.2.1", "192.0.2.2"]}, {"192.0.2.2:80": Upstream(OK)}, config) as gateway:
        for _ in range(4):
            assert (await gateway.get("/")).status == 200


@pytest.mark.parametrize("algorithm", ["round_robin", "least_requests", "ring_hash", "peak_ewma", "random"])
async def test_every_algorithm_lives_without_endpoints(algorithm):
    upstream = {**CONFIG["upstreams"][0], "balance": {"algorithm": algorithm}, "health": {"outliers": {}}}
    names = {"api.example": GONE}
    async with named(names, {"192.0.2.1:80": Upstream(OK)}, {"upstreams": [upstream]}) as gateway:
        assert (await gateway.get("/")).status == 502
        names["api.example"] = ["192.0.2.1"]
        assert (await gateway.get("/")).status == 200
        assert service(gateway).endpoints.algorithm.under_way == 0


SRV = "_http._tcp.api.example"
A, B = Target("a.example", 8080, 0, 1), Target("b.example", 8081, 0, 3)


class Dns:
    """What name servers say; the test may change it."""

    def __init__(self):
        self.services_are = {SRV: Services([A, B], 60)}
        self.names = {"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]}
        self.asked = []

    async def services(self, name):
        self.asked.append(name)
        return said(self.services_are[name])

    async def lookup(self, name, family):
        self.asked.append(name)
        return Answer(said(self.names.get(name, GONE)), 60)


def said(known):
    if isinstance(known, OSError):
        raise known
    return known


class TestServices:
    """RFC 2782."""

    @pytest.fixture
    def dns(self, monkeypatch):
        dns = Dns()
        monkeypatch.setattr("gw.pools._stub", lambda *_: dns)
        return dns

    def run(self, upstreams=None, *, upstream=None, **settings):
        own = {"name": "up", "endpoints": [{"srv": SRV}], "proxy": {"route_prefix": "/"}, **(upstream or {})}
        return named({}, upstreams or {}, {"upstreams": [own]}, resolver="dnspython", **settings)

    async def test_its_targets_are_endpoints_with_port_weight_and_priority(self, dns):
        one, two = Upstream(OK), Upstream(OK)
        async with self.run({"192.0.2.1:8080": one, "192.0.2.2:8081": two}) as gateway:
            for _ in range(8):
                assert (await gateway.get("/")).status == 200
            assert (len(one.asked), len(two.asked)) == (2, 6)
            assert {each.head.headers.get("host") for each in one.asked} == {"a.example:8080"}
            rows = service(gateway).stats()["endpoints"]
            assert [(row["host"], row["address"], row["weight"], row["priority"]) for row in rows] == [
                ("a.example", "192.0.2.1:8080", 1, 0),
                ("b.example", "192.0.2.2:8081", 3, 0),
            ]

    async def test_a_target_of_a_higher_number_stands_in(self, dns):
        dns.services_are[SRV] = Services([A, Target("b.example", 8081, 1, 3)], 60)
        async with self.run() as gateway:
            endpoints = service(gateway).endpoints
            assert [str(each.endpoint) for each in endpoints.candidates] == ["192.0.2.1:8080"]
            endpoints.mark(endpoints.members[0], healthy=False)
            assert [str(each.endpoint) for each in endpoints.candidates] == ["192.0.2.2:8081"]

    @pytest.mark.parametrize(("weights", "become"), [((0, 0), [1, 1]), ((0, 3), [1, 300]), ((2, 3), [2, 3])])
    async def test_a_weight_of_0_is_a_very_small_chance(self, dns, weights, become):
        dns.services_are[SRV] = Services(
            [Target("a.example", 80, 0, weights[0]), Target("b.example", 80, 0, weights[1])], 60
        )
        async with self.run() as gateway:
            assert [each.endpoint.weight for each in service(gateway).endpoints.members] == become

    async def test_one_that_stays_keeps_its_connections_and_what_is_known_of_it(self, dns):
        async with self.run({"192.0.2.1:8080": Upstream(OK)}) as gateway:
            before = service(gateway).endpoints.members[0]
            assert (await gateway.get("/")).status == 200
            dns.services_are[SRV] = Services([Target("a.example", 8080, 2, 7), Target("c.example", 8081)], 60)
            dns.names["c.example"] = ["192.0.2.3"]
            await gateway.network.advance(70)
            stays, comes = service(gateway).endpoints.members
            assert (stays, str(comes.endpoint)) == (before, "192.0.2.3:8081")
            assert (stays.endpoint.weight, stays.endpoint.priority, stays.share) == (7, 2, 7.0)
            assert (service(gateway).pool.open, service(gateway).pool.idle) == (1, 1)

    async def test_another_weight_alone_is_a_change_too(self, dns):
        async with self.run() as gateway:
            dns.services_are[SRV] = Services([A, Target("b.example", 8081, 0, 9)], 60)
            await gateway.network.advance(70)
            assert [each.share for each in service(gateway).endpoints.members] == [1.0, 9.0]

    async def test_it_is_looked_up_again_when_its_answer_holds_no_longer_and_what_is_gone_no_more(self, dns):
        async with self.run() as gateway:
            dns.services_are[SRV] = Services([A], 600)
            await gateway.network.advance(70)
            assert addresses(gateway) == ["192.0.2.1:8080"]
            dns.asked.clear()
            await gateway.network.advance(200)
            assert set(dns.asked) == {"a.example"}
            assert service(gateway).names.hosts == ("a.example",)

    @pytest.mark.parametrize("stale", [True, False])
    async def test_its_last_targets_stay_while_it_cannot_be_found(self, dns, stale):
        async with self.run(stale_on_error=stale) as gateway:
            dns.services_are[SRV] = LookupFailed("no answer", "servfail")
            await gateway.network.advance(70)
            assert len(addresses(gateway)) == (2 if stale else 0)
            assert service(gateway).stats()["names"]["errors"] == {SRV: f"cannot resolve {SRV}: no answer"}

    async def test_one_that_is_decidedly_not_there_has_no_endpoint_and_is_no_error(self, dns):
        async with self.run(required=True) as gateway:
            dns.services_are[SRV] = Services([], 60)
            await gateway.network.advance(70)
            assert (addresses(gateway), service(gateway).names.errors) == ([], {})
            assert (await gateway.get("/")).status == 502
            dns.services_are[SRV] = Services([B], 60)
            await gateway.network.advance(70)
            assert addresses(gateway) == ["192.0.2.2:8081"]

    async def test_a_target_without_an_address_costs_only_itself(self, dns):
        dns.names["a.example"] = GONE
        async with self.run() as gateway:
            assert addresses(gateway) == ["192.0.2.2:8081"]
            assert list(service(gateway).names.errors) == ["a.example"]

    async def test_one_that_was_not_found_is_looked_up_for_a_request(self, dns):
        found = dns.services_are[SRV]
        dns.services_are[SRV] = LookupFailed("no answer", "servfail")
        async with self.run({"192.0.2.1:8080": Upstream(OK)}) as gateway:
            assert service(gateway).names.unresolved() == [SRV]
            assert (await gateway.get("/")).status == 502
            dns.services_are[SRV] = found
            assert (await gateway.get("/")).status in {200, 502}
            assert len(addresses(gateway)) == 2

    async def test_a_target_that_is_called_as_the_service_is_ends_nothing(self, dns):
        dns.services_are[SRV] = Services([Target(SRV, 80), A], 60)
        async with self.run() as gateway:
            await gateway.network.advance(200)
            assert addresses(gateway) == ["192.0.2.1:8080"]

    async def test_health_checks_and_keys_follow_its_targets(self, dns):
        upstream = {
            "health": {"active": {"type": "tcp", "interval_ms": 1000, "unhealthy_threshold": 1}},
            "balance": {"algorithm": "ring_hash", "hash_key": "path"},
        }
        async with self.run({"192.0.2.1:8080": Upstream(OK)}, upstream=upstream) as gateway:
            await gateway.network.advance(5)
            assert [each.healthy for each in service(gateway).endpoints.members] == [True, False]
            assert {(await gateway.get(f"/{number}")).status for number in range(5)} == {200}
