"""What upstreams are told about who is asking, and what clients therefore must not say (behaviour 11.1 and 16.4).

Identity headers are made once for each identity. What a client sends under their names is removed first, spelled with
dashes or with underscores: many a server makes no difference between the two.
"""

from __future__ import annotations

import logging
from itertools import product
from typing import Any

from gw import Headers
from gw_auth.settings import Forward
from gw_auth.verdicts import Recognised

__all__ = ["Forwarding", "spellings"]

UNDETERMINED = "x-auth-undetermined"


def spellings(name: str) -> frozenset[bytes]:
    """Return every way to write *name* with dashes or underscores."""
    parts = name.lower().replace("_", "-").split("-")
    found = (
        "".join(a + b for a, b in zip(parts, (*marks, ""), strict=True))
        for marks in product("-_", repeat=len(parts) - 1)
    )
    return frozenset(each.encode("ascii") for each in found)


class Forwarding:
    """Writes the headers that `auth.forward` asks for."""

    __slots__ = (
        "_claims",
        "_issuer",
        "_log",
        "_scopes",
        "_subject",
        "identity_names",
        "raw",
        "strip_always",
        "undetermined",
        "without_authorization",
    )

    def __init__(self, settings: Forward, log: logging.Logger, others: tuple[str, ...] = ()) -> None:
        """Make it; *others* are headers that only a forward-auth service may set."""
        self._log = log
        self._subject, self._issuer = settings.subject_header, settings.issuer_header
        self._scopes, self.raw = settings.scopes_header, settings.raw_jwt_header
        self._claims = tuple((claim, header) for claim, header in settings.claims_to_headers.items() if header)
        names = (self._subject, self._issuer, self._scopes, self.raw, *(header for _, header in self._claims), *others)
        marks = spellings(UNDETERMINED)
        self.identity_names = marks.union(*(spellings(name) for name in names if name))
        """Removed wherever a verdict is given."""
        self.strip_always = self.identity_names if settings.strip_inbound_identity_headers else marks
        """Removed from every request."""
        self.without_authorization = not settings.preserve_authorization
        self.undetermined = Headers.of([(UNDETERMINED, "true")])

    def lines(self, found: Recognised) -> Headers:
        """Return the headers for *found*, made the first time."""
        if found.lines_for is self and found.lines is not None:
            return found.lines
        identity, made = found.identity, Headers()
        self._put(made, self._subject, identity.subject)
        self._put(made, self._issuer, identity.issuer)
        self._put(made, self._scopes, " ".join(found.scopes))
        for claim, header in self._claims:
            self._put(made, header, _as_text(identity.claims.get(claim)))
        for name, value in found.extra:
            self._put(made, name, value)
        found.lines, found.lines_for = made, self
        return made

    def _put(self, headers: Headers, name: str, value: str) -> None:
        if not name or not value:
            return
        try:
            text = value.encode("utf-8").decode("latin-1")  # what is not ASCII is sent as the UTF-8 it is
        except UnicodeEncodeError:
            text = "\0"
        if any((c < " " and c != "\t") or c == "\x7f" for c in text):
            self._log.warning("header %s is not sent: the value has control characters", name)
            return
        headers.add(name, text)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""
