"""What an operator may have breakers do: orders of the plugin, and the commands that are short for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import click

from gw_breaker.breakers import Breakers

__all__ = ["add_commands", "orders"]

Order: TypeAlias = Callable[[Mapping[str, str]], Any]


def orders(breakers: Breakers) -> Mapping[str, Order]:
    """Return the orders: `open`, `close` and `reset` with a `breaker` and perhaps a `reason`, and `list`."""
    by_hand = {"open": breakers.open, "close": breakers.close, "reset": breakers.reset}
    return {
        **{name: partial(_do, breakers, do) for name, do in by_hand.items()},
        "list": lambda _: _states(breakers),
    }


def _do(breakers: Breakers, do: Callable[[str, str], None], values: Mapping[str, str]) -> Any:
    name = values.get("breaker")
    if name is None:
        raise ValueError(f"say which: breaker=NAME; there are {', '.join(breakers.names) or 'none'}")
    try:
        do(name, values.get("reason", ""))
    except LookupError as error:
        raise ValueError(str(error)) from error
    return {name: _states(breakers)[name]}


def _states(breakers: Breakers) -> dict[str, str]:
    return {name: state.value for name, state in breakers.states()}


def add_commands(cli: click.Group) -> None:
    """Add ``gw breaker``."""

    @cli.group("breaker")
    def group() -> None:
        """Look at the circuit breakers of a running gateway, and set them by hand."""

    where = click.option("-P", "--pid-file", help="The pid file of the gateway.")

    def give(context: click.Context, pid_file: str | None, order: str, *values: str) -> None:
        command = cli.get_command(context, "order")
        assert command is not None
        options = () if pid_file is None else ("-P", pid_file)
        context.exit(command.main([*options, "breaker", order, *values], standalone_mode=False) or 0)

    @group.command("list")
    @where
    @click.pass_context
    def _(context: click.Context, pid_file: str | None) -> None:
        """Print each breaker's state, in every worker."""
        give(context, pid_file, "list")

    def add(order: str, what: str) -> None:
        @group.command(order, help=what)
        @where
        @click.option("-r", "--reason", default="", help="What the log and the statistics are to say.")
        @click.argument("name")
        @click.pass_context
        def _(context: click.Context, pid_file: str | None, reason: str, name: str) -> None:
            give(context, pid_file, order, f"breaker={name}", f"reason={reason}")

    add("open", "Open the breaker NAME until it is closed by hand.")
    add("close", "Close the breaker NAME, whatever it knows.")
    add("reset", "Close the breaker NAME and forget what it counted.")
