"""Another upstream that is asked while a breaker is open: where its route goes, and whose breaker is asked there."""

from __future__ import annotations

import anyio
import pytest
from scenes import ERROR, OK, config, exported, figures, statuses

from gw.config.errors import ConfigError
from gw.config.load import load
from gw.testing.gateway import Upstream, in_memory


def backed_up(backup=None, fallback=None, **rest):
    """Return a configuration whose upstream has another one for when its breaker is open."""
    other = {"name": "backup", "host": "192.0.2.2", "circuit_breaker": backup or {"enabled": False}}
    fallback = {"fallback": {"upstream": "backup"} | (fallback or {})}
    settings = config(fallback, **rest)
    return settings | {"upstreams": [*settings["upstreams"], other]}


@pytest.mark.parametrize("routed", [False, True], ids=["by its prefix", "by a route"])
async def test_while_it_is_open_another_upstream_is_asked(clock, routed):
    failing, backup = Upstream(ERROR), Upstream(OK)
    settings = backed_up()
    if routed:
        del settings["upstreams"][0]["proxy"]
        settings["routes"] = [{"match": {"prefix": "/"}, "upstream": "upstream"}]
    async with in_memory(settings, failing, upstreams={"192.0.2.2:80": backup}) as gateway:
        assert await statuses(gateway, 5) == [500, 500, 200, 200, 200]
        assert (len(failing.asked), len(backup.asked)) == (2, 3)
        assert backup.asked[0].head.host == "192.0.2.2"
        assert exported(gateway, "rejected") == {("upstream", "open"): 3}
        clock.move(5)
        assert await statuses(gateway, 2) == [500, 200], "one probe goes to it, and the others go on"
        assert "x-circuit-breaker" not in (await gateway.get("/")).headers


async def test_the_other_has_its_own_breaker_and_what_it_turns_away_gets_the_503(clock):
    failing, backup = Upstream(ERROR), Upstream(ERROR)
    fixed = {"respond": {"status": 418}}
    own = {"enabled": True, "consecutive_failure_threshold": 2}
    for more, answer in ({}, 503), (fixed, 418):
        async with in_memory(backed_up(own, more), failing, upstreams={"192.0.2.2:80": backup}) as gateway:
            assert await statuses(gateway, 6) == [500] * 4 + [answer] * 2
            assert figures(gateway, "backup")["state"] == "open"
    assert len(backup.asked) == 4


async def test_a_retry_goes_to_the_other_when_the_failure_opened_it_and_stays_there(clock):
    failing, backup = Upstream(ERROR), Upstream(ERROR, OK)
    retry = {"max_retries": 2, "retry_on_5xx": True}
    settings = backed_up(upstream={"proxy": {"route_prefix": "/", "retry": retry}})
    settings["upstreams"][0]["circuit_breaker"]["consecutive_failure_threshold"] = 1
    both = in_memory(settings, failing, upstreams={"192.0.2.2:80": backup})
    async with both as gateway, anyio.create_task_group() as tasks:
        seen = []

        async def ask():
            seen.append((await gateway.get("/")).status)

        tasks.start_soon(ask)
        await gateway.network.settle()
        for _ in range(3):
            await gateway.network.advance(1)
    assert (seen, len(failing.asked), len(backup.asked)) == ([200], 1, 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "there is no upstream 'none'; there are upstream, backup"), ("upstream", "is the upstream itself")],
)
def test_another_upstream_has_to_be_one(name, said):
    with pytest.raises(ConfigError, match=f"circuit_breaker.fallback.upstream: {said}"):
        load(backed_up(fallback={"upstream": name}), environ={})
