"""``gw order``: have a plugin of a running gateway do something."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gw.cli.configuration import pid_file_option
from gw.cli.running import answer_of

__all__ = ["command"]


@click.command("order")
@pid_file_option
@click.argument("plugin")
@click.argument("order")
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
def command(pid_file: str, plugin: str, order: str, values: tuple[str, ...]) -> None:
    """Have PLUGIN do what it calls ORDER, in every worker, and print the answers as JSON."""
    pairs = {}
    for each in values:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{each!r} is not KEY=VALUE")
        pairs[key] = value
    question = {"do": "order", "plugin": plugin, "order": order, "values": pairs}
    click.echo(json.dumps(answer_of(Path(pid_file), question)["workers"], indent=2))
