"""Drive gw and its peers with the same work in the same run, and say what each request cost. `scripts/bench` calls it.

This file holds the scenarios and the order of events; how a load is made, a process read and a figure judged
stands in `load`, `processes` and `report`. docs/performance.md tells how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import load
from load import Load
from peers import (
    LARGE_BODY,
    TOKEN,
    MissingError,
    Site,
    find_program,
    start_grpc_origin,
    start_origin,
    start_proxy,
)
from processes import Cpus, FailedToRunError, Process, raise_file_limit
from report import Budget, Round, Sample, cpu_difference, cpu_ratio, judge, median_ratio, ratios, table, tail_ratio

PACED_SHARE: Final = 0.5
"""Of what a proxy can do: the rate of the scenario below saturation."""
PACED_MAX: Final = 12_000.0
"""Requests/s that the paced sender, which is Python, keeps up with on a CPU that it shares with the origin."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of work, who does it, and what is allowed."""

    name: str
    title: str
    load: Load
    proxies: tuple[str, ...]
    budgets: tuple[Budget, ...]
    paced: bool = False
    """At a fixed rate below saturation, not as fast as it goes."""


SCENARIOS: Final = (
    Scenario(
        "get",
        "small GET over 32 keep-alive connections",
        Load(),
        ("gw", "floor", "envoy", "nginx", "gw-pure"),
        (cpu_ratio("gw", "floor", 1.8), cpu_ratio("gw", "envoy", 0.7)),
    ),
    Scenario(
        "get-varied",
        "small GET with the head of a browser, never the same twice, over 32 connections",
        Load(varied=True),
        ("gw", "floor", "envoy", "nginx"),
        (cpu_ratio("gw", "envoy", 0.7),),
    ),
    Scenario(
        "post10k",
        "POST of 10 KiB over 32 connections",
        Load("/post", method="POST", body=10240),
        ("gw", "floor", "envoy", "nginx"),
        (cpu_ratio("gw", "envoy", 1.0),),
    ),
    Scenario(
        "get100k",
        "GET of 100 KiB over 32 connections",
        Load("/100k", answer=LARGE_BODY),
        ("gw", "floor", "envoy", "nginx"),
        (cpu_ratio("gw", "envoy", 1.0),),
    ),
    Scenario(
        "get-1000c",
        "small GET over 1,000 connections",
        Load(connections=1000),
        ("gw", "floor", "envoy", "nginx"),
        (cpu_ratio("gw", "envoy", 0.7),),
    ),
    Scenario(
        "get-1c",
        "small GET over one connection: latency of a gateway that has nothing else to do",
        Load(connections=1),
        ("gw", "floor", "envoy", "nginx"),
        (median_ratio("gw", "envoy", 1.2),),
    ),
    Scenario(
        "h2",
        "small GET over HTTP/2 in cleartext, 4 connections of 32 streams; HTTP/1.1 to the origin",
        Load(connections=4, streams=32),
        ("gw", "envoy", "nginx-h2", "gw-pure"),
        (cpu_ratio("gw", "envoy", 0.7), cpu_ratio("gw-pure", "gw", 6.0)),
    ),
    Scenario(
        "tls",
        "small GET over TLS 1.3, 32 keep-alive connections",
        Load(tls=True),
        ("gw-tls", "envoy-tls", "nginx-tls"),
        (cpu_ratio("gw-tls", "envoy-tls", 1.0),),
    ),
    Scenario(
        "h2-tls",
        "small GET over HTTP/2 and TLS 1.3, 4 connections of 32 streams; HTTP/1.1 to the origin",
        Load(connections=4, streams=32, tls=True),
        ("gw-tls", "envoy-tls", "nginx-tls"),
        (cpu_ratio("gw-tls", "envoy-tls", 0.7),),
    ),
    Scenario(
        "grpc",
        "unary gRPC call of 100 bytes each way, HTTP/2 in cleartext on both sides, 4 connections of 32 streams",
        Load("/bench.Echo/Say", method="POST", body=100, connections=4, streams=32, grpc=True),
        ("gw-grpc", "envoy-grpc"),
        (cpu_ratio("gw-grpc", "envoy-grpc", 1.3),),
    ),
    Scenario(
        "filters",
        "small GET through six filters of four hooks that do nothing",
        Load(),
        ("gw", "gw-filters"),
        (cpu_difference("gw-filters", "gw", 8.0),),
    ),
    Scenario(
        "jwt",
        "small GET with an RS256 token, always the same: Envoy verifies it each time, we remember it",
        Load(bearer=TOKEN),
        ("gw", "gw-jwt", "envoy", "envoy-jwt"),
        (cpu_difference("gw-jwt", "gw", 6.0), cpu_ratio("gw-jwt", "envoy-jwt", 0.5)),
    ),
    Scenario(
        "otel",
        "small GET that is traced and measured: not sampled, and sampled with its two spans pushed",
        Load(),
        ("gw", "gw-otel", "gw-otel-push"),
        (
            cpu_difference("gw-otel", "gw", 8.0),
            cpu_difference("gw-otel-push", "gw", 60.0),
        ),
    ),
    Scenario(
        "breaker",
        "small GET past a circuit breaker that is closed, and a retry budget",
        Load(),
        ("gw", "gw-breaker"),
        (cpu_difference("gw-breaker", "gw", 3.0),),
    ),
    Scenario(
        "limits",
        "small GET with one rate limit, in memory and in memory that processes share",
        Load(),
        ("gw", "gw-limits", "gw-limits-shared"),
        (cpu_difference("gw-limits", "gw", 4.0), cpu_difference("gw-limits-shared", "gw", 6.0)),
    ),
    Scenario(
        "jwt-each",
        "small GET with an RS256 token that is verified each time, as one that is seen for the first time",
        Load(bearer=TOKEN),
        ("gw", "gw-jwt-each", "envoy-jwt"),
        (cpu_difference("gw-jwt-each", "gw", 120.0),),
    ),
    Scenario(
        "jwt-limit",
        "small GET with an RS256 token, and a rate limit that it does not reach",
        Load(bearer=TOKEN),
        ("gw", "gw-jwt-limit", "envoy-jwt-limit"),
        (cpu_ratio("gw-jwt-limit", "envoy-jwt-limit", 0.5),),
    ),
    Scenario(
        "introspection",
        "small GET with a token whose introspection is remembered",
        Load(bearer=TOKEN),
        ("gw", "gw-introspection"),
        (cpu_difference("gw-introspection", "gw", 8.0),),
    ),
    Scenario(
        "steady",
        "small GET at half the rate that each can do: latency below saturation",
        Load(),
        ("gw", "floor", "envoy", "nginx"),
        (tail_ratio("gw", 3.0),),
        paced=True,
    ),
)


AUTH: Final = ("jwt", "jwt-each", "jwt-limit", "introspection")
"""The scenarios of `--auth`."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: int


QUICK: Final = Effort(rounds=2, seconds=1)
FULL: Final = Effort(rounds=7, seconds=3)


class Bench:
    """The proxies that are running, and what has gone wrong. Use it as a context manager: leaving it stops everything."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.running: dict[str, Process] = {}
        self.capacity: dict[tuple[str, int], float] = {}
        self.closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="gw-bench-")))
            site = Site(folder, Cpus.divide(os.sched_getaffinity(0)))
            closing.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, site.cpus.load)  # wrk inherits it
            origin = start_origin(site)
            closing.callback(origin.stop)
            grpc = start_grpc_origin(site)
            closing.callback(grpc.stop)
            self.site = dataclasses.replace(site, origin=origin.port, grpc=grpc.port)
            self.closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def start(self, names: Iterable[str]) -> None:
        """Start each proxy that is not running yet; one that cannot is remembered, and its reason with it."""
        for name in names:
            if name in self.running or name in self.missing or name in self.failed:
                continue
            try:
                process = start_proxy(self.site, name)
            except MissingError as missing:
                self.missing[name] = str(missing)
            except FailedToRunError as failed:
                self.failed[name] = str(failed)
            else:
                self.running[name] = process
                self.closing.callback(process.stop)

    def measure(self, scenario: Scenario) -> list[Round]:
        """Return the rounds of *scenario*: in each, every proxy once, one after the other, every other round backwards."""
        self.start(scenario.proxies)
        names = [name for name in scenario.proxies if name in self.running]
        for name in list(names):
            with self._reported(names, name):
                load.check(name, self.running[name].port, scenario.load)
                self._warm(name, scenario.load)
        rounds: list[Round] = []
        for number in range(self.effort.rounds):
            samples: dict[str, Sample] = {}
            for name in names[:: -1 if number % 2 else 1]:
                with self._reported(names, name):
                    samples[name] = self._sample(scenario, name)
            rounds.append(samples)
        return rounds

    def _warm(self, name: str, like: Load) -> None:
        """Let *name* dial its upstream connections, and note what it can do: once for each number of connections."""
        if (name, like.connections) not in self.capacity:
            light = (
                like
                if like.grpc
                else Load(connections=like.connections, streams=like.streams, bearer=like.bearer, tls=like.tls)
            )
            seen = load.drive(name, self.running[name].port, light, 1)
            self.capacity[name, like.connections] = seen.requests / seen.seconds

    def _sample(self, scenario: Scenario, name: str) -> Sample:
        process, seconds = self.running[name], self.effort.seconds
        before = process.cpu_seconds()
        if scenario.paced:
            rate = min(PACED_MAX, PACED_SHARE * self.capacity[name, scenario.load.connections])
            seen = load.pace(name, process.port, scenario.load, rate=rate, seconds=seconds)
        else:
            seen = load.drive(name, process.port, scenario.load, seconds)
        cpu = process.cpu_seconds() - before
        return Sample(seen.requests, seen.seconds, cpu, seen.p50, seen.p99, process.resident())

    @contextlib.contextmanager
    def _reported(self, names: list[str], name: str) -> Iterator[None]:
        """Take a proxy that fails out of the scenario, and go on with the others."""
        try:
            yield
        except FailedToRunError as failed:
            names.remove(name)
            code = self.running[name].child.poll()
            crashed = "" if code is None else f"; it exited with {code}: {self.running[name].last_words()}"
            self.failed[name] = f"{failed}{crashed}"


def show(scenario: Scenario, rounds: list[Round]) -> dict[str, Any]:
    """Print one scenario and return it for the JSON file."""
    verdicts = [judge(budget, rounds) for budget in scenario.budgets]
    print(f"\n{scenario.name}: {scenario.title}")
    for line in (
        *table(rounds),
        *(ratios(rounds, peer) for peer in ("envoy", "envoy-tls", "envoy-grpc", "floor")),
        *(f"  {v}" for v in verdicts),
    ):
        if line:
            print(line, flush=True)
    return {
        "title": scenario.title,
        "rounds": [{name: dataclasses.asdict(sample) for name, sample in samples.items()} for samples in rounds],
        "budgets": [{**dataclasses.asdict(v), "figure": v.figure, "met": v.met} for v in verdicts],
    }


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure gw beside its peers: CPU per request and latency."
    )
    parser.add_argument("--quick", action="store_true", help="short rounds: about a minute, and rougher figures")
    parser.add_argument(
        "--only", action="append", choices=[s.name for s in SCENARIOS], help="this scenario; repeatable"
    )
    parser.add_argument(
        "--auth", dest="only", action="store_const", const=[*AUTH], help=f"the scenarios with tokens: {', '.join(AUTH)}"
    )
    parser.add_argument("--proxies", help="these proxies only, with commas between them")
    parser.add_argument("--rounds", type=int, help="how often each proxy is measured")
    parser.add_argument("--seconds", type=int, help="how long each time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there as well")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed or not measured")
    return parser


def main() -> int:
    given = options().parse_args()
    effort = QUICK if given.quick else FULL
    effort = Effort(given.rounds or effort.rounds, given.seconds or effort.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes are stopped, too
    raise_file_limit()
    results: dict[str, Any] = {}
    try:
        find_program("wrk", "apt-get install wrk")
        with Bench(effort) as bench:
            cpus = bench.site.cpus
            print(
                f"{effort.rounds} rounds of {effort.seconds} s; proxy on CPU {set(cpus.proxy)}, load on {set(cpus.load)}"
            )
            for scenario in SCENARIOS:
                if given.only and scenario.name not in given.only:
                    continue
                if given.proxies:
                    wanted = tuple(name for name in scenario.proxies if name in given.proxies.split(","))
                    scenario = dataclasses.replace(scenario, proxies=wanted)  # noqa: PLW2901  the narrowed one is meant
                results[scenario.name] = show(scenario, bench.measure(scenario))
    except (MissingError, FailedToRunError) as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 1
    for name, why in bench.missing.items():
        print(f"\nnot measured: {name}: {why}")
    for name, why in bench.failed.items():
        print(f"\nFAILED: {name}: {why}")
    if given.json:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
        found = {"machine": machine, "scenarios": results, "missing": bench.missing, "failed": bench.failed}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    missed = any(not budget["met"] for result in results.values() for budget in result["budgets"])
    return 1 if bench.failed or (given.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
