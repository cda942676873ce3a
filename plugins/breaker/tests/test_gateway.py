"""The plugin in a whole gateway, in memory: real failures of upstreams, the two answers as bytes, the queue, reloads."""

from __future__ import annotations

import gc
import logging
import re
import weakref

import anyio
import pytest
from scenes import ERROR, GET, MISSING, OK, breakers, config, figures, played_by, reload, statuses

from gw.config.load import load
from gw.generation import build
from gw.testing.gateway import Upstream, in_memory

# --- the two answers, byte for byte ------------------------------------------


def without_date(data):
    return re.sub(rb"date: [^\r]+\r\n", b"", data)


async def test_the_answer_of_an_open_breaker_byte_for_byte(clock):
    async with in_memory(config(), Upstream(ERROR)) as gateway:
        await statuses(gateway, 2)
        clock.move(0.7)
        stream = gateway.connect()
        stream.write(GET)
        assert without_date(await stream.read_until_end()) == (
            b"HTTP/1.1 503 Service Unavailable\r\n"
            b"content-type: text/plain\r\n"
            b"retry-after: 5\r\n"
            b"x-circuit-breaker: open\r\n"
            b"x-upstream-host: 192.0.2.1:80\r\n"
            b"content-length: 54\r\n"
            b"via: 1.1 gw\r\n"
            b"connection: close\r\n"
            b"\r\n"
            b"Upstream circuit breaker is open; please retry later.\n"
        )


async def test_the_answer_of_a_half_open_breaker_byte_for_byte(clock):
    answers = anyio.Event()

    async def upstream(stream):
        for _ in range(2):
            await stream.read_until(b"\r\n\r\n")
            stream.write(ERROR)
        await answers.wait()
        stream.write(OK)

    async with in_memory(config(), played_by(upstream)) as gateway:
        await statuses(gateway, 2)
        clock.move(5)
        probe = gateway.connect()
        probe.write(GET)
        await gateway.network.settle()
        stream = gateway.connect()
        stream.write(GET)
        assert without_date(await stream.read_until_end()) == (
            b"HTTP/1.1 503 Service Unavailable\r\n"
            b"content-type: text/plain\r\n"
            b"retry-after: 10\r\n"
            b"x-circuit-breaker: half_open\r\n"
            b"x-upstream-host: 192.0.2.1:80\r\n"
            b"content-length: 54\r\n"
            b"via: 1.1 gw\r\n"
            b"connection: close\r\n"
            b"\r\n"
            b"Upstream circuit breaker is open; please retry later.\n"
        )
        answers.set()
        await probe.read_until(b"\r\n\r\nok")
        assert figures(gateway)["state"] == "closed"


# --- real ways to fail -------------------------------------------------------

LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789"


async def truncates(stream):
    await stream.read_until(b"\r\n\r\n")
    stream.write(LONG)
    stream.close()


async def resets_in_mid_body(stream):
    await stream.read_until(b"\r\n\r\n")
    stream.write(LONG)
    await anyio.lowlevel.checkpoint()
    stream.abort()


async def closes(stream):
    await stream.read_until(b"\r\n\r\n")
    stream.close()


async def talks_nonsense(stream):
    await stream.read_until(b"\r\n\r\n")
    stream.write(b"SMTP ready\r\n\r\n")


async def says_nothing(stream):
    await stream.read_until(b"\r\n\r\n")
    await anyio.sleep_forever()


async def stops_in_mid_body(stream):
    await stream.read_until(b"\r\n\r\n")
    stream.write(LONG)
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    "upstream", [truncates, resets_in_mid_body, closes, talks_nonsense, says_nothing, stops_in_mid_body]
)
async def test_each_way_to_fail_is_one_failure(upstream, clock):
    async with in_memory(config({"consecutive_failure_threshold": 9}), played_by(upstream)) as gateway:
        stream = gateway.connect()
        stream.write(GET)
        await gateway.network.advance(70)
        stream.abort()
        await gateway.network.settle()
        window = figures(gateway)["window"]
        assert (window["calls"], window["failures"]) == (1, 1)


async def test_a_refused_connection_is_a_failure(clock):
    async with in_memory(config(upstream={"host": "192.0.2.9"})) as gateway:
        assert await statuses(gateway, 3) == [502, 502, 503]
        assert gateway.network.dialled == ["192.0.2.9:80"] * 2


@pytest.mark.parametrize("upstream", [says_nothing, stops_in_mid_body])
async def test_a_client_that_leaves_gives_a_probe_back_and_counts_for_nothing(upstream, clock):
    async def ill_then(stream):
        await stream.read_until(b"\r\n\r\n")
        stream.write(ERROR)
        await upstream(stream)

    async with in_memory(config({"consecutive_failure_threshold": 1}), played_by(ill_then)) as gateway:
        await gateway.get("/")
        clock.move(5)
        stream = gateway.connect()
        stream.write(GET)
        await gateway.network.settle()
        assert figures(gateway)["state"] == "half_open"
        assert (await gateway.get("/")).status == 503
        stream.abort()
        await gateway.network.settle()
        assert figures(gateway)["state"] == "half_open"
        assert (await gateway.get("/")).status == 500  # on a new connection: the place of the probe was free
        assert await gateway.leftovers() == []


async def test_4xx_never_opens_it(clock):
    async with in_memory(config(), Upstream(MISSING)) as gateway:
        assert await statuses(gateway, 10) == [404] * 10
        assert figures(gateway)["window"]["calls"] == 0


# --- counted at the upstream -------------------------------------------------


async def test_a_failing_upstream_sees_the_threshold_and_then_the_probes_and_nothing_else(clock):
    upstream = Upstream(ERROR)
    settings = config({"consecutive_failure_threshold": 5, "permitted_half_open_calls": 3})
    async with in_memory(settings, upstream) as gateway:
        assert await statuses(gateway, 100) == [500] * 5 + [503] * 95
        assert len(upstream.asked) == 5
        seen = 5
        for open_for in (5, 10, 20, 40, 60, 60):
            clock.move(open_for - 1e-9)
            assert await statuses(gateway, 20) == [503] * 20
            assert len(upstream.asked) == seen
            clock.move(1e-9)
            assert await statuses(gateway, 20) == [500] + [503] * 19  # one probe failed: no second one is let through
            seen += 1
            assert len(upstream.asked) == seen


async def test_clients_at_once_get_no_more_through_than_the_probes(clock):
    asked = 0
    go = anyio.Event()

    async def upstream(stream):
        nonlocal asked
        while True:
            await stream.read_until(b"\r\n\r\n")
            asked += 1
            if asked > 2:
                await go.wait()
            stream.write(ERROR if asked <= 2 else OK)

    settings = config({"permitted_half_open_calls": 3})
    async with in_memory(settings, played_by(upstream)) as gateway:
        await statuses(gateway, 2)
        clock.move(5)
        answers = []

        async def ask():
            answers.append((await gateway.get("/")).status)

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
            await gateway.network.settle()
            assert (asked, len(answers)) == (5, 47)
            go.set()
        assert sorted(answers) == [200] * 3 + [503] * 47
        assert await statuses(gateway, 10) == [200] * 10
        assert figures(gateway)["state"] == "closed"


async def test_it_recovers_after_exactly_the_open_time(clock):
    async with in_memory(config(), Upstream(ERROR, ERROR, OK)) as gateway:
        await statuses(gateway, 2)
        clock.move(5 - 1e-9)
        assert await statuses(gateway, 1) == [503]
        clock.move(1e-9)
        assert await statuses(gateway, 3) == [200] * 3


# --- the queue ---------------------------------------------------------------


async def test_when_it_opens_who_waits_for_a_connection_is_answered_in_the_same_turn(clock):
    gates = [anyio.Event(), anyio.Event()]

    async def upstream(stream):
        while True:
            await stream.read_until(b"\r\n\r\n")
            await gates.pop(0).wait()
            stream.write(ERROR)

    settings = config(
        {"consecutive_failure_threshold": 1}, upstream={"pool": {"max_connections": 1, "max_idle_connections": 1}}
    )
    async with in_memory(settings, played_by(upstream)) as gateway:
        gate = gates[0]
        first = gateway.connect()
        first.write(GET)
        await gateway.network.settle()
        waiting = [gateway.connect() for _ in range(10)]
        for each in waiting:
            each.write(GET)
        await gateway.network.settle()
        pool = gateway.gateway._current.now.pools["upstream"]
        assert pool.waiting == 10
        before = gateway.network.clock.now
        gate.set()
        await gateway.network.settle()
        assert gateway.network.clock.now == before
        assert pool.waiting == 0
        for each in waiting:
            data = await each.read_until_end()
            assert data.startswith(b"HTTP/1.1 503 ")
            assert b"x-circuit-breaker: open\r\n" in data
            assert b"retry-after: 5\r\n" in data
        assert len(gates) == 1
        assert figures(gateway)["rejected"]["open"] == 10
        assert await gateway.leftovers() == []


@pytest.mark.parametrize("breaker", [{"dry_run": True}, {"mode": "shadow"}], ids=["a dry run", "a shadow"])
async def test_one_that_turns_nobody_away_leaves_the_queue_alone(breaker, clock):
    gate = anyio.Event()

    async def script(stream):
        await stream.read_until(b"\r\n\r\n")
        await gate.wait()
        stream.write(ERROR)
        await stream.read_until(b"\r\n\r\n")
        stream.write(OK)

    settings = config(
        {"consecutive_failure_threshold": 1} | breaker,
        upstream={"pool": {"max_connections": 1, "max_idle_connections": 1}},
    )
    async with in_memory(settings, played_by(script)) as gateway:
        first, second = gateway.connect(), gateway.connect()
        first.write(GET)
        await gateway.network.settle()
        second.write(GET)
        await gateway.network.settle()
        gate.set()
        assert (await second.read_until(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
        assert next(iter(breakers(gateway).stats()["breakers"].values()))["state"] == "open"


async def test_only_those_are_sent_away_who_asked_the_breaker_that_opened(clock):
    gate = anyio.Event()

    async def script(stream):
        await stream.read_until(b"\r\n\r\n")
        await gate.wait()
        stream.write(ERROR)
        while True:
            await stream.read_until(b"\r\n\r\n")
            stream.write(OK)

    own = {"enabled": True, "consecutive_failure_threshold": 1}
    routes = [
        {"name": "own", "match": {"prefix": "/own"}, "upstream": "upstream", "circuit_breaker": own},
        {"name": "off", "match": {"prefix": "/off"}, "upstream": "upstream", "circuit_breaker": {"enabled": False}},
        {"name": "without", "match": {"prefix": "/without"}, "upstream": "upstream", "plugins": []},
    ]
    pool = {"max_connections": 1, "max_idle_connections": 1}
    async with in_memory(config(upstream={"pool": pool}, routes=routes), played_by(script)) as gateway:
        answers = {}
        for path in ("/own/first", "/own", "/off", "/without", "/"):
            stream = answers[path] = gateway.connect()
            stream.write(f"GET {path} HTTP/1.1\r\nhost: example.test\r\n\r\n".encode())
            await gateway.network.settle()
        gate.set()
        assert {path: int((await stream.read_until(b"\r\n"))[9:12]) for path, stream in answers.items()} == {
            "/own/first": 500,
            "/own": 503,
            "/off": 200,
            "/without": 200,
            "/": 200,
        }
        assert figures(gateway, "upstream for own")["rejected"]["open"] == 1


async def test_a_reload_that_ends_a_dry_run_while_it_is_open_empties_the_queue(clock):
    async def script(stream):
        await stream.read_until(b"\r\n\r\n")
        stream.write(ERROR)
        await stream.read_until(b"\r\n\r\n")
        await anyio.sleep_forever()

    def settings(dry_run):
        return config(
            {"consecutive_failure_threshold": 1, "dry_run": dry_run},
            upstream={"pool": {"max_connections": 1, "max_idle_connections": 1}},
        )

    async with in_memory(settings(True), played_by(script)) as gateway, anyio.create_task_group() as tasks:
        assert await statuses(gateway, 1) == [500]
        busy, waits = gateway.connect(), gateway.connect()
        busy.write(GET)
        await gateway.network.settle()
        waits.write(GET)
        await gateway.network.settle()
        tasks.start_soon(reload, gateway, settings(False))
        assert b"x-circuit-breaker: open\r\n" in await waits.read_until_end()
        assert figures(gateway)["transitions"]["open to open, dry_run_disabled"] == 1
        busy.abort()


# --- reloads -----------------------------------------------------------------


async def test_what_it_counted_survives_a_reload(clock):
    async with in_memory(config({"consecutive_failure_threshold": 3}), Upstream(ERROR)) as gateway:
        await statuses(gateway, 2)
        await reload(gateway, config({"consecutive_failure_threshold": 3}, max_connections=77))
        assert figures(gateway)["window"]["consecutive_failures"] == 2
        await statuses(gateway, 1)
        assert figures(gateway)["state"] == "open"
        await reload(gateway, config({"consecutive_failure_threshold": 30, "base_open_duration_ms": 100}))
        assert await statuses(gateway, 1) == [503]
        clock.move(5)
        assert await statuses(gateway, 1) == [500]


async def test_one_that_was_off_for_a_while_begins_anew(clock):
    async with in_memory(config(), Upstream(ERROR)) as gateway:
        await statuses(gateway, 2)
        assert await statuses(gateway, 1) == [503]
        await reload(gateway, config({"enabled": False}))
        assert breakers(gateway).names == ()
        assert await statuses(gateway, 1) == [500]
        await reload(gateway, config())
        assert figures(gateway)["state"] == "closed"
        assert await statuses(gateway, 3) == [500, 500, 503]


async def test_one_that_was_off_while_old_exchanges_still_ran_begins_anew_too(clock):
    go = anyio.Event()

    async def script(stream):
        for answer in (ERROR, ERROR):
            await stream.read_until(b"\r\n\r\n")
            stream.write(answer)
        await go.wait()
        stream.write(OK)

    async with in_memory(config({"consecutive_failure_threshold": 3}), played_by(script)) as gateway:
        await statuses(gateway, 2)
        async with anyio.create_task_group() as tasks:
            old = gateway.connect()
            old.write(GET)
            await gateway.network.settle()
            tasks.start_soon(reload, gateway, config({"enabled": False}))
            await gateway.network.settle()
            tasks.start_soon(reload, gateway, config({"consecutive_failure_threshold": 3}))
            await gateway.network.settle()
            assert figures(gateway)["window"]["consecutive_failures"] == 0
            old.abort()
            await gateway.network.settle()
            assert figures(gateway)["window"]["calls"] == 0


async def test_a_configuration_that_never_took_over_changed_nothing(clock):
    async with in_memory(config(), Upstream(ERROR)) as gateway:
        await statuses(gateway, 1)
        loaded = load(config({"consecutive_failure_threshold": 1, "window_seconds": 99}), environ={})
        unused = await build(9, loaded, gateway.network, gateway.gateway.engine, gateway.gateway._shared)
        trace = weakref.ref(unused.contexts["breaker"])
        await unused.aclose()
        del unused
        gc.collect()
        assert trace() is None
        assert figures(gateway)["window"]["consecutive_failures"] == 1
        await statuses(gateway, 1)
        assert figures(gateway)["state"] == "open"


# --- whose breaker -----------------------------------------------------------


async def test_routes_share_the_breaker_of_their_upstream_unless_they_have_their_own(clock):
    settings = config(
        routes=[
            {"name": "a", "match": {"prefix": "/a"}, "upstream": "upstream"},
            {"name": "b", "match": {"prefix": "/b"}, "upstream": "upstream"},
            {
                "name": "own",
                "match": {"prefix": "/own"},
                "upstream": "upstream",
                "circuit_breaker": {"enabled": True, "consecutive_failure_threshold": 1},
            },
            {"name": "off", "match": {"prefix": "/off"}, "upstream": "upstream", "circuit_breaker": {"enabled": False}},
        ]
    )
    async with in_memory(settings, Upstream(ERROR)) as gateway:
        asked = ["/a", "/b", "/a", "/", "/own", "/own", "/off", "/off", "/off"]
        assert [(await gateway.get(path)).status for path in asked] == [500, 500, 503, 503, 500, 503, 500, 500, 500]
        assert set(breakers(gateway).names) == {"upstream", "upstream for own"}


async def test_each_route_may_have_a_breaker_and_each_endpoint(clock):
    both = {"name": "upstream", "host": None, "port": 80, "endpoints": [{"host": "192.0.2.1"}, {"host": "192.0.2.2"}]}
    del both["host"], both["port"]
    settings = config({"scope": "endpoint", "consecutive_failure_threshold": 1})
    settings["upstreams"][0] |= both
    del settings["upstreams"][0]["host"]
    well = Upstream(OK)
    async with in_memory(settings, Upstream(ERROR), upstreams={"192.0.2.2:80": well}) as gateway:
        assert await statuses(gateway, 6) == [500, 200, 503, 200, 503, 200]
        assert breakers(gateway).names == ("upstream at 192.0.2.1:80", "upstream at 192.0.2.2:80")
    settings = config(
        {"scope": "route", "consecutive_failure_threshold": 1},
        routes=[{"name": each, "match": {"prefix": f"/{each}"}, "upstream": "upstream"} for each in "ab"],
    )
    async with in_memory(settings, Upstream(ERROR)) as gateway:
        assert [(await gateway.get(path)).status for path in ("/a", "/b", "/a", "/b")] == [500, 500, 503, 503]


async def test_an_upstream_of_several_has_its_own_breaker_and_the_gateways_section_is_for_those_without(clock):
    first = config({"consecutive_failure_threshold": 1})["upstreams"][0]
    first["proxy"] = {}
    settings = {
        "plugins": ["breaker"],
        "circuit_breaker": {"enabled": True, "consecutive_failure_threshold": 2},
        "upstreams": [first, {"name": "other", "host": "192.0.2.2"}, {"name": "third", "host": "192.0.2.3"}],
        "routes": [
            {"match": {"prefix": "/"}, "upstreams": [{"name": "upstream", "weight": 1}, {"name": "other", "weight": 1}]}
        ],
    }
    failing, other = Upstream(ERROR), Upstream(ERROR)
    async with in_memory(settings, failing, upstreams={"192.0.2.2:80": other}) as gateway:
        assert await statuses(gateway, 60)
        assert (len(failing.asked), len(other.asked)) == (1, 2)
        assert set(breakers(gateway).names) == {"upstream", "other"}


# --- the retry budget --------------------------------------------------------


def retrying(breaker, **more):
    """Return a configuration in which every 5xx is retried once and no breaker opens."""
    retry = {"max_retries": 1, "retry_on_5xx": True}
    never = {"consecutive_failure_threshold": 10_000, "minimum_volume": 10_000_000} | breaker
    return config(never, upstream={"proxy": {"route_prefix": "/", "retry": retry}} | more)


@pytest.mark.parametrize(
    ("breaker", "asked"),
    [
        ({"retry_budget_percent": 0, "retry_budget_min_concurrency": 0}, 4),
        ({"retry_budget_percent": 0, "retry_budget_min_concurrency": 1}, 8),
        ({"retry_budget_percent": 0, "retry_budget_min_concurrency": 0, "dry_run": True}, 8),
        ({"retry_budget_percent": 0, "retry_budget_min_concurrency": 0, "mode": "shadow"}, 8),
        ({"retry_budget_percent": 0, "retry_budget_min_concurrency": 0, "enabled": False}, 8),
    ],
    ids=["used up", "one at once", "in a dry run", "in a shadow", "off"],
)
async def test_retries_have_a_budget(breaker, asked, clock):
    upstream = Upstream(ERROR)
    async with in_memory(retrying(breaker), upstream) as gateway, anyio.create_task_group() as tasks:
        for _ in range(4):
            done = anyio.Event()

            async def ask(done=done):
                assert (await gateway.get("/")).status == 500
                done.set()

            tasks.start_soon(ask)
            await gateway.network.advance(1)
            await done.wait()
        assert len(upstream.asked) == asked


async def test_in_a_storm_of_retries_the_upstream_sees_no_more_of_them_than_the_budget(clock):
    seen = 0
    at_once = most = 0
    gate = anyio.Event()

    async def upstream(stream):
        nonlocal seen, at_once, most
        while True:
            await stream.read_until(b"\r\n\r\n")
            seen += 1
            is_retry = seen > 40
            if is_retry:
                at_once += 1
                most = max(most, at_once)
            await (retried if is_retry else gate).wait()
            stream.write(ERROR)

    retried = anyio.Event()
    settings = retrying({"retry_budget_percent": 20, "retry_budget_min_concurrency": 3})
    async with in_memory(settings, played_by(upstream)) as gateway, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(gateway.get, "/")
        await gateway.network.settle()
        assert seen == 40
        gate.set()
        await gateway.network.advance(1)
        assert seen - 40 == most <= 8  # a fifth of 40, at the most
        assert most >= 3
        retried.set()
        await gateway.network.advance(1)


# --- by hand, logs -----------------------------------------------------------


async def test_it_can_be_opened_and_closed_by_hand(clock):
    async with in_memory(config(), Upstream(OK)) as gateway:
        breakers(gateway).open("upstream", "maintenance")
        assert await statuses(gateway, 1) == [503]
        assert figures(gateway)["by_hand"] is True
        breakers(gateway).close("upstream", "done")
        assert await statuses(gateway, 1) == [200]
        assert [each["reason"] for each in figures(gateway)["history"].values()] == ["maintenance", "done"]
        breakers(gateway).reset("upstream", "a new day")
        assert figures(gateway)["window"]["calls"] == 0
        with pytest.raises(LookupError, match="there is no breaker 'upstrem'; there are upstream"):
            breakers(gateway).open("upstrem", "")


async def test_transitions_and_the_first_rejection_are_in_the_log(clock, caplog):
    caplog.set_level(logging.DEBUG, "gw.breaker")
    async with in_memory(config(), Upstream(ERROR, ERROR, OK)) as gateway:
        await statuses(gateway, 4)
        clock.move(5)
        await statuses(gateway, 1)
    assert [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "gw.breaker"] == [
        ("WARNING", "circuit breaker upstream: closed to open, too many failures in a row"),
        ("INFO", "circuit breaker upstream: turned away, open"),
        ("DEBUG", "circuit breaker upstream: turned away, open"),
        ("INFO", "circuit breaker upstream: open to half_open, its time was up"),
        ("INFO", "circuit breaker upstream: half_open to closed, enough probes succeeded"),
    ]


async def test_a_dry_run_says_so_and_turns_nobody_away(clock, caplog):
    caplog.set_level(logging.INFO, "gw.breaker")
    async with in_memory(config({"dry_run": True}), Upstream(ERROR)) as gateway:
        assert await statuses(gateway, 5) == [500] * 5
        assert figures(gateway)["rejected"]["open_dry_run"] == 3
    assert "too many failures in a row (dry run: nobody is turned away)" in caplog.text


async def test_a_shadow_turns_nobody_away_either(clock):
    async with in_memory(config({"mode": "shadow"}), Upstream(ERROR)) as gateway:
        assert await statuses(gateway, 5) == [500] * 5
        assert figures(gateway)["rejected"]["open"] == 3


async def test_nothing_of_it_is_left_when_the_gateway_stops(clock):
    async with in_memory(config(), Upstream(OK)) as gateway:
        await statuses(gateway, 2)
        shared = gateway.gateway._shared
        assert await gateway.leftovers() == []
    assert len(shared) == 0
