"""What the tests over sockets share: gateways and upstreams as processes, and which engines and loops they run on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import the two modules beside them

from started import Started, start_echo, start_gateway

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # gateways take over what they find, and nohup sets it to be ignored

VARIANTS = [("native", "uvloop"), ("pure", "asyncio"), ("native", "trio")]
"""Each engine and each loop at least once. That every engine runs on every loop is for the unit tests to show."""


@pytest.fixture(scope="session")
def peer():
    """Give the path of a program from outside, or skip; in CI, where it must have been installed, fail."""

    def find(name):
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if path is None:
            message = f"{name} is not installed: apt-get install {name}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
        return path

    return find


@pytest.fixture(scope="session", params=VARIANTS, ids="-".join)
def variant(request):
    """Engine and loop of the gateway, as settings."""
    engine, loop = request.param
    return {"engine": engine, "loop": loop}


@pytest.fixture(scope="session")
def echo():
    """The echo upstream: one for all, since it keeps nothing."""
    with contextlib.closing(start_echo()) as started:
        yield started


@pytest.fixture
def serve(tmp_path):
    """Start gateways with a configuration; each must end well: exit code 0, no traceback."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start(configuration, *arguments: str) -> Started:
            nonlocal count
            count += 1
            return stack.enter_context(
                contextlib.closing(start_gateway(configuration, *arguments, folder=tmp_path, name=f"gw-{count}"))
            )

        yield start


@pytest.fixture(scope="session")
def gateway(variant, echo, tmp_path_factory):
    """A gateway in front of the echo upstream, one for each variant."""
    configuration = to(echo) | variant | {"max_body_size": 0}
    folder = tmp_path_factory.mktemp("gateway")
    with contextlib.closing(start_gateway(configuration, folder=folder)) as started:
        yield started


def to(upstream, **settings):
    """Return the configuration that passes everything on to *upstream*."""
    return {
        "bind_port": 0,
        "upstreams": [
            {"name": "upstream", "host": "127.0.0.1", "port": upstream.port, "proxy": {"route_prefix": "/"}} | settings
        ],
    }
