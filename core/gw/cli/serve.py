"""``gw serve``: run the gateway until it is told to stop."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from gw.cli.configuration import configured, options

__all__ = ["command"]


@click.command("serve")
@options
@click.pass_context
def command(ctx: click.Context, /, **chosen: Any) -> None:
    """Run the gateway."""
    loaded = configured(**chosen)
    # Only now: a configuration that is refused should not wait for the whole gateway to be imported.
    ctx.exit(import_module("gw.gateway").run(loaded))
