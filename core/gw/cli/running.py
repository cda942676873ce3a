"""The gateway that is running: found by its pid file, asked over its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gw.ops.control import ControlError, ask, beside
from gw.ops.pid_file import PidFileError, running

__all__ = ["NoAnswer", "answer_of", "asked", "pid_of"]


class NoAnswer(Exception):
    """There is no gateway, or it refused; the text says which, and why."""


def pid_of(pid_file: Path) -> int:
    """Return the pid of the gateway with *pid_file*. Says on standard error if there is none, and exits with 1."""
    try:
        return _pid_of(pid_file)
    except NoAnswer as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(1) from error


def answer_of(pid_file: Path, question: Mapping[str, Any], *, patience: float = 10.0) -> dict[str, Any]:
    """Ask the gateway with *pid_file*. Says on standard error what it refuses and why, and exits with 1."""
    try:
        return asked(pid_file, question, patience=patience)
    except NoAnswer as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(1) from error


def asked(pid_file: Path, question: Mapping[str, Any], *, patience: float = 10.0) -> dict[str, Any]:
    """Ask the gateway with *pid_file*; raises `NoAnswer`."""
    _pid_of(pid_file)
    try:
        return ask(beside(pid_file), question, patience=patience)
    except ControlError as error:
        raise NoAnswer(str(error)) from error


def _pid_of(pid_file: Path) -> int:
    try:
        pid = running(pid_file)
    except PidFileError as error:
        raise NoAnswer(f"Error: {error}") from error
    if pid is None:
        raise NoAnswer(f"gw is not running (pid file {pid_file}).")
    return pid
