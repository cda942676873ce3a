"""The filters, driven one exchange at a time."""

from __future__ import annotations

import json

import pytest

from gw import IDENTITY, Client, Exchange, Filter, Identity, Reply, RouteInfo
from gw.testing import check_filter, drive
from gw_ratelimit.filter import Stores, filters
from gw_ratelimit.headers import STYLES
from gw_ratelimit.leases import Leases
from gw_ratelimit.rules import identity_of, rule_of
from gw_ratelimit.settings import RateLimit
from gw_ratelimit.stores import LocalStore, StoreAway
from gw_ratelimit.zones import Zone


def section(*zones, **more):
    return RateLimit.model_validate_json(json.dumps({"enabled": True, "zones": zones, **more}))


def limiting(*zones, stores=None, **more):
    """Return the filters of a section, and its zones."""
    settings = section(*zones, **more)
    made = [Zone("gateway", each.name, identity_of(each), each.max_entries) for each in settings.zones]
    rules = [rule_of(each, settings, zone) for each, zone in zip(settings.zones, made, strict=True)]
    style = STYLES[settings.header_style] if settings.include_headers else None
    return filters(rules, stores or Stores(), exclude=settings.exclude, style=style), made


def bucket(name="z", rate=1, capacity=1, key_type="client_ip", **more):
    return {"name": name, "rate": rate, "capacity": capacity, "key_type": key_type, **more}


def told(played):
    return {name: value for name, value in played.headers if "ratelimit" in name or name == "retry-after"}


# --- the reference (behaviour 14.2) ----------------------------------------------------------------------------


async def test_a_client_is_told_what_is_left_and_then_when_to_come_again(clock):
    made, (zone,) = limiting(bucket(rate=10, capacity=2))
    seen = [await drive(made) for _ in range(3)]
    policy = {"ratelimit-policy": "2;w=1"}
    assert [told(each) for each in seen] == [
        policy | {"ratelimit": "limit=2, remaining=1, reset=0"},
        policy | {"ratelimit": "limit=2, remaining=0, reset=1"},
        policy | {"ratelimit": "limit=2, remaining=0, reset=1", "retry-after": "1"},
    ]
    denied = seen[2]
    assert (denied.status, denied.body, denied.reason) == (429, b"429 Too Many Requests", "ratelimit.exceeded")
    assert denied.headers.get("content-type") == "text/plain"
    assert denied.upstream_request is None
    assert (zone.admitted, zone.denied, zone.would_deny) == (2, 1, 0)
    clock.move(99)
    assert (await drive(made)).status == 429
    clock.move(1)
    assert (await drive(made)).status == 200


@pytest.mark.parametrize(
    ("rate", "capacity", "policy", "reset"),
    [(10, 20, "20;w=2", 0), (0.1, 1, "1;w=10", 10), (3, 10, "10;w=4", 0), (0.001, 1, "1;w=1000", 1000)],
)
async def test_the_numbers_are_those_of_the_reference(clock, rate, capacity, policy, reset):
    made, _ = limiting(bucket(rate=rate, capacity=capacity))
    seen = told(await drive(made))
    assert seen == {
        "ratelimit-policy": policy,
        "ratelimit": f"limit={capacity}, remaining={capacity - 1}, reset={reset}",
    }


async def test_a_dry_run_tells_and_denies_nothing(clock):
    made, (zone,) = limiting(bucket(), dry_run=True)
    seen = [await drive(made) for _ in range(2)]
    assert [each.status for each in seen] == [200, 200]
    assert told(seen[1]) == {"ratelimit-policy": "1;w=1", "ratelimit": "limit=1, remaining=0, reset=1"}
    assert (zone.admitted, zone.denied, zone.would_deny) == (1, 0, 1)


async def test_without_headers_nothing_is_told(clock):
    made, _ = limiting(bucket(), include_headers=False)
    assert len(made) == 1
    seen = [await drive(made) for _ in range(2)]
    assert [(each.status, told(each)) for each in seen] == [(200, {}), (429, {})]


async def test_the_zone_with_the_least_left_is_told_or_the_one_that_denies(clock):
    made, _ = limiting(bucket("a", 1, 10), bucket("b", 1, 3), bucket("c", 1, 100))
    seen = [told(await drive(made))["ratelimit"] for _ in range(4)]
    assert seen == [f"limit=3, remaining={left}, reset={reset}" for left, reset in ((2, 0), (1, 0), (0, 1), (0, 1))]


async def test_what_is_denied_by_one_zone_is_charged_in_none(clock):
    made, (wide, tight) = limiting(bucket("wide", 0.001, 3), bucket("tight", 10, 1))
    for _ in range(5):
        await drive(made)
    assert (wide.admitted, tight.admitted, tight.denied) == (1, 1, 4)
    clock.move(100)
    assert told(await drive(made))["ratelimit"].startswith("limit=1, remaining=0")
    clock.move(100)
    assert (await drive(made)).status == 200
    clock.move(100)
    assert (await drive(made)).status == 429  # the three of the wide one are gone, and not one more


async def test_a_zone_applies_on_segments_only(clock):
    made, _ = limiting(bucket(applies_to=["/api", "/v1/"]))
    paths = {"/api": 1, "/api/a": 1, "/apis": 0, "/v1/x": 1, "/v1": 0, "/": 0}
    assert {path: int(bool(told(await drive(made, target=path)))) for path in paths} == paths


async def test_excluded_paths_are_not_limited(clock):
    made, _ = limiting(bucket(), exclude=["/health"])
    assert [(await drive(made, target="/health")).status for _ in range(3)] == [200] * 3
    assert [(await drive(made, target="/healthy")).status for _ in range(2)] == [200, 429]


async def test_a_request_without_the_key_is_not_limited(clock):
    made, _ = limiting(bucket(key_type="client_ip+header:x-a"))
    assert [(await drive(made)).status for _ in range(3)] == [200] * 3
    assert [(await drive(made, headers={"x-a": "1"})).status for _ in range(2)] == [200, 429]


async def test_an_upstreams_own_fields_stay(clock):
    made, _ = limiting(bucket())
    played = await drive(made, upstream_headers={"RateLimit": "theirs"})
    assert told(played) == {"ratelimit": "theirs", "ratelimit-policy": "1;w=1"}


# --- more than the reference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "fields"),
    [
        ("draft", {"ratelimit-policy": '"z";q=10;w=5', "ratelimit": '"z";r=9;t=1'}),
        ("x-ratelimit", {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9", "x-ratelimit-reset": "1"}),
    ],
)
async def test_headers_have_styles(clock, style, fields):
    made, _ = limiting(bucket(rate=2, capacity=10), header_style=style)
    assert told(await drive(made)) == fields


async def test_a_zone_has_its_own_status_body_and_dry_run(clock):
    own = bucket("own", status_code=503, body='{"slow": "down"}', content_type="application/json")
    made, (_, dry) = limiting(own, bucket("dry", dry_run=True), status_code=430)
    await drive(made)
    played = await drive(made)
    assert (played.status, played.body) == (503, b'{"slow": "down"}')
    assert played.headers.get("content-type") == "application/json"
    assert dry.would_deny == 0
    made, _ = limiting(bucket(), status_code=430)
    await drive(made)
    assert (await drive(made)).body == b"430 Client Error"


class Auth(Filter):
    name = "auth"

    def __init__(self, identity):
        self.identity = identity

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        if self.identity is not None:
            ex[IDENTITY] = self.identity
        return None


async def test_numbers_by_key_and_by_claim(clock):
    zone = bucket(
        key_type="identity.sub",
        allow=["root"],
        overrides=[{"keys": ["ann"], "capacity": 2}],
        tiers={"claim": "plan", "values": {"gold": {"capacity": 3}}},
    )
    made, _ = limiting(zone)

    async def passed(subject, **claims):
        chain = [Auth(Identity(subject, claims=claims)), *made]
        return [(await drive(chain)).status for _ in range(5)].count(200)

    assert await passed("bob") == 1
    assert await passed("ann", plan="gold") == 2
    assert await passed("cat", plan="gold") == 3
    assert await passed("dan", plan="lead") == 1
    assert await passed("root") == 5


async def test_a_request_costs_what_its_header_says(clock):
    made, _ = limiting(bucket(capacity=10, cost={"header": "x-cost", "most": 5}))
    costs = {"3": 7, "": 6, "-1": 5, "99": 0}
    seen = [told(await drive(made, headers={"x-cost": cost}))["ratelimit"] for cost in costs]
    assert seen == [f"limit=10, remaining={left}, reset={int(not left)}" for left in costs.values()]
    made, _ = limiting(bucket(capacity=10, cost=7))
    assert [(await drive(made)).status for _ in range(2)] == [200, 429]


async def test_a_response_is_charged_by_its_bytes_afterwards(clock):
    made, _ = limiting(bucket(rate=1, capacity=10, cost={"response_bytes": 100}))

    class Sized(Filter):
        name = "sized"

        def on_response_headers(self, ex):
            ex.bytes_sent = 1950

    assert (await drive([*made, Sized()])).status == 200
    played = await drive(made)
    assert (played.status, played.headers.get("retry-after")) == (429, "11")


async def test_requests_under_way_are_counted_until_they_end(clock):
    concurrency = {"name": "z", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    made, (zone,) = limiting(concurrency)
    inner = []

    class Again(Filter):
        """Asks once more while a request is under way."""

        name = "again"

        async def on_request_headers(self, ex):
            inner.append(await drive(made))

    assert (await drive([*made, Again()])).status == 200
    assert (inner[0].status, inner[0].headers.get("retry-after")) == (429, "1")
    assert zone.in_flight == {}
    for stop_at in range(1, 8):
        await drive(made, stop_at=stop_at)
        assert zone.in_flight == {}, "a request that was cancelled is under way for ever"
    assert (await drive(made)).status == 200


async def test_a_place_is_given_back_where_another_zone_denies(clock):
    concurrency = {"name": "c", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    made, (zone, _) = limiting(concurrency, bucket())
    assert [(await drive(made)).status for _ in range(3)] == [200, 429, 429]
    assert zone.in_flight == {}


class Uncounted(Leases):
    """Leases that cannot be had."""

    __slots__ = ()

    def __init__(self):
        super().__init__(lambda number: 1 << 30)

    def open(self):
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("on_error", "outer", "inner"), [("local", 200, 429), ("allow", 200, 200), ("deny", 503, None)]
)
async def test_where_workers_cannot_count_together_it_goes_by_what_is_declared(clock, on_error, outer, inner):
    concurrency = {"name": "c", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    made, (zone,) = limiting(concurrency, stores=Stores(None, on_error, Uncounted()))
    statuses = []

    class Again(Filter):
        name = "again"

        async def on_request_headers(self, ex):
            statuses.append((await drive(made)).status)

    assert (await drive([*made, Again()])).status == outer
    assert statuses == ([] if inner is None else [inner])
    assert (zone.in_flight, zone.degraded) == ({}, 1 + len(statuses))


async def test_an_ipv6_client_is_its_network(clock):
    made, _ = limiting(bucket())
    statuses = [
        (await drive(made, client=Client(ip, ip))).status for ip in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
    ]
    assert statuses == [200, 429, 200]


# --- a store that is away ---------------------------------------------------------------------------------------------


class Away(LocalStore):
    __slots__ = ()

    def decide(self, asks):
        raise StoreAway("is away")

    def admission(self, zone, limit, cost):
        return lambda key: None

    def charge(self, ask):
        raise StoreAway("is away")


@pytest.mark.parametrize("zones", [1, 2])
@pytest.mark.parametrize(("on_error", "statuses"), [("local", [200, 429]), ("allow", [200, 200]), ("deny", [503, 503])])
async def test_a_store_that_is_away_is_made_up_for_as_declared(clock, on_error, statuses, zones):
    made, known = limiting(*(bucket(f"z{each}") for each in range(zones)), stores=Stores(Away(), on_error))
    assert [(await drive(made)).status for _ in range(2)] == statuses
    assert [zone.degraded for zone in known] == [2] * zones


async def test_what_a_response_costs_is_charged_here_while_the_store_is_away(clock):
    made, (zone,) = limiting(bucket(cost={"response_bytes": 1}), stores=Stores(Away(), "local"))
    settle = made[1]
    exchange = (await drive(made)).exchange
    exchange.bytes_sent = 10
    settle.on_complete(exchange)
    assert (zone.degraded, (await drive(made)).headers.get("retry-after")) == (2, "10")


# --- what every filter promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
async def test_they_keep_the_promises_of_filters(index):
    zones = [
        bucket(capacity=100, cost={"response_bytes": 1000}),
        {"name": "c", "algorithm": "concurrency", "limit": 100, "key_type": "client_ip"},
    ]
    await check_filter(lambda: limiting(*zones)[0][index])


async def test_an_explanation_names_the_zone(clock):
    made, _ = limiting(bucket("per address"))
    await drive(made)
    played = await drive(made, explain=True, route=RouteInfo("r"))
    assert ("denied", "per address") in [(note.verdict, note.reason) for note in played.notes]


def test_only_the_hooks_that_are_needed_are_there():
    def names(*zones, **more):
        return [each.name for each in limiting(*zones, **more)[0]]

    concurrency = {"name": "c", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    assert names(bucket()) == ["ratelimit.headers", "ratelimit"]
    assert names(bucket(), include_headers=False) == ["ratelimit"]
    assert names(concurrency) == ["ratelimit.settle", "ratelimit"]
    assert names(concurrency, bucket("b")) == ["ratelimit.headers", "ratelimit.settle", "ratelimit"]
