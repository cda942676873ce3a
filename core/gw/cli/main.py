"""The command ``gw``: which commands there are. Each is imported only when it is called, so that all start fast."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

__all__ = ["cli", "main"]

COMMANDS: Mapping[str, str] = {
    "serve": "gw.cli.serve",
    "stop": "gw.cli.stop",
    "reload": "gw.cli.reload",
    "plan": "gw.cli.plan",
    "status": "gw.cli.status",
    "top": "gw.cli.top",
    "order": "gw.cli.order",
    "validate": "gw.cli.validate",
    "config": "gw.cli.config",
    "routes": "gw.cli.routes",
    "plugins": "gw.cli.plugins",
    "schema": "gw.cli.schema",
    "version": "gw.cli.version",
    "help": "gw.cli.help",
}
"""Command to the module that has it under the name ``command``."""

ALIASES: Mapping[str, str] = {"start": "serve"}


class Commands(click.Group):
    """Finds a command in its module, or among those that the configured plugins add."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if module is not None:
            command: click.Command = import_module(module).command
            return command
        if cmd_name not in self.commands:
            self._ask_plugins(cmd_name)
        return super().get_command(ctx, cmd_name)

    def _ask_plugins(self, name: str) -> None:
        configuration = import_module("gw.cli.configuration")
        try:
            plugins = configuration.default_plugins()
        except configuration.ConfigError as error:
            raise click.UsageError(
                f"No such command {name!r}, and plugins could not be asked for it:\n{error}"
            ) from error
        for plugin in plugins:
            plugins.call(plugin.name, "gw_commands", cli=self)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'gw start' is 'gw serve'.",
)
@click.option("-v", "--version", is_flag=True, help="Print the version.")
@click.option("-V", "--version-verbose", is_flag=True, help="Print the version, and what is in use.")
@click.pass_context
def cli(ctx: click.Context, version: bool, version_verbose: bool) -> None:
    """An API gateway that is extended in Python."""
    wants_version = version or version_verbose
    if ctx.invoked_subcommand is None:
        if wants_version:
            ctx.invoke(import_module(COMMANDS["version"]).command, verbose=version_verbose)
        else:
            click.echo(ctx.get_help())
    elif wants_version:
        raise click.UsageError("--version stands alone, without a command; the command is 'gw version'")


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for a wrong call."""
    cli.main(prog_name="gw")
