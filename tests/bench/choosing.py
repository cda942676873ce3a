"""What choosing an endpoint among 100 costs, for each way of balancing: at most 2 us.

Prints microseconds per `EndpointSet.pick`, with equal weights and with different ones, nothing being under way.
`--quick` takes seconds instead of half a minute.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from routing import Call, Key, microseconds

from gw.keys import Endpoint
from gw.net.deadlines import Deadlines
from gw.upstream.balance import LeastRequests, PeakEwma, RandomChoice, RingHash, RoundRobin, key_of
from gw.upstream.endpoints import EndpointSet
from gw.upstream.pool import Origin

ENDPOINTS = 100
MOST = 2.0
"""Microseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    quick = parser.parse_args().quick

    exchange = SimpleNamespace(client=SimpleNamespace(ip="198.51.100.7"))
    choosing: dict[Key, Call] = {}
    for most in (1, 7):
        origins = [Origin(Endpoint(f"192.0.2.{i}", 80, 1 + i % most)) for i in range(ENDPOINTS)]
        ring = RingHash(key_of("client_ip"), 1.25)
        for algorithm in (RoundRobin(), LeastRequests(), PeakEwma(), RandomChoice(), ring):
            endpoints = EndpointSet("api", origins, algorithm, Deadlines(lambda: 0.0))
            assert endpoints.pick(exchange) is not None
            choosing[type(algorithm).__name__, most] = (endpoints.pick, exchange)

    costs = microseconds(choosing, quick=quick)
    print(f"{'us a choice':16}{'equal weights':>15}{'1 to 7':>10}")
    for kind in dict.fromkeys(kind for kind, _ in costs):
        print(f"{kind:16}{costs[kind, 1]:15.2f}{costs[kind, 7]:10.2f}")
    dearest = max(costs.values())
    print(f"\nat most {MOST:g} us: {'met' if dearest <= MOST else 'missed'}, {dearest:.2f} us")


if __name__ == "__main__":
    main()
