"""``gw help``: the same as ``gw --help``."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("help")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Print how gw is called."""
    assert ctx.parent is not None, "help is a command of the group gw"
    click.echo(ctx.parent.get_help())
