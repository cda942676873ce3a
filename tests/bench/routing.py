"""What a look-up costs at 10, 1,000 and 100,000 routes: it must not grow with their number.

Prints microseconds per `Router.find` for each kind of route, with the ratio of the largest table to the
smallest, and what compiling the tables takes. `--quick` takes seconds instead of a minute.
"""

from __future__ import annotations

import argparse
import gc
import time
import timeit
import tracemalloc
from functools import partial
from typing import Any

from gw.filters import Request
from gw.http.paths import PathPolicy, parse_target
from gw.routing import Match, Missing, Router

POLICY = PathPolicy()
SIZES = (10, 1_000, 100_000)
TARGETS = ("/", "/v1/items/12345", "/v1/items/12345?page=2&sort=name", "/v1/%7Euser/./x", "/v1/items/" + "a" * 4000)

Key = tuple[str, int]
Call = tuple[Any, ...]
"""A function and its arguments."""


def matches(size: int) -> list[Match]:
    """A table of *size* routes in which five kinds are equally common."""
    table: list[Match] = []
    for i in range(size // 5):
        table += [
            Match(path=f"/v1/literal{i}/items"),
            Match(prefix=f"/v1/prefix{i}"),
            Match(path=f"/v1/parameter{i}/:id"),
            Match(path=f"/v1/regex{i}/:id([0-9]+)"),
            Match(hosts=(f"host{i}.example.com",), path="/v1/*rest"),
        ]
    return table


def questions(size: int) -> dict[str, Request]:
    """One request for each kind, for a route in the middle of the table, and one that matches nothing."""
    middle = size // 10
    asked = {
        "literal": Request("GET", f"/v1/literal{middle}/items"),
        "prefix": Request("GET", f"/v1/prefix{middle}/items"),
        "parameter": Request("GET", f"/v1/parameter{middle}/12345"),
        "regex": Request("GET", f"/v1/regex{middle}/12345"),
        "host": Request("GET", "/v1/items/12345"),
        "404": Request("GET", "/v1/nothing/here"),
    }
    for request in asked.values():
        request.host = "gateway.example.com:8080"
    asked["host"].host = f"host{middle}.example.com:8080"
    return asked


def microseconds(calls: dict[Key, Call], *, quick: bool) -> dict[Key, float]:
    """The best of many short rounds for each. They take turns, so that all of them see the same machine."""
    count, rounds = (2_000, 20) if quick else (10_000, 60)
    timers = {key: timeit.Timer(partial(*call)) for key, call in calls.items()}
    idle = min(timeit.repeat(partial(len, ()), number=count, repeat=rounds))
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for key, timer in timers.items():
            best[key] = min(best[key], timer.timeit(count))
    return {key: (cost - idle) / count * 1e6 for key, cost in best.items()}


def bytes_held(entries: list[tuple[str, Match, int]]) -> int:
    """Bytes that the compiled table holds. Tracing is slow: several times the compiling itself."""
    tracemalloc.start()
    table = Router(entries, POLICY)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del table
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds, no measuring of memory")
    quick = parser.parse_args().quick

    looking: dict[Key, Call] = {}
    for size in SIZES:
        entries = [(str(i), match, i) for i, match in enumerate(matches(size))]
        started = time.perf_counter()
        table = Router(entries, POLICY)
        milliseconds = (time.perf_counter() - started) * 1000
        memory = "" if quick else f", {bytes_held(entries) / size:,.0f} bytes a route"
        print(f"{size:>7,} routes: compiled in {milliseconds:,.1f} ms{memory}")
        for kind, request in questions(size).items():
            assert isinstance(table.find(request), Missing) == (kind == "404")
            looking[kind, size] = (table.find, request)

    costs = microseconds(looking, quick=quick)
    print(f"\n{'us a look-up':14}" + "".join(f"{size:>10,}" for size in SIZES) + "     ratio")
    for kind in dict.fromkeys(kind for kind, _ in costs):
        row = [costs[kind, size] for size in SIZES]
        print(f"{kind:14}" + "".join(f"{cost:10.2f}" for cost in row) + f"{row[-1] / row[0]:10.2f}")

    print("\nus to read a target")
    reading: dict[Key, Call] = {(target, 0): (parse_target, target, POLICY, "GET") for target in TARGETS}
    for (target, _), cost in microseconds(reading, quick=quick).items():
        label = target if len(target) < 40 else f"{target[:20]}... ({len(target)} bytes)"
        print(f"{label:34}{cost:6.2f}")


if __name__ == "__main__":
    main()
