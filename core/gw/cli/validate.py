"""``gw validate``: whether ``gw serve`` would run this configuration."""

from __future__ import annotations

from typing import Any

import click

from gw.cli.configuration import configured, described, options

__all__ = ["command"]


@click.command("validate")
@options
def command(**chosen: Any) -> None:
    """Check the configuration, and say all that is wrong with it."""
    described(configured(**chosen))  # routes that conflict, and filters in a wrong order, show there
    click.echo("Configuration is valid.")
