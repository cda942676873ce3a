"""``gw schema``: what a configuration may say, for editors and other programs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gw.cli.configuration import ConfigError, checked, names, refused, source_of
from gw.config.load import load_plugins, schema

__all__ = ["command"]


@click.command("schema")
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), help="A file that names the plugins.")
@click.option("--plugins", metavar="A,B", callback=checked(names), help="The plugins whose settings belong to it.")
def command(file: Path | None, plugins: list[str] | None) -> None:
    """Print the JSON Schema of a configuration, with the settings of the plugins."""
    try:
        loaded = load_plugins({"plugins": plugins} if plugins is not None else source_of(file))
    except ConfigError as error:
        raise refused(error) from error
    click.echo(json.dumps(schema(loaded), indent=2, ensure_ascii=False))
