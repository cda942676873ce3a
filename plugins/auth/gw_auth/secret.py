"""Secrets that the configuration only points to: where they are read, and what keys they are."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from gw_auth.settings import Introspection

__all__ = ["digest_key", "read_secret"]


def read_secret(settings: Introspection, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the client's secret, or `None` and why there is none."""
    if settings.client_secret_env:
        secret = environ.get(settings.client_secret_env)
        return (secret, "") if secret else (None, f"environment variable {settings.client_secret_env} is not set")
    try:
        text = Path(settings.client_secret_file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return None, f"{settings.client_secret_file} cannot be read: {why}"
    secret = text.removesuffix("\n").removesuffix("\r")
    return (secret, "") if secret else (None, f"{settings.client_secret_file} is empty")


def digest_key(text: str) -> bytes:
    """Return the key that *text* stands for: base64url or base64 of 32 bytes, else its own bytes (behaviour 16.7)."""
    padded = text + "=" * (-len(text) % 4)
    for decode in (_urlsafe, _standard):
        try:
            key = decode(padded)
        except (binascii.Error, ValueError):
            continue
        if len(key) == 32:
            return key
    return text.encode()


def _urlsafe(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)


def _standard(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
