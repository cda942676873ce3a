"""A configuration as text, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load
from gw.plugins import PluginSet


@pytest.fixture
def loading(tmp_path, monkeypatch):
    """Load a text as the file gw.yaml, without plugins unless the text or the test names some."""
    monkeypatch.chdir(tmp_path)

    def loading(text, environ=None, **rest):
        file = Path("gw.yaml")
        file.write_text(text, encoding="utf-8")
        if "plugins:" not in text and "plugins" not in rest:
            rest["plugins"] = PluginSet()
        return load(file, environ=environ or {}, **rest)

    return loading


@pytest.fixture
def problems(loading):
    """Load a text that is wrong; return what is said about it, line by line."""

    def problems(text, environ=None, **rest):
        with pytest.raises(ConfigError) as caught:
            loading(text, environ, **rest)
        return str(caught.value).splitlines()

    return problems
