"""What ``gw top`` shows: one page made of two looks at a running gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gw.cli.table import table
from gw.status import percentiles

__all__ = ["Look", "Page", "Table", "as_text", "page"]


class Look(NamedTuple):
    """What a gateway said, and when by `time.monotonic`."""

    stats: Mapping[str, Any]
    status: Mapping[str, Any]
    at: float


class Table(NamedTuple):
    """*rows* under *headings*; in each row the first text says what it is about."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Page:
    """Lines about the whole, then a table for each kind of part that there is."""

    head: list[str]
    tables: list[Table]


class _Since:
    """How much numbers grew between two looks, a second."""

    def __init__(self, before: Look, now: Look) -> None:
        self._before, self._now = before.stats, now.stats
        self._seconds = max(now.at - before.at, 0.001)

    def __call__(self, *path: str) -> str:
        """Return the growth of the number at *path*; after a restart, when it is smaller, all of it."""
        now, before = _at(self._now, path), _at(self._before, path)
        return f"{(now - before if now >= before else now) / self._seconds:.0f}"


def page(before: Look, now: Look) -> Page:
    """Return the page for *now*; rates are those since *before*."""
    stats, status, since = now.stats, now.status, _Since(before, now)
    connections = stats["connections"]
    rejected = connections["total_rejected"]
    head = [
        _whole(status),
        f"{since('requests', 'total')} requests/s, {stats['requests']['active']} under way",
        f"{connections['active']} connections, {since('connections', 'total_accepted')} new/s, {rejected} turned away",
    ]
    if took := _latencies(before.stats, stats):
        head.append("took " + ", ".join(f"{name} {milliseconds:g} ms" for name, milliseconds in took.items()))
    if (last := status.get("last_reload")) is not None and "error" in last:
        head.append(f"the last reload failed: {last['error']}")
    return Page(head, [each for each in _tables(stats, status, since) if each.rows])


def as_text(shown: Page) -> str:
    """Return the page as plain text."""
    return "\n\n".join(["\n".join(shown.head), *(table(*each) for each in shown.tables)])


def _whole(status: Mapping[str, Any]) -> str:
    version, pid, state, generation = (status[key] for key in ("version", "pid", "state", "generation"))
    return f"gw {version}  pid {pid}  {state}  generation {generation}  up {_duration(status['uptime_seconds'])}"


def _tables(stats: Mapping[str, Any], status: Mapping[str, Any], since: _Since) -> Iterator[Table]:
    spread = stats.get("workers", {}).get("connections", {})
    yield Table(
        ("WORKER", "PID", "STATE", "CONNECTIONS", "RESTARTS"),
        [
            (
                str(each["number"]),
                str(each["pid"]),
                each["state"],
                str(spread.get(str(each["number"]), "")),
                str(each["restarts"]),
            )
            for each in status["workers"]
        ],
    )
    upstreams = stats["upstream"]
    yield Table(
        ("UPSTREAM", "OPEN", "IDLE", "WAITING", "HEALTHY", "RETRIES/S"),
        [
            (
                name + (" (panic)" if each["panic"] else ""),
                *(str(each["pool"][key]) for key in ("open", "idle", "waiting")),
                f"{sum(map(_is_well, each['endpoints']))} of {len(each['endpoints'])}",
                since("upstream", name, "retry_budget", "retries") if "retry_budget" in each else "",
            )
            for name, each in upstreams.items()
        ],
    )
    yield Table(
        ("ENDPOINT", "UPSTREAM", "STATE", "ACTIVE", "ANSWERED", "FAILED"),
        [
            (
                each["address"],
                name,
                "ejected" if each["ejected"] else "healthy" if each["healthy"] else "unhealthy",
                *(str(each.get(key, "")) for key in ("active", "answered", "failed")),
            )
            for name, upstream in upstreams.items()
            for each in upstream["endpoints"]
        ],
    )
    yield Table(
        ("APPLICATION", "ACTIVE", "ANSWERED/S", "FAILED/S"),
        [
            (name, str(each["active"]), *(since("applications", name, key) for key in ("answered", "failed")))
            for name, each in stats.get("applications", {}).items()
        ],
    )
    yield Table(
        ("BREAKER", "STATE", "CALLS", "FAILURES", "REJECTED/S"),
        [
            (
                name,
                each["state"],
                *(str(each["window"][key]) for key in ("calls", "failures")),
                since("circuit_breaker", "breakers", name, "rejected", "open"),
            )
            for name, each in _at(stats, ("circuit_breaker", "breakers"), {}).items()
        ],
    )
    yield Table(
        ("LIMIT", "ADMITTED/S", "DENIED/S", "UNDER WAY", "WITHOUT STORE/S"),
        [
            (
                name,
                *(since("rate_limit", "zones", name, key) for key in ("admitted", "denied")),
                str(each["in_flight"]),
                since("rate_limit", "zones", name, "degraded"),
            )
            for name, each in _at(stats, ("rate_limit", "zones"), {}).items()
        ],
    )


def _is_well(endpoint: Mapping[str, Any]) -> bool:
    return endpoint["healthy"] and not endpoint["ejected"]


def _latencies(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """Return what exchanges took that ended between two looks, in ms; nothing where the gateway does not measure it."""
    counts: list[int] = _at(now, ("latency", "counts"), [])
    past: list[int] = _at(before, ("latency", "counts"), [])
    since = [max(0, one - other) for one, other in zip(counts, past, strict=False)]
    return percentiles(since) if any(since) else {}


def _at(value: Any, path: tuple[str, ...], missing: Any = 0) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return missing if value is None else value


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours:02}:{minutes:02}:{seconds:02}"
