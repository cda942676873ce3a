"""The plugin is loaded wherever gw is, since it is one of gw's own: without its libraries too."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["httpcore"] = sys.modules["prometheus_client"] = None
from gw.config.load import load
from gw.described import describe
config = {"plugins": ["otel"], "upstreams": [{"name": "a", "host": "127.0.0.1", "proxy": {"route_prefix": "/"}}]}
describe(load(config | {"observability": {"enabled": True}}, environ={}))
print("well")
"""


def test_it_loads_and_carries_traces_on_without_any_library_of_its_extra():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("well\n", "")
