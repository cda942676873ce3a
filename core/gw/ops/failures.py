"""What keeps a configuration from being served: errors that are the operator's to mend, and how they are told."""

from __future__ import annotations

from typing import Final

from gw.config.errors import ConfigError
from gw.http.engines import EngineMissing
from gw.logs.log_files import LogFileError

__all__ = ["CANNOT_SERVE", "NotReloaded", "reason"]


class NotReloaded(Exception):
    """A reload changed nothing; the text says why."""


CANNOT_SERVE: Final = (OSError, ValueError, ConfigError, EngineMissing, LogFileError, NotReloaded)
"""What bringing a configuration to life may raise without there being a bug."""


def reason(error: Exception) -> str:
    """Return what to tell the operator."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
