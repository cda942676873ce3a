"""The sample's own tests need it to be installed: tests/integration/test_sample_plugin.py does that, and runs them."""

from importlib.util import find_spec

collect_ignore = ["tests"] if find_spec("gw_sample") is None else []
