"""What a second worker brings: requests a second of two workers, over those of one; at least 1.8 times, where two CPUs are free.

The load has to share the CPUs with what it measures. So each request costs a millisecond of the worker's own CPU time, in an
application behind the chain (`busy.py`), and the load next to nothing; `--busy-us` says otherwise. One worker and two take
turns, over connections that stay open, and it is told how evenly these were spread. `--quick` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from load import Load, check, drive
from peers import Site, start
from processes import STARTS_WITHIN, Cpus, FailedToRunError, Process

LEAST = 1.8
"""Times the throughput of one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--busy-us", type=int, default=1000, metavar="US", help="CPU time of a request, in us")
    asked = parser.parse_args()
    os.environ["BUSY_US"] = str(asked.busy_us)
    rounds, seconds = (2, 2) if asked.quick else (5, 5)

    rates: dict[int, list[float]] = {1: [], 2: []}
    spread: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder:
        everywhere = frozenset(os.sched_getaffinity(0))
        site = Site(Path(folder), Cpus(everywhere, everywhere))
        for _ in range(rounds):
            for workers, found in rates.items():
                process = gateway(site, workers)
                try:
                    check("gw", process.port, Load())
                    wait_until_all_serve(process.port, workers)
                    looks = spread if workers == 2 else []
                    look = threading.Timer(
                        seconds / 2, lambda port, to: to.append(connections(port)), (process.port, looks)
                    )
                    look.start()
                    done = drive("gw", process.port, Load(connections=32), seconds)
                    look.join()
                    found.append(done.requests / done.seconds)
                finally:
                    process.stop()
    for workers, found in rates.items():
        print(
            f"{workers} worker{'s'[: workers > 1]}: {median(found):7.0f} requests/s ({min(found):.0f}-{max(found):.0f})"
        )
    print(f"connections of the two: {', '.join(f'{one} and {other}' for one, other in spread)}")
    times = median(rates[2]) / median(rates[1])
    cpus = len(os.sched_getaffinity(0))
    verdict = "not measured: there is one CPU" if cpus < 2 else "met" if times >= LEAST else "missed"
    print(
        f"\nat least {LEAST:g} times the throughput of one: {verdict}, {times:.2f}, with {cpus} CPUs that the load shares"
    )


def gateway(site: Site, workers: int) -> Process:
    """Start gw with so many workers in front of the busy application; it may use all CPUs there are."""

    def command(_: Site, port: int) -> list[str]:
        config = site.folder / "gw.json"
        upstream = {"name": "busy", "endpoints": [{"asgi": "busy:app"}], "proxy": {"route_prefix": "/*rest"}}
        said = {"bind_port": port, "plugins": [], "log": {"level": "warn"}, "upstreams": [upstream]}
        config.write_text(json.dumps(said))
        return [sys.executable, "-m", "gw", "serve", "-w", str(workers), "-P", "", "-c", str(config)]

    return start(site, f"gw-{workers}", command, site.cpus.proxy)


def wait_until_all_serve(port: int, workers: int) -> None:
    """Return when so many workers serve: the first that does would have all connections."""
    give_up = time.monotonic() + STARTS_WITHIN
    while stats(port).get("workers", {"serving": 1})["serving"] < workers:
        if time.monotonic() > give_up:
            raise FailedToRunError(f"{workers} workers did not serve within {STARTS_WITHIN:g} s")
        time.sleep(0.05)


def connections(port: int) -> list[int]:
    """Return how many connections each worker has just now, that of this question included."""
    return list(stats(port)["workers"]["connections"].values()) if "workers" in stats(port) else []


def stats(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
