"""Call the command line in a folder of its own, with an environment of its own."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from gw.cli.main import cli


@pytest.fixture
def gw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("GW_", "REACTOR_"))]:
        monkeypatch.delenv(name)

    def gw(*arguments, environ=None):
        return CliRunner().invoke(cli, arguments, prog_name="gw", env=environ or {}, catch_exceptions=False)

    return gw
