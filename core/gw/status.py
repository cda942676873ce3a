"""What a gateway says about itself: ``/health``, ``/ready`` and ``/stats``, and how the figures of several add up.

Figures are plain values, ready for JSON. Who may ask, and where, is not known here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol as Interface

from gw.filters import Exchange, Reply
from gw.hookspecs import LocalRoute
from gw.version import __version__

if TYPE_CHECKING:
    from gw.config.load import Loaded
    from gw.config.model import StatusConfig
    from gw.figures import Figures
    from gw.generation import Current

__all__ = ["Latencies", "Subject", "as_json", "as_stats", "percentiles", "routes", "snapshot", "summed"]

_JSON: Final = (("content-type", "application/json"), ("cache-control", "no-store"))
_LONGEST: Final = 36
"""Bits of the longest time that is told apart, in microseconds: 19 hours."""
_LATEST: Final = (
    "_epoch",
    "_ms",
    "_shared",
    "age_seconds",
    "uptime_seconds",
    "generation",
    "number",
    "priority",
    "weight",
    "share",
)
"""Ends of the names of numbers of which the largest counts, rather than the sum."""


class Subject(Interface):
    """What is told about: a gateway."""

    addresses: dict[str, tuple[str, int]]
    rejected: int
    requests: int
    started: float
    """When it began, by `time.time`; 0.0 before that."""
    ask_stats: Callable[[], Awaitable[dict[str, Any]]]
    latencies: Latencies | None
    _current: Current

    @property
    def accepted(self) -> int: ...

    @property
    def loaded(self) -> Loaded: ...

    @property
    def is_ready(self) -> bool: ...

    def protocols(self) -> Mapping[str, int]:
        """Return the connections that are open, by what is spoken on them, and the HTTP/2 streams as ``h2_streams``."""


class Latencies:
    """How long exchanges took, from the head's first byte to their end: counts by size, four steps to each power of two."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * (4 * _LONGEST)

    def __call__(self, ex: Exchange) -> None:
        took = int((time.monotonic() - ex.started) * 1_000_000) or 1
        bits = took.bit_length()
        self.counts[min(4 * bits + ((took << 3) >> bits & 3), 4 * _LONGEST - 1)] += 1


def percentiles(counts: Sequence[int]) -> dict[str, float]:
    """Return what so many in a hundred exchanges took at most, in milliseconds; exact to an eighth."""
    total, passed, found = sum(counts), 0, {}
    wanted = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)]
    for at, count in enumerate(counts):
        passed += count
        while wanted and count and passed >= total * wanted[0][1]:
            found[wanted.pop(0)[0]] = round((5 + at % 4) / 8 * 2 ** (at // 4) / 1000, 3)
    return found


def as_json(status: int, value: Any) -> Reply:
    """Return an answer with *value*, which is not to be cached."""
    return Reply(status, json.dumps(value).encode() + b"\n", _JSON, "gw.status")


def as_stats(figures: Figures) -> dict[str, Any]:
    """Return what was counted, ready for JSON, by the names of the families: of histograms how many values, and their sum."""
    found: dict[str, Any] = {}
    for family in figures:
        series: list[dict[str, Any]] = []
        for values, each in family.rows().items():
            labels = {key: value for key, value in zip(family.labels, values, strict=True) if value}
            if family.kind == "histogram":
                series.append({"labels": labels, "count": sum(each.counts), "sum": each.sum})
            else:
                series.append({"labels": labels, "value": each.value})
        if series:
            found[family.name] = {"kind": family.kind, "unit": family.unit, "series": series}
    return found


def routes(subject: Subject, config: StatusConfig) -> Iterator[LocalRoute]:
    """Yield the gateway's own paths, as far as *config* has them on (behaviour 19)."""

    async def health(_: Exchange) -> Reply:
        uptime = int(time.time() - subject.started)
        return as_json(200, {"status": "ok", "pid": os.getpid(), "uptime_seconds": uptime})

    async def ready(_: Exchange) -> Reply:
        return as_json(200, {"ready": True}) if subject.is_ready else as_json(503, {"ready": False})

    async def all_stats(_: Exchange) -> Reply:
        return as_json(200, await subject.ask_stats())

    for path, handler, wanted in (
        ("/health", health, config.health),
        ("/ready", ready, config.ready),
        ("/stats", all_stats, config.stats),
    ):
        if wanted:
            yield LocalRoute(path, handler, name=f"gw:{path[1:]}")


def snapshot(subject: Subject) -> dict[str, Any]:
    """Return the figures of one process: those of behaviour 19, and ours."""
    config = subject.loaded.config
    current = subject._current
    generation = current.now
    open_now = dict(subject.protocols())
    streams = open_now.pop("h2_streams", 0)
    host, port = subject.addresses.get("main", ("", 0))
    serving = [*current.old, *([] if generation is None else [generation])]
    found: dict[str, Any] = {
        "uptime_seconds": int(time.time() - subject.started),
        "version": __version__,
        "connections": {
            "active": sum(open_now.values()),
            "active_http1": open_now.get("http1", 0),
            "active_http2": open_now.get("http2", 0),
            "active_h2_streams": streams,
            "total_accepted": subject.accepted,
            "total_rejected": subject.rejected,
        },
        "requests": {"total": subject.requests, "active": sum(each.users for each in serving)},
        "config": {
            "bind_host": config.bind_host,
            "bind_port": config.bind_port,
            "worker_threads": config.processes(),
            "max_connections": config.max_connections,
            "idle_timeout_sec": config.idle_timeout_sec,
            "request_timeout_sec": config.request_timeout_sec,
            "tls_enabled": any(each.tls.enabled for each in config.all_listeners()),
            "http2_enabled": config.http2.enabled,
        },
        "bind": {
            "host": config.bind_host,
            "resolved_ip": host,
            "resolved_authority": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "resolved_family": "v6" if ":" in host else "v4",
        },
        "generation": 0 if generation is None else generation.number,
        "generations": [{"number": each.number, "exchanges": each.users} for each in serving],
        "upstream": {},
    }
    if generation is not None:
        if generation.apps:
            found["applications"] = {name: app.stats() for name, app in generation.apps.items()}
        services = [*generation.services.values()]
        found["upstream"] = {each.config.name: each.stats() for each in services}
        if services:
            stale = sum(each.names.stale_served for each in services if each.names is not None)
            found["dns"] = services[0].resolver.stats() | {"total_reload_stale_served": stale}
        found |= generation.stats()
    if subject.latencies is not None:
        found["latency"] = {"counts": subject.latencies.counts}
    return found


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of several processes as one: numbers add up, but ages, times and numbers of generations do not.

    What cannot be added, such as text and settings, is that of the first.
    """
    found: Any = parts[0] if parts else {}
    for part in parts[1:]:
        found = {
            key: found[key] if key in {"config", "bind"} and key in found else _sum(key, found.get(key), part.get(key))
            for key in {**found, **part}
        }
    return dict(found)


def _sum(name: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _sum(key, one.get(key), other.get(key)) for key in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        if len(one) == len(other):
            return [_sum(name, *pair) for pair in zip(one, other, strict=True)]
        return one if len(one) > len(other) else other
    if isinstance(one, bool) and isinstance(other, bool):
        return one and other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return max(one, other) if name.endswith(_LATEST) else one + other
    return one
