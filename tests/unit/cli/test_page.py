"""What `gw top` makes of two looks at a gateway, as text and in colour."""

from __future__ import annotations

import re

from rich.console import Console

from gw.cli.live import rendered
from gw.cli.page import Look, as_text, page

STATUS = {
    "version": "1.2.3",
    "pid": 7,
    "state": "serving",
    "generation": 2,
    "uptime_seconds": 93784,
    "workers": [{"number": 1, "pid": 8, "state": "ready", "restarts": 0}],
}


def stats(total=0, **more):
    connections = {"active": 3, "total_accepted": total, "total_rejected": 1}
    return {"requests": {"total": total, "active": 2}, "connections": connections, "upstream": {}, **more}


def endpoint(**more):
    return {"address": "192.0.2.1:80", "healthy": True, "ejected": False, **more}


def upstream(*endpoints, panic=False):
    return {"pool": {"open": 2, "idle": 1, "waiting": 0}, "panic": panic, "endpoints": [*endpoints]}


def shown(before, now, seconds=2.0, **status):
    return page(Look(before, STATUS, 10.0), Look(now, {**STATUS, **status}, 10.0 + seconds))


def rows(before, now):
    return {each.headings[0]: each.rows for each in shown(before, now).tables}


def test_rates_are_those_between_the_looks():
    lines = as_text(shown(stats(100), stats(300))).splitlines()
    assert lines[:3] == [
        "gw 1.2.3  pid 7  serving  generation 2  up 1 d 02:03:04",
        "100 requests/s, 2 under way",
        "3 connections, 100 new/s, 1 turned away",
    ]
    assert lines[4:] == ["WORKER  PID  STATE  CONNECTIONS  RESTARTS", "1       8    ready               0"]


def test_a_counter_that_began_anew_does_not_go_backwards():
    assert shown(stats(100), stats(20)).head[1] == "10 requests/s, 2 under way"


def test_latencies_are_those_of_the_interval():
    counts = [0] * 144
    before, now = counts.copy(), counts.copy()
    before[80], now[80], now[40] = 1000, 1000, 10
    took = shown(stats(latency={"counts": before}), stats(latency={"counts": now})).head[3]
    assert took.startswith("took p50 0.64 ms")
    assert len(shown(stats(latency={"counts": now}), stats(latency={"counts": now})).head) == 3


def test_a_reload_that_failed_is_said():
    assert (
        shown(stats(), stats(), last_reload={"error": "a.yaml:1:2: no"}).head[-1]
        == "the last reload failed: a.yaml:1:2: no"
    )


def test_what_there_is_has_its_table_and_what_there_is_not_has_none():
    assert list(rows(stats(), stats())) == ["WORKER"]
    now = stats(
        upstream={"up": upstream(endpoint(active=1, answered=5, failed=2), endpoint(ejected=True), panic=True)},
        applications={"app /a": {"active": 1, "answered": 10, "failed": 4}},
        circuit_breaker={
            "breakers": {"up": {"state": "open", "window": {"calls": 9, "failures": 8}, "rejected": {"open": 6}}}
        },
        rate_limit={"zones": {"z": {"admitted": 8, "denied": 2, "in_flight": 1, "degraded": 0}}},
    )
    assert rows(stats(), now) == {
        "WORKER": [("1", "8", "ready", "", "0")],
        "UPSTREAM": [("up (panic)", "2", "1", "0", "1 of 2", "")],
        "ENDPOINT": [
            ("192.0.2.1:80", "up", "healthy", "1", "5", "2"),
            ("192.0.2.1:80", "up", "ejected", "", "", ""),
        ],
        "APPLICATION": [("app /a", "1", "5", "2")],
        "BREAKER": [("up", "open", "9", "8", "3")],
        "LIMIT": [("z", "4", "1", "1", "0")],
    }


def test_in_a_terminal_it_is_coloured_and_no_longer_than_that():
    now = stats(upstream={"up": upstream(*(endpoint(ejected=True) for _ in range(100)))})
    console = Console(width=60, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(rendered(shown(stats(), now), 10))
    text = capture.get()
    assert "\x1b[31mejected" in text
    assert text.count("192.0.2.1:80") == 10
    assert "and 90 more" in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 60
