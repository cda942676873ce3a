"""The plugin in a whole gateway: levels, reloads, statistics, the documents."""

from __future__ import annotations

import os
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

import gw_ratelimit
from gw import Filter
from gw.compiler import Compiler
from gw.config.load import load
from gw.context import Shared
from gw.testing import Upstream, drive, in_memory
from gw_ratelimit.table import TableError

HERE = Path(__file__).parent
README = HERE.parent.joinpath("README.md").read_text()
EXAMPLES = HERE.parents[2] / "config" / "examples"
BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
ONE = {"name": "z", "rate": 0.001, "capacity": 1, "key_type": "client_ip"}


def limits(capacity, **more):
    return {"enabled": True, "zones": [ONE | {"capacity": capacity}], **more}


async def passed(gw, path, asks=6):
    return [(await gw.get(path)).status for _ in range(asks)].count(200)


async def test_the_nearest_section_counts_alone():
    config = {
        "rate_limit": limits(3),
        "upstreams": [
            {"name": "a", "host": "192.0.2.1", "rate_limit": limits(2)},
            {"name": "b", "host": "192.0.2.1"},
        ],
        "routes": [
            {"name": "own", "match": {"prefix": "/own"}, "upstream": "a", "rate_limit": limits(1)},
            {"name": "up", "match": {"prefix": "/up"}, "upstream": "a"},
            {"name": "up2", "match": {"prefix": "/again"}, "upstream": "a"},
            {"name": "off", "match": {"prefix": "/off"}, "upstream": "b", "rate_limit": {"enabled": False}},
            {"name": "gw", "match": {"prefix": "/gw"}, "upstream": "b"},
        ],
    }
    async with in_memory(config, Upstream()) as gw:
        found = {path: await passed(gw, path) for path in ("/own", "/up", "/again", "/off", "/gw")}
        # Routes that share a section share its buckets; what no route takes is the gateway's, too.
        assert found == {"/own": 1, "/up": 2, "/again": 0, "/off": 6, "/gw": 3}
        assert (await gw.get("/nowhere")).status == 429


async def test_a_forwarded_address_counts_only_where_it_is_trusted():
    for trusted, statuses in ((["198.51.100.7"], [200, 200]), ([], [200, 429])):
        config = {"rate_limit": limits(1), "trusted_proxies": trusted}
        async with in_memory(config) as gw:
            seen = [(await gw.get("/", {"x-forwarded-for": each})).status for each in ("203.0.113.1", "203.0.113.2")]
        assert seen == statuses


async def test_no_spelling_of_a_path_goes_around_a_zone():
    zone = ONE | {"applies_to": ["/admin"]}
    async with in_memory({"rate_limit": {"enabled": True, "zones": [zone]}}) as gw:
        spellings = ["/admin", "//admin", "/x/../admin", "/%61dmin", "/admin/", "/admin?x"]
        assert [(await gw.get(each)).status for each in spellings] == [200] + [429] * 5


async def test_a_websocket_and_a_denied_client_in_shadow_mode_pass():
    async with in_memory({"rate_limit": limits(1, mode="shadow")}) as gw:
        answers = [await gw.get("/") for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert all("ratelimit" not in answer.headers for answer in answers)


# --- reloads ------------------------------------------------------------------------------------------------------


class Reloads:
    """One gateway's shared state, and the generations that come and go."""

    def __init__(self, memory=None):
        self.shared = Shared(memory)

    async def filters(self, stack, level="gateway", **section):
        limits = {"rate_limit": {"enabled": True, **section}}
        settings = {
            "plugins": ["ratelimit"],
            "upstreams": [{"name": "a", "host": "127.0.0.1"} | (limits if level == "upstream" else {})],
            "routes": [{"match": {"prefix": "/"}, "upstream": "a"} | (limits if level == "route" else {})],
        } | (limits if level == "gateway" else {})
        builder = Compiler(load(settings, environ={}), self.shared, stack)
        self.context = builder.contexts["ratelimit"]
        (route,) = builder.routes(None)
        return [placed.filter for placed in route.chain.placed]


async def remaining(filters):
    return (await drive(filters)).headers.get("ratelimit")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"capacity": 10}, {"capacity": 10}, "limit=10, remaining=7, reset=0"),
        ({"capacity": 10}, {"capacity": 100}, "limit=100, remaining=7, reset=0"),
        ({"capacity": 100}, {"capacity": 10}, "limit=10, remaining=9, reset=0"),
        ({"capacity": 10}, {"capacity": 10, "max_entries": 16}, "limit=10, remaining=7, reset=0"),
        ({"capacity": 10}, {"capacity": 10, "key_type": "path"}, "limit=10, remaining=9, reset=0"),
        ({"capacity": 10}, {"capacity": 10, "name": "other"}, "limit=10, remaining=9, reset=0"),
    ],
)
async def test_a_reload_keeps_the_buckets_of_zones_with_the_same_name_and_key(clock, before, after, said):
    reloads = Reloads()
    async with AsyncExitStack() as old:
        first = await reloads.filters(old, zones=[ONE | before])
        for _ in range(2):
            await remaining(first)
        async with AsyncExitStack() as new:
            second = await reloads.filters(new, zones=[ONE | after])
            await old.aclose()
            assert await remaining(second) == said
    assert len(reloads.shared) == 0


async def test_a_storm_of_reloads_gives_nothing_away(clock):
    reloads, granted = Reloads(), 0
    stack = AsyncExitStack()
    for number in range(100):
        new = AsyncExitStack()
        filters = await reloads.filters(new, zones=[ONE | {"capacity": 10 + number % 2}], status_code=400 + number)
        await stack.aclose()
        stack = new
        granted += (await drive(filters)).status == 200
    await stack.aclose()
    assert granted == 10


async def test_a_zone_that_was_removed_begins_anew(clock):
    reloads = Reloads()
    for zones in ([ONE], [ONE | {"name": "other"}], [ONE]):
        async with AsyncExitStack() as stack:
            assert (await drive(await reloads.filters(stack, zones=zones))).status == 200


# --- stores and statistics ----------------------------------------------------------------------------------------------


async def test_gateways_with_one_table_count_together(clock, tmp_path):
    store = {"shared": {"path": str(tmp_path / "t"), "max_entries": 100}}
    async with AsyncExitStack() as stack:
        first = await Reloads().filters(stack, zones=[ONE | {"capacity": 3}], store=store)
        second = await Reloads().filters(stack, zones=[ONE | {"capacity": 3}], store=store)
        seen = [(await drive((first, second)[number % 2])).status for number in range(4)]
    assert seen == [200, 200, 200, 429]


@pytest.mark.parametrize("level", ["gateway", "upstream", "route"])
async def test_workers_count_together_wherever_the_section_stands(clock, level):
    memories = {}

    def memory(name):
        if name not in memories:
            memories[name] = os.memfd_create(name)
        return memories[name]

    async with AsyncExitStack() as stack:
        chains = [await Reloads(memory).filters(stack, level, zones=[ONE | {"capacity": 3}]) for _ in range(2)]
        assert [(await drive(chains[number % 2])).status for number in range(4)] == [200, 200, 200, 429]
    for fd in memories.values():
        os.close(fd)


async def test_workers_count_together_without_being_told_to(clock):
    memories = {}

    def memory(name):
        if name not in memories:
            memories[name] = os.memfd_create(name)
        return memories[name]

    workers = [Reloads(memory) for _ in range(2)]
    async with AsyncExitStack() as stack:
        chains = [await each.filters(stack, zones=[ONE | {"capacity": 3}]) for each in workers]
        assert [(await drive(chains[number % 2])).status for number in range(4)] == [200, 200, 200, 429]
        assert [*memories] == ["ratelimit/keys-131072"]
        # One that needs more room, as the first of the workers has it already and the second has not.
        more = [ONE | {"capacity": 3}, ONE | {"name": "more", "key_type": "path"}]
        chains = [await workers[0].filters(stack, zones=more), chains[1]]
        assert [(await drive(each)).status for each in chains] == [429, 429]
        assert [*memories] == ["ratelimit/keys-131072", "ratelimit/keys-262144"]
    for fd in memories.values():
        os.close(fd)


@pytest.mark.parametrize("store", [None, "file"])
async def test_what_is_under_way_still_counts_after_a_reload_that_needs_more_room(clock, tmp_path, store):
    memories = {}

    def memory(name):
        if name not in memories:
            memories[name] = os.memfd_create(name)
        return memories[name]

    one = {"name": "z", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    more = {} if store is None else {"store": {"shared": {"path": str(tmp_path / "t"), "max_entries": 100}}}
    worker, statuses = Reloads(memory), []
    async with AsyncExitStack() as old, AsyncExitStack() as new:
        first = await worker.filters(old, zones=[one], **more)

        class Reload(Filter):
            name = "reload"

            async def on_request_headers(self, ex):
                grown = [one, ONE | {"name": "more", "max_entries": 1_000_000, "capacity": 9}]
                second.extend(await worker.filters(new, zones=grown, **more))
                statuses.append((await drive(second)).status)

        second = []
        assert (await drive([*first, Reload()])).status == 200
        assert statuses == [429], "what began before the reload is not counted"
        assert (await drive(second)).status == 200
    assert [name for name in memories if "under-way" in name] == [f"ratelimit/under-way-{each}" for each in range(16)]
    for fd in memories.values():
        os.close(fd)


async def test_what_is_under_way_still_counts_where_a_configuration_in_between_did_not_count_it(clock):
    memories = {}

    def memory(name):
        if name not in memories:
            memories[name] = os.memfd_create(name)
        return memories[name]

    one = {"name": "z", "algorithm": "concurrency", "limit": 1, "key_type": "client_ip"}
    worker, statuses = Reloads(memory), []
    async with AsyncExitStack() as old, AsyncExitStack() as between, AsyncExitStack() as new:
        first = await worker.filters(old, zones=[one])

        class Reload(Filter):
            """Does what many reloads do: at last the oldest configuration is closed, and a WebSocket goes on."""

            name = "reload"

            async def on_request_headers(self, ex):
                await worker.filters(between, zones=[ONE])
                await old.aclose()
                third.extend(await worker.filters(new, zones=[one]))
                statuses.append((await drive(third)).status)

        third = []
        assert (await drive([*first, Reload()])).status == 200
        assert statuses == [429]
        assert (await drive(third)).status == 200
    assert len(worker.shared) == 0
    for fd in memories.values():
        os.close(fd)


async def test_a_table_that_cannot_be_used_is_an_error_with_its_reason(tmp_path):
    store = {"shared": {"path": str(tmp_path / "no" / "t")}}
    reloads = Reloads()
    async with AsyncExitStack() as stack:
        await reloads.filters(stack, zones=[ONE], store=store)
        with pytest.raises(TableError, match="No such file or directory"):
            async with gw_ratelimit.gw_lifespan(reloads.context):
                pytest.fail("it began")


async def test_a_configuration_that_is_only_looked_at_makes_no_file(tmp_path):
    async with AsyncExitStack() as stack:
        await Reloads().filters(stack, zones=[ONE], store={"shared": {"path": str(tmp_path / "t")}})
    assert not (tmp_path / "t").exists()


async def test_the_statistics_say_who_was_limited(clock, tmp_path):
    reloads = Reloads()
    async with AsyncExitStack() as stack:
        secret = ONE | {"name": "key", "key_type": "header:x-key", "capacity": 2}
        filters = await reloads.filters(stack, zones=[ONE | {"capacity": 2}, secret])
        for _ in range(5):
            await drive(filters, headers={"x-key": "s3cret"})
        stats = gw_ratelimit.gw_stats(reloads.context)
    zone = stats["zones"]["z"]
    assert {name: zone[name] for name in ("admitted", "denied", "would_deny", "degraded", "keys", "in_flight")} == {
        "admitted": 2,
        "denied": 3,
        "would_deny": 0,
        "degraded": 0,
        "keys": 1,
        "in_flight": 0,
    }
    assert zone["top_denied"] == {"198.51.100.7": {"count": 3, "error": 0}}
    assert zone["tokens"] == {"0": 4, "1": 1}
    assert "s3cret" not in str(stats)
    figures = {family.name: family.rows() for family in reloads.context.figures}
    assert {labels: row.value for labels, row in figures["gw.rate_limit.decisions"].items() if labels[0] == "z"} == {
        ("z", "admit"): 2,
        ("z", "reject"): 3,
        ("z", "dry_run_reject"): 0,
    }
    assert (figures["gw.rate_limit.tokens"]["z",].counts[:2], figures["gw.rate_limit.tokens"]["z",].sum) == ([4, 1], 1)
    assert figures["gw.rate_limit.degraded"]["z",].value == 0


@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
async def test_a_gateway_with_a_store_counts_in_it_and_starts_without_it(server, tmp_path):
    section = limits(2, store={"redis": {"url": server.url, "timeout_ms": 5000}})
    away = limits(2, store={"redis": {"url": "redis://127.0.0.1:1"}})
    async with in_memory({"rate_limit": section}) as first, in_memory({"rate_limit": section}) as second:
        assert [(await (first, second)[each % 2].get("/")).status for each in range(4)] == [200, 200, 429, 429]
    async with in_memory({"rate_limit": away}) as gw:
        assert [(await gw.get("/")).status for _ in range(3)] == [200, 200, 429]


# --- the documents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_what_the_readme_shows_loads_without_a_warning(text, tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    assert load(file, environ={}).warnings == ()


async def test_the_example_limits_what_it_says():
    config = yaml.safe_load(EXAMPLES.joinpath("ratelimit.yaml").read_text())
    for each in config["upstreams"]:
        each.update({"host": "192.0.2.1", "port": 80})
    async with in_memory(config, Upstream()) as gw:
        answers = [await gw.request(b"POST /login HTTP/1.1\r\nhost: a\r\n\r\n", method="POST") for _ in range(21)]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert answers[-1].body == b'{"error": "too many attempts"}'
        assert (await gw.get("/")).headers.get("ratelimit-policy") == '"per_client";q=100;w=2'
        assert "ratelimit" not in (await gw.get("/health")).headers
        assert (await gw.get("/reports")).headers.get("ratelimit") == "limit=16384, remaining=16383, reset=0"


def test_the_section_of_the_reference_is_read_unchanged():
    section = load(EXAMPLES / "reference.json", environ={}).config.rate_limit
    assert [zone.key_type for zone in section.zones] == [
        "client_ip",
        "header:X-API-Key",
        "client_ip+path",
        "path",
        "client_ip+header:X-Tenant",
    ]
