"""``gw plugins``: what is installed. Imports none of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from gw.cli.table import table
from gw.plugins import available

__all__ = ["command"]


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the installed plugins, their distributions and versions."""
    found = available()
    if as_json:
        click.echo(json.dumps([asdict(plugin) for plugin in found], indent=2))
        return
    rows = [(plugin.name, plugin.distribution, plugin.version, plugin.module) for plugin in found]
    click.echo(table(("PLUGIN", "DISTRIBUTION", "VERSION", "MODULE"), rows))
