"""What the plugin costs, in CPU time of the hooks alone: ``python plugins/otel/tests/cost.py``.

The same exchange, with a filter that does nothing, is taken off. Each figure is the best of several rounds.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_filter import CLIENT, ROUTE, Bench

from gw import Attempt, Endpoint, Exchange, Filter, Headers, Outcome, Request, Response
from gw.figures import Figures
from gw_otel.exposition import rendered
from gw_otel.protobuf import Protobuf
from gw_otel.protojson import Json

ROUNDS, NUMBER, BATCH = 7, 10_000, 256
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
LINES = ((b"host", b"example.test"), (b"user-agent", b"curl/8"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip"))
LINES += ((b"cookie", b"session=0123456789abcdef"), (b"x-forwarded-for", b"192.0.2.7"))
ENDPOINT, RESPONSE = Endpoint("192.0.2.1", 80), Response(200)


class Nothing(Filter):
    async def on_request_headers(self, ex):
        pass

    async def on_upstream_request(self, ex, attempt):
        pass

    def on_complete(self, ex):
        pass


def exchange(flags):
    parent = () if flags is None else ((b"traceparent", PARENT + flags),)
    ex = Exchange(Request("GET", "/users/7", Headers([*LINES, *parent])), CLIENT)
    ex.route, ex.asked_host, ex.request_id, ex.started = ROUTE, "example.test", "0" * 32, time.monotonic()
    return ex


def run(coroutine):
    try:
        coroutine.send(None)
    except StopIteration:
        pass


def carry(hooks, ex):
    run(hooks.on_request_headers(ex))
    attempt = Attempt(1, "upstream", time.monotonic())
    attempt.endpoint = ENDPOINT
    ex.attempts.append(attempt)
    run(hooks.on_upstream_request(ex, attempt))
    attempt.response = ex.response = RESPONSE
    attempt.sent, attempt.ended, ex.outcome = True, time.monotonic(), Outcome.UPSTREAM
    hooks.on_complete(ex)


def cost(hooks, flags, after=None):
    """Return microseconds an exchange."""
    best = float("inf")
    for _ in range(ROUNDS):
        exchanges = [exchange(flags) for _ in range(NUMBER)]
        began = time.process_time()
        for number, ex in enumerate(exchanges):
            carry(hooks, ex)
            exchanges[number] = None
            if after is not None and number % BATCH == BATCH - 1:
                after()
        best = min(best, time.process_time() - began)
    return best / NUMBER * 1e6


def encoded(bench, encoder, *, zipped):
    def send():
        scopes = {}
        for span in bench.spans:
            scopes.setdefault(span.scope, []).append(encoder.span(span))
        body = encoder.request("traces", [("service.name", "gw")], scopes)
        if zipped:
            gzip.compress(body, 5)
        bench.spans.clear()

    return send


async def longest_turn(series):
    """Return the milliseconds of CPU of the longest piece of work without a turn for others, and of all of it."""
    figures = Figures()
    asked = figures.counter("gw.asked", "{requests}", "Requests", ("one", "two"))
    for number in range(series):
        asked.at(str(number // 100), str(number % 100)).add()
    longest, began = 0.0, time.thread_time()
    last = began
    async for _ in rendered(figures, None, [], as_openmetrics=False):
        now = time.thread_time()
        longest, last = max(longest, now - last), time.thread_time()
    return longest * 1000, (time.thread_time() - began) * 1000


def main():
    nothing = cost(Nothing(), None)

    def show(what, value):
        print(f"{what:55} {value - nothing:6.1f} us")

    show("metrics only", cost(Bench(traces=False).filter, None))
    show("not sampled, as the parent said", cost(Bench("parent_based").filter, b"00"))
    show("not sampled, without a parent", cost(Bench("always_off").filter, None))
    bench = Bench()
    show("sampled, two spans", cost(bench.filter, b"01", bench.spans.clear))
    for encoder in (Protobuf(), Json()):
        for zipped in (False, True):
            name = f"{type(encoder).__name__}{' and gzip' if zipped else ''}"
            bench = Bench()
            show(
                f"sampled, two spans, encoded by {name}",
                cost(bench.filter, b"01", encoded(bench, encoder, zipped=zipped)),
            )
    asyncio.run(longest_turn(10_000))  # the first one fills caches
    longest, whole = asyncio.run(longest_turn(10_000))
    print(f"{'/metrics, 10,000 series: longest turn':55} {longest:6.2f} ms of {whole:.0f} ms")


if __name__ == "__main__":
    main()
