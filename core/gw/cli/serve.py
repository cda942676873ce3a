"""``gw serve``: run the gateway until it is told to stop."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from gw.cli.configuration import configured, options, process_options, refuse_daemon

__all__ = ["command"]


@click.command("serve")
@options
@process_options
@click.pass_context
def command(ctx: click.Context, /, pid_file: str, daemon: bool, **chosen: Any) -> None:
    """Run the gateway."""
    loaded = configured(**chosen, absolute=daemon)
    if daemon:
        refuse_daemon(loaded, pid_file)
    # Only now: a configuration that is refused should not wait for the whole gateway to be imported.
    ctx.exit(import_module("gw.ops.process").run(loaded, pid_file=pid_file, daemon=daemon))
