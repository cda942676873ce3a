"""``gw validate``: whether ``gw serve`` would run this configuration."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from gw.cli.configuration import configured, described, options, process_options, refuse_daemon

__all__ = ["command"]


@click.command("validate")
@options
@process_options
@click.pass_context
def command(ctx: click.Context, /, pid_file: str, daemon: bool, **chosen: Any) -> None:
    """Check the configuration, and say all that is wrong with it; with -d, also what a daemon asks for."""
    if not daemon and ctx.get_parameter_source("pid_file") is ParameterSource.COMMANDLINE:
        raise click.UsageError("-P means something together with -d only")
    loaded = configured(**chosen, absolute=daemon)
    described(loaded)  # routes that conflict, and filters in a wrong order, show there
    if daemon:
        refuse_daemon(loaded, pid_file)
    click.echo("Configuration is valid.")
