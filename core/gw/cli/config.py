"""``gw config``: the configuration as it takes effect."""

from __future__ import annotations

import json
from typing import Any

import click

from gw.cli.configuration import configured, options

__all__ = ["command"]


@click.command("config")
@options
def command(**chosen: Any) -> None:
    """Print every setting as it takes effect, as JSON.

    The output is a configuration. Secrets are masked; values that come from outside are printed as they are written.
    """
    click.echo(json.dumps(configured(**chosen).effective(), indent=4, ensure_ascii=False))
