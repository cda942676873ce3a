"""Attacks over HTTP/2 on a running gateway: its memory, and an honest client's latency while they last."""

import contextlib
import http.client
import socket
import threading
import time

import pytest
from conftest import to
from frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GET,
    HEADERS,
    PING,
    POST,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    codes,
    frame,
    head,
)
from hpack import Encoder

from gw.testing import PATIENCE

ATTACK_TIME = 0.8
"""Seconds that each attack goes on, on connection after connection."""
WARM_UP = 0.3
"""Seconds of attack before memory is looked at: what the process takes once is not what it loses."""
ATTACKERS = 3
MOST_GROWTH = 24 << 20
"""Bytes of memory. Each attack sends more than that, or asks for more."""
UNREAD = ATTACKERS * 100 * (256 << 10)
"""Bytes that answers may take which nobody reads: what came in one read of each, on 100 streams of each connection."""
MOST_LATENCY = 0.5
"""Seconds: an attacker costs CPU time, and tests run on busy machines; without bounds it would be many."""


def bomb() -> bytes:
    """A head of few bytes that unpacks to megabytes: one large field, then references to it (the HPACK bomb)."""
    encoder = Encoder()
    block = encoder.encode([*GET, ("x-bomb", "0" * 4000)])
    return frame(HEADERS, END_HEADERS | 1, 1, block + b"\xbe" * 12_000)


def many(kind: int, payload: bytes, stream: int = 0, count: int = 20_000) -> bytes:
    return frame(kind, 0, stream, payload) * count


ATTACKS = {
    "rapid reset": b"".join(head(n, GET) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 20_000, 2)),
    "resets by us": b"".join(
        head(n, POST, END_HEADERS) + frame(WINDOW_UPDATE, 0, n, bytes(4)) for n in range(1, 20_000, 2)
    ),
    "PING": many(PING, bytes(8)),
    "SETTINGS": many(SETTINGS, b"\0\4\0\0\xff\xff"),
    "PRIORITY": many(PRIORITY, bytes(5), 1),
    "WINDOW_UPDATE": many(WINDOW_UPDATE, b"\0\0\0\1"),
    "empty DATA": head(1, POST, END_HEADERS) + many(DATA, b"", 1),
    "CONTINUATION": frame(HEADERS, 1, 1, head(1, GET)[9:]) + many(CONTINUATION, b"", 1),
    "large CONTINUATION": frame(HEADERS, 1, 1, head(1, GET)[9:])
    + frame(CONTINUATION, 0, 1, b"\x00\x7f\xff\x01" + b"0" * 16_000) * 500,
    "HPACK bomb": bomb(),
    "large frames": frame(HEADERS, END_HEADERS, 1, bytes(1 << 20)),
    "slow bodies": b"".join(head(n, POST, END_HEADERS) + frame(DATA, 0, n, bytes(16_000)) for n in range(1, 200, 2)),
    "answers unread": frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
    + b"".join(head(n, [*GET[:3], (":path", "/bytes?n=4000000")]) for n in range(1, 200, 2)),
}


def attack(port: int, data: bytes, until: float) -> list[str]:
    """Send *data* on one connection after another; return what each was told."""
    told = []
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            said = b""
            with contextlib.suppress(OSError):
                connection.sendall(START + data)
                while time.monotonic() < until and (part := connection.recv(65536)):
                    said += part
            with contextlib.suppress(IndexError, ValueError):
                told += [f"{kind} {code}" for kind, _, code in codes(said)[-1:]]
    return told


def honest(port: int, until: float) -> list[float]:
    """Ask again and again; return how long each answer took."""
    took = []
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        began = time.monotonic()
        connection.request("GET", "/honest")
        assert connection.getresponse().status == 200
        took.append(time.monotonic() - began)
        connection.close()
    return took


@pytest.mark.parametrize("engine", ["native", "pure"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_neither_memory_nor_the_others_their_time(serve, echo, engine, name):
    # What an upstream is kept busy with needs no HTTP/2, and is not what this is about: the honest client needs none.
    route = {"match": {"path": "/honest"}, "rewrite": {"respond": {"status": 200, "body": "ok"}}}
    settings = {"engine": engine, "max_body_size": 0, "plugins": ["rewrite"], "routes": [route]}
    gateway = serve(to(echo, pool={"max_connections": 1000}) | settings)
    attack(gateway.port, ATTACKS[name], time.monotonic() + WARM_UP)
    before = gateway.memory()
    until = time.monotonic() + ATTACK_TIME
    told: list[str] = []
    attackers = [
        threading.Thread(target=lambda: told.extend(attack(gateway.port, ATTACKS[name], until)))
        for _ in range(ATTACKERS)
    ]
    for attacker in attackers:
        attacker.start()
    took = sorted(honest(gateway.port, until))
    growth = gateway.memory() - before
    for attacker in attackers:
        attacker.join()
    assert took[len(took) * 9 // 10] < MOST_LATENCY, f"{len(took)} answers, the slowest {took[-1]:.2f} s"
    assert growth < MOST_GROWTH + (UNREAD if name == "answers unread" else 0), f"{growth >> 20} MiB more"
    honest(gateway.port, time.monotonic() + 0.1)
