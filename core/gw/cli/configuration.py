"""The options that say which configuration is meant, and loading it for a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gw.config import hosts
from gw.config.errors import ConfigError
from gw.config.load import Loaded, Source, load, load_plugins
from gw.plugins import PluginSet

if TYPE_CHECKING:
    from gw.described import RouteRow

__all__ = [
    "ConfigError",
    "checked",
    "configured",
    "default_plugins",
    "described",
    "names",
    "options",
    "pid_file_option",
    "process_options",
    "refuse_daemon",
    "refused",
    "source_of",
]

DEFAULT_FILE = Path("config/gateway.yaml")
DEFAULT_PID_FILE = "/tmp/gw.pid"  # noqa: S108 - the reference's; its owner, its type and its lock are checked
LEVELS = ("trace", "debug", "info", "warn", "error", "critical")

Command = TypeVar("Command", bound=Callable[..., Any])


def checked(check: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return an option's callback that makes a usage error of *check*'s `ValueError`."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else check(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from None

    return callback


def names(text: str) -> list[str]:
    """Split names with commas between them; an empty text names nothing. Raises `ValueError`."""
    found = [name.strip() for name in text.split(",")] if text else []
    if not all(found):
        raise ValueError(f"{text!r} has an empty name")
    return found


def _port(text: str) -> int:
    # Digits only: int() takes signs, spaces and underscores too.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


_OPTIONS = (
    click.option(
        "-c",
        "--config",
        "file",
        type=click.Path(path_type=Path),
        help=f"The file; else GW_CONFIG's, else {DEFAULT_FILE}.",
    ),
    click.option("-H", "--host", "bind_host", metavar="ADDRESS", callback=checked(hosts.host), help="Listen address."),
    click.option(
        "-p", "--port", "bind_port", metavar="N", callback=checked(_port), help="Listen port; 0 takes a free one."
    ),
    click.option(
        "-l", "--log-level", "level", type=click.Choice(LEVELS), help="The least serious level that is logged."
    ),
    click.option(
        "-w", "--workers", type=click.IntRange(min=0), metavar="N", help="Processes that serve; 0 means one a core."
    ),
    click.option("--no-health-endpoint", is_flag=True, help="Have no /health."),
    click.option("--no-ready-endpoint", is_flag=True, help="Have no /ready."),
    click.option("--no-stats-endpoint", is_flag=True, help="Have no /stats."),
    click.option("--no-metrics-endpoint", is_flag=True, help="Have no Prometheus endpoint."),
    click.option("--plugins", metavar="A,B", callback=checked(names), help="Plugins, in the order of their filters."),
    click.option(
        "--to", metavar="URL", callback=checked(hosts.origin), help="Pass everything on to this URL; reads no file."
    ),
)


_PID_FILE = click.option(
    "-P",
    "--pid-file",
    metavar="FILE",
    envvar="GW_PID_FILE",
    default=DEFAULT_PID_FILE,
    show_default=True,
    help="The pid file; empty for none. The control socket stands beside it.",
)
_DAEMON = click.option("-d", "--daemonize", "daemon", is_flag=True, help="Go on in the background when it serves.")


def pid_file_option(command: Command) -> Command:
    """Give *command* the option that says which gateway is meant, as ``pid_file``."""
    return _PID_FILE(command)


def process_options(command: Command) -> Command:
    """Give *command* the options about the process that serves."""
    return _PID_FILE(_DAEMON(command))


def refuse_daemon(loaded: Loaded, pid_file: str) -> None:
    """Exit with 1, and say why, if *loaded* cannot be served by a daemon."""
    found = [*import_module("gw.ops.daemon").problems(loaded, pid_file)]
    if found:
        raise refused(loaded.refuse(found))
    described(loaded)  # what would keep it from serving is told while there is a terminal


def options(command: Command) -> Command:
    """Give *command* the options that `configured` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def configured(
    *,
    file: Path | None,
    bind_host: str | None,
    bind_port: int | None,
    level: str | None,
    workers: int | None,
    no_health_endpoint: bool,
    no_ready_endpoint: bool,
    no_stats_endpoint: bool,
    no_metrics_endpoint: bool,
    plugins: list[str] | None,
    to: tuple[str, int] | None,
    absolute: bool = False,
) -> Loaded:
    """Load what the options ask for. Says on standard error what is wrong; exits with 1 if it cannot be used.

    *absolute*: the file must be found again from another working directory.
    """
    if to is not None and file is not None:
        raise click.UsageError("--to works without a file; leave -c out, or put the URL into upstreams in the file")
    given = {
        "bind_host": bind_host,
        "bind_port": bind_port,
        "log.level": level,
        "workers": workers,
        "plugins": plugins,
        "status.health": False if no_health_endpoint else None,
        "status.ready": False if no_ready_endpoint else None,
        "status.stats": False if no_stats_endpoint else None,
        "status.metrics": False if no_metrics_endpoint else None,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    source = _everything_to(*to) if to is not None else source_of(file)
    if absolute and isinstance(source, Path):
        source = source.absolute()
    try:
        loaded = load(source, overrides=overrides)
    except ConfigError as error:
        raise refused(error) from error
    for warning in loaded.warnings:
        click.echo(str(warning), err=True)
    return loaded


def described(loaded: Loaded) -> list[RouteRow]:
    """Compile the routes of *loaded*, as serving would. Says on standard error what is wrong; exits with 1 then."""
    try:
        rows: list[RouteRow] = import_module("gw.described").describe(loaded)
    except (ConfigError, ValueError) as error:
        raise refused(error) from error
    return rows


def source_of(file: Path | None) -> Source:
    """Return the file to read: the one given, GW_CONFIG's, or the default one if it is there."""
    if file is not None:
        return file
    if named := os.environ.get("GW_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def default_plugins() -> PluginSet:
    """Load the plugins of the configuration that is meant when no option says otherwise. Raises `ConfigError`."""
    return load_plugins(source_of(None))


def refused(error: Exception) -> click.exceptions.Exit:
    """Print what is wrong with the configuration; return the exit to raise."""
    click.echo(str(error), err=True)
    return click.exceptions.Exit(1)


def _everything_to(host: str, port: int) -> Mapping[str, Any]:
    return {"upstreams": [{"name": "upstream", "host": host, "port": port, "proxy": {"route_prefix": "/"}}]}
