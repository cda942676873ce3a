"""The plugin ratelimit in a gateway of several workers: exact over HTTP, whoever dies and whatever is reloaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from hashlib import sha256

import pytest
from conftest import to
from started import environment, until

from gw.testing import PATIENCE

WORKERS = 4


def limited(echo, capacity=100, **zone):
    one = {"name": "all", "rate": 0.001, "capacity": capacity, "key_type": "client_ip"} | zone
    return to(echo) | {"workers": WORKERS, "rate_limit": {"enabled": True, "zones": [one]}}


def load(program, port, *, requests, connections=40, path="/status/200"):
    """Send so many requests with h2load, over HTTP/1.1; return how many were answered by which class of status."""
    url = f"http://127.0.0.1:{port}{path}"
    command = [program, "--h1", "-n", str(requests), "-c", str(connections), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 5, check=False)
    found = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return {f"{each}xx": int(count) for each, count in zip(range(2, 6), found.groups(), strict=True)}


def gw(folder, *arguments):
    command = [sys.executable, "-m", "gw", *arguments, "-P", str(folder / "gw-1.pid")]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 3, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def workers(folder):
    return [each["pid"] for each in json.loads(gw(folder, "status", "--json"))["workers"]]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_of_10000_requests_to_4_workers_exactly_the_capacity_passes(serve, echo, peer, tmp_path, loop):
    started = serve(limited(echo) | {"loop": loop})
    assert load(peer("h2load"), started.port, requests=10_000) == {"2xx": 100, "3xx": 0, "4xx": 9900, "5xx": 0}
    assert len(workers(tmp_path)) == WORKERS


def test_a_worker_that_is_killed_takes_no_tokens_along_and_gives_none_away(serve, echo, peer, tmp_path):
    started = serve(limited(echo, 200))
    assert load(peer("h2load"), started.port, requests=150)["2xx"] == 150
    victims = workers(tmp_path)[:2]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    until(lambda: not set(victims) & set(workers(tmp_path)) and len(workers(tmp_path)) == WORKERS, "others follow")
    assert load(peer("h2load"), started.port, requests=500)["2xx"] == 50


def test_a_reload_keeps_what_the_workers_share_even_if_their_table_has_to_grow(serve, echo, peer, tmp_path):
    configuration = limited(echo, 200)
    started = serve(configuration)
    assert load(peer("h2load"), started.port, requests=120)["2xx"] == 120
    more = [{"name": f"more {each}", "rate": 1, "capacity": 10**6, "key_type": "path"} for each in range(3)]
    configuration["rate_limit"]["zones"] += more
    tmp_path.joinpath("gw-1.yaml").write_text(json.dumps(configuration))
    gw(tmp_path, "reload")
    assert load(peer("h2load"), started.port, requests=500)["2xx"] == 80


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_so_many_requests_are_under_way_over_all_workers_and_a_killed_ones_are_free_again(serve, echo, tmp_path, loop):
    zone = {"name": "under way", "algorithm": "concurrency", "limit": 7, "key_type": "client_ip"}
    started = serve(to(echo) | {"workers": WORKERS, "loop": loop, "rate_limit": {"enabled": True, "zones": [zone]}})

    def fill(requests):
        """Send so many that last; return those that are under way when all others were answered."""
        waiting = [socket.create_connection(("127.0.0.1", started.port), PATIENCE) for _ in range(requests)]
        for each in waiting:
            each.sendall(b"GET /slow?ms=600000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: len(answered(waiting)) >= requests - free, "whoever may not pass is told so")
        denied = answered(waiting)
        for each in denied:
            assert each.recv(12) == b"HTTP/1.1 429"
            each.close()
        return [each for each in waiting if each not in denied]

    def answered(some):
        return select.select(some, [], [], 0)[0]

    free = 7
    under_way = fill(40)
    assert len(under_way) == 7
    assert status(started) == 429
    lost = []
    for victim in workers(tmp_path):  # one of the first has some of them
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in workers(tmp_path), "the others go on")  # noqa: B023
        until(lambda: len(workers(tmp_path)) == WORKERS, "another one follows")
        lost = answered(under_way)
        if lost:
            break
    assert lost, "nobody had anything under way"
    for each in lost:
        under_way.remove(each)
        each.close()
    free = len(lost)
    under_way += fill(20)
    assert len(under_way) == 7
    assert status(started) == 429
    for each in under_way:
        each.close()
    until(lambda: status(started) == 200, "what its client has left is not under way")


def status(started):
    connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/status/200")
        return connection.getresponse().status


def test_a_zone_by_address_stands_before_auth_and_one_by_identity_after_it(serve, echo):
    key = {"name": "ada", "sha256": sha256(b"s3cret").hexdigest(), "scopes": []}
    once = {"rate": 0.001, "key_type": "client_ip"}
    zones = [
        once | {"name": "calls", "capacity": 2, "key_type": "identity.sub"},
        once | {"name": "knocks", "capacity": 3, "before": "auth"},
    ]
    auth = {
        "enabled": True,
        "api_keys": {"partners": {"keys": [key]}},
        "policies": [{"name": "all", "enabled": True, "applies_to": [""], "any": [{"api_keys": "partners"}]}],
    }
    more = {"plugins": ["auth", "ratelimit"], "auth": auth, "rate_limit": {"enabled": True, "zones": zones}}
    started = serve(to(echo) | {"workers": 2} | more)

    def ask(key):
        connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/status/200", headers={"x-api-key": key})
            answer = connection.getresponse()
            return answer.status, answer.headers.get_all("ratelimit")

    # It is told of the zone with the smaller share left.
    assert ask("s3cret") == (200, ["limit=2, remaining=1, reset=0"])
    assert ask("guessed") == (401, ["limit=3, remaining=1, reset=0"])
    assert ask("s3cret") == (200, ["limit=3, remaining=0, reset=1000"])
    for each in ("guessed", "s3cret"):  # nobody's key is looked at any more
        assert ask(each) == (429, ["limit=3, remaining=0, reset=1000"])
