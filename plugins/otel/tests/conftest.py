"""What the tests of the exporters share: things to send, and a collector that really listens."""

from __future__ import annotations

import gzip
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import h11
import pytest

from gw.testing import PATIENCE
from gw_otel.records import Log, Metric, Point
from gw_otel.spans import CLIENT, INTERNAL, SERVER, Span

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import the module beside them

from otlp_samples import CHILD, ELSEWHERE, END, ROOT, START, TRACE, VALUES


@pytest.fixture
def spans():
    """Spans with everything that a span can have, and with nothing."""
    server = ("gw.http.server", "")
    client = ("gw.gateway.http", "1.0.0")
    return [
        Span(
            server,
            "GET /users/:id",
            SERVER,
            TRACE,
            ROOT,
            ELSEWHERE,
            "a=1,b=2",
            True,
            START,
            END,
            list(VALUES),
            (),
            True,
        ),
        Span(client, "HTTP GET", CLIENT, TRACE, CHILD, ROOT, "", False, START, START, [], (), False),
        Span(
            client,
            "",
            INTERNAL,
            TRACE,
            "1" * 16,
            "",
            "",
            True,
            START,
            END,
            [("k", "v")] * 3,
            [(START, "begun", [("a", 1)]), (END, "over", [])],
            False,
            7,
            200,
        ),
    ]


@pytest.fixture
def metrics():
    exemplar = (TRACE, CHILD, 0.25, END)
    labels = [("http.request.method", "GET"), ("code", "200")]
    return [
        Metric("gw.asked", "counter", "{requests}", "Requests", START, (), (Point([("zone", "a")], 7), Point([], 2.5))),
        Metric("gw.open", "level", "{connections}", "Open", START, (), (Point([], -3),)),
        Metric(
            "http.server.request.duration",
            "histogram",
            "s",
            "Time",
            START,
            (0.1, 1.0, 10.0),
            (Point(labels, 3.5, (1, 2, 0, 4), (None, exemplar, None, None)), Point([], 0.0, (0, 0, 0, 0))),
        ),
        Metric("gw.never", "counter", "1", "Nothing yet", START, (), ()),
    ]


@pytest.fixture
def logs():
    return [
        Log(START, 9, "GET / 200", list(VALUES), TRACE, ROOT, True),
        Log(END, 17, "GET / -", [], "", "", False),
    ]


# --- a collector -----------------------------------------------------------------


class Collector:
    """A server that keeps what it is sent, and answers as it is told to."""

    def __init__(self):
        self.requests = []
        """(path, headers, body after decompression)."""
        self.answers = []
        """(status, headers, body) for the next requests; the last one again and again. `None` never answers."""
        self.came = anyio.Event()
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def wait_for(self, number):
        """Return when so many requests have come."""
        while len(self.requests) < number:
            self.came = anyio.Event()
            await self.came.wait()

    async def serve(self, stream):
        async with stream:
            connection = h11.Connection(h11.SERVER)
            head, body = None, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    try:
                        connection.receive_data(await stream.receive(65536))
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                elif isinstance(event, h11.Request):
                    head, body = event, b""
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    if not await self.answer(stream, connection, head, body):
                        return
                    connection.start_next_cycle()
                else:
                    return

    async def answer(self, stream, connection, head, body):
        headers = {name.decode(): value.decode() for name, value in head.headers}
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.requests.append((head.target.decode(), headers, body))
        self.came.set()
        answer = (200, (), b"")
        if self.answers:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await anyio.sleep_forever()
        status, more, content = answer
        lines = [*more, ("content-length", str(len(content)))]
        out = connection.send(h11.Response(status_code=status, headers=lines))
        out += connection.send(h11.Data(data=content)) + connection.send(h11.EndOfMessage())
        await stream.send(out)
        return True


@pytest.fixture
def collecting():
    """Return a context manager that runs a collector: a test that sends runs it on its own loop."""

    @asynccontextmanager
    async def run():
        collector = Collector()
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            collector.port = listener.extra(anyio.abc.SocketAttribute.local_port)
            tasks.start_soon(listener.serve, collector.serve)
            with anyio.fail_after(PATIENCE):
                yield collector
            tasks.cancel_scope.cancel()

    return run
