"""Hedging against a small model: whatever is answered, fails or is left when, a client has one answer, and nothing is kept."""

from __future__ import annotations

from contextlib import suppress

import anyio
from hypothesis import given, settings, strategies as st

from gw.net.stream import StreamLost
from gw.testing.gateway import in_memory, read_answer

DELAY = 0.1
HOSTS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
CONFIG = {
    "upstreams": [
        {
            "name": "up",
            "endpoints": [{"host": host} for host in HOSTS],
            "balance": {"algorithm": "least_requests"},
            "proxy": {"route_prefix": "/", "hedging": {"delay_ms": int(DELAY * 1000)}},
        }
    ]
}


class Asked:
    """One attempt as the upstream sees it; *number* is 0 for a client's first."""

    def __init__(self, stream, host, number):
        self.stream, self.host = stream, host
        self.body = b"%d" % number

    def answer(self):
        self.stream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + self.body)


class Client:
    """One request, and what the model expects to come of it."""

    def __init__(self, stream):
        self.stream = stream
        self.attempts = []
        self.under_way = []
        self.failed = 0
        self.expected = None
        self.got = []

    def over(self, expected):
        self.expected, self.under_way = expected, []


class Model:
    def __init__(self):
        self.clients = []

    def upstream(self, host):
        async def script(stream):
            with suppress(StreamLost, anyio.EndOfStream):
                while True:
                    head = await stream.read_until(b"\r\n\r\n")
                    client = self.clients[int(head.split()[1][1:])]
                    asked = Asked(stream, host, len(client.attempts))
                    client.attempts.append(asked)
                    client.under_way.append(asked)

        return script

    @property
    def waiting(self):
        return [each for each in self.clients if each.under_way]

    async def run(self, steps):
        scripts = {f"{host}:80": self.upstream(host) for host in HOSTS}
        async with in_memory(CONFIG, upstreams=scripts) as self.gateway:
            self.service = self.gateway.gateway._current.now.services["up"]
            for what, number in steps:
                if what in {"ask", "wait"}:
                    await getattr(self, what)(number)
                elif waiting := self.waiting:
                    await getattr(self, what)(waiting[number % len(waiting)], number)
                await self.gateway.network.settle()
                self.look()
            for client in self.clients:
                client.stream.abort()
            assert await self.gateway.leftovers() == []

    async def ask(self, _):
        client = Client(self.gateway.connect())
        client.stream.write(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % len(self.clients))
        self.clients.append(client)

        async def read():
            with suppress(StreamLost):
                while (answer := await read_answer(client.stream)).status:
                    client.got.append((answer.status, answer.body))

        self.gateway.network.tasks.start_soon(read)
        await self.gateway.network.settle()
        assert len(client.attempts) == 1

    async def wait(self, number):
        """Wait for less, or for more, than it takes until there is a second attempt."""
        await self.gateway.network.advance(DELAY * 3 if number % 2 else DELAY / 4)
        if number % 2:
            assert all(len(client.attempts) == 2 or client.failed for client in self.waiting)

    async def answer(self, client, number):
        asked = client.under_way[number % len(client.under_way)]
        asked.answer()
        client.over((200, asked.body))

    async def answer_both(self, client, number):
        """Both answers are here at once: one of them is passed on, and the other is not the next one's."""
        for asked in client.under_way if number % 2 else reversed(client.under_way):
            asked.answer()
        either = [(200, asked.body) for asked in client.under_way]
        await self.gateway.network.settle()
        assert client.got[0] in either
        client.over(client.got[0])

    async def fail(self, client, number):
        asked = client.under_way.pop(number % len(client.under_way))
        asked.stream.write(b"garbage\r\n\r\n")
        client.failed += 1
        if not client.under_way:
            client.over((502, b"Bad Gateway"))

    async def leave(self, client, _):
        client.stream.abort()
        client.over(None)

    def look(self):
        for client in self.clients:
            assert client.got == ([client.expected] if client.expected else [])
            hosts = [asked.host for asked in client.attempts]
            assert len(hosts) == len(set(hosts)) <= 2
        waiting, service = self.waiting, self.service
        assert service.hedges.under_way == sum(len(client.attempts) == 2 for client in waiting)
        assert service.pool.open - service.pool.idle == sum(len(client.under_way) for client in waiting)
        under_way = [asked.host for client in waiting for asked in client.under_way]
        assert [member.active for member in service.endpoints.members] == [under_way.count(host) for host in HOSTS]
        assert service.endpoints.algorithm.under_way == len(under_way)


STEPS = st.tuples(
    st.sampled_from(["ask", "wait", "answer", "answer_both", "fail", "leave"]), st.integers(min_value=0, max_value=5)
)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_a_client_has_the_first_answer_and_nothing_is_kept(steps):
    anyio.run(Model().run, steps)
