"""The cases of the Autobahn test suite, which kosoku runs, against WebSockets that end here and ones that are relayed.

Left out: 9, which is about speed, and 12 and 13, which are thousands of compressed messages.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from nghttpx_upstream import Nghttpx
from started import Started, free_port, start_gateway
from test_websockets_http2 import Hypercorn

LONG = 300
"""Seconds for all cases: they take 10 on a quiet machine."""
HERE = Path(__file__).parent
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}


@pytest.fixture(params=["handler", "relayed", "relayed over HTTP/2"])
def target(request, variant, peer, tmp_path):
    """The port of a gateway that echoes."""
    with contextlib.ExitStack() as stack:
        if request.param == "handler":
            port = free_port()
            command = [sys.executable, str(HERE / "echo_gateway.py"), str(port), variant["engine"], variant["loop"]]
            stack.callback(Started(command).end)
            yield port
            return
        hypercorn = stack.enter_context(contextlib.closing(Hypercorn()))
        upstream = {"port": hypercorn.port}
        if request.param == "relayed over HTTP/2":
            # Not hypercorn's own HTTP/2: it drops a connection when data comes for a stream that it has ended.
            nghttpx = stack.enter_context(contextlib.closing(Nghttpx(peer("nghttpx"), hypercorn.port)))
            upstream = {"port": nghttpx.port, "http2": {"enabled": True, "prefer": "h2c"}}
        settings = {"name": "echo", "host": "127.0.0.1", "proxy": {"route_prefix": "/"}} | upstream
        configuration = variant | {"bind_port": 0, "max_ws_message_size": 0, "upstreams": [settings]}
        yield stack.enter_context(contextlib.closing(start_gateway(configuration, folder=tmp_path))).port


def test_no_case_fails(target, tmp_path):
    program = Path(sys.executable).with_name("kosoku")
    left_out = [option for cases in ("9.*", "12.*", "13.*") for option in ("--exclude", cases)]
    reports = tmp_path / "reports"
    command = [program, "--mode", "fuzzingclient", "--parallelism", "4", *left_out, "--outdir", reports]
    done = subprocess.run([*command, f"127.0.0.1:{target}"], capture_output=True, text=True, check=False, timeout=LONG)
    (results,) = json.loads((reports / "index.json").read_text()).values()
    assert len(results) > 240
    failed = {
        case: (result["behavior"], result["behaviorClose"])
        for case, result in results.items()
        if result["behavior"] not in GOOD or result["behaviorClose"] not in GOOD
    }
    assert not failed, f"{failed}\n{done.stdout[-2000:]}"
