"""Ten minutes of virtual time with endpoints that fail and return: nothing is lost that a retry could save, all bounds hold."""

from __future__ import annotations

import random

import anyio
import pytest

from gw.net.stream import StreamLost
from gw.testing.gateway import in_memory

MINUTES = 10
ENDPOINTS = 5
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
CONNECTIONS = 24
BUDGET = {"percent": 50, "min_concurrency": 10}
RETRY = {"max_retries": 4, "retry_on": [503, "connect-failure", "disconnect", "timeout"], "per_try_timeout_ms": 400}
CONFIG = {
    "upstreams": [
        {
            "name": "up",
            "endpoints": [{"host": f"192.0.2.{number}", "port": 80} for number in range(1, ENDPOINTS + 1)],
            "balance": {"algorithm": "least_requests", "slow_start_sec": 5, "panic_threshold_percent": 0},
            "health": {
                "active": {"interval_ms": 5000, "timeout_ms": 1000, "healthy_threshold": 1},
                "outliers": {"base_ejection_sec": 5, "max_ejection_sec": 20, "max_ejection_percent": 60},
            },
            "pool": {"max_connections": CONNECTIONS, "max_idle_connections": 10},
            "proxy": {"route_prefix": "/", "retry": {**RETRY, "budget": BUDGET}},
        }
    ]
}


class Weather:
    """An endpoint that is well, or ill in one of several ways."""

    WAYS = ("refuses", "busy", "closes", "silent", "garbage head")

    def __init__(self):
        self.state = "well"
        self.streams = set()
        self.served = 0

    async def __call__(self, stream):
        if self.state == "refuses":
            stream.abort()
            return
        self.streams.add(stream)
        try:
            while True:
                await stream.read_until(b"\r\n\r\n")
                if self.state in {"closes", "refuses"}:
                    stream.abort()
                    return
                if self.state in {"silent", "garbage head"}:
                    await anyio.sleep_forever()
                self.served += 1
                stream.write(BUSY if self.state == "busy" else OK)
        except (StreamLost, anyio.EndOfStream):
            stream.close()
        finally:
            self.streams.discard(stream)

    def change(self, state):
        self.state = state
        if state != "well":
            for stream in list(self.streams)[:1]:  # somebody's request may be on it
                stream.abort()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
async def test_ten_minutes(seed, anyio_backend):
    chance = random.Random(seed)  # to be the same every time
    endpoints = [Weather() for _ in range(ENDPOINTS)]
    scripts = {f"192.0.2.{number}:80": each for number, each in enumerate(endpoints, 1)}
    statuses: list[int] = []
    async with in_memory(CONFIG, upstreams=scripts) as gateway, anyio.create_task_group() as tasks:
        service = gateway.gateway._current.now.services["up"]

        async def ask():
            statuses.append((await gateway.get("/")).status)

        asked = most_retries = most_ill = moves = 0
        before = sure = endpoints[0]
        until = gateway.network.clock.now + MINUTES * 60
        while gateway.network.clock.now < until:
            now = gateway.network.clock.now
            if now >= moves:  # one is always well, another one every minute: with it, every request can be saved
                moves, before, sure, safe = now + 60, sure, chance.choice(endpoints), now + 5
                sure.change("well")
            weather = chance.choice(endpoints)
            if chance.random() < 0.2 and weather is not sure and (weather is not before or now > safe):
                weather.change(chance.choice(("well", *Weather.WAYS)))
            most_ill = max(most_ill, sum(each.state != "well" for each in endpoints))
            for _ in range(chance.choice((0, 1, 1, 2, 4))):
                tasks.start_soon(ask)
                asked += 1
            await gateway.network.advance(0.25)
            account = service.budget.account
            most_retries = max(most_retries, account.retries)
            assert account.retries <= max(BUDGET["min_concurrency"], account.in_flight * BUDGET["percent"] / 100)
            assert service.pool.open <= CONNECTIONS
            assert service.pool.idle <= 10
            assert sum(member.ejected for member in service.endpoints.members) <= 0.6 * ENDPOINTS
            assert all(member.active >= 0 for member in service.endpoints.members)
        await gateway.network.advance(10)
        assert len(statuses) == asked > 3000
        assert set(statuses) == {200}
        account = service.budget.account
        assert (account.in_flight, account.retries, account.refused) == (0, 0, 0)
        assert [member.active for member in service.endpoints.members] == [0] * ENDPOINTS
        assert service.outliers.ejected > 0
        assert service.checks.failed > 0
        assert most_retries >= 1
        assert most_ill >= 3
        assert all(each.served > 100 for each in endpoints)
        tasks.cancel_scope.cancel()
