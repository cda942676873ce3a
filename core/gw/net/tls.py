"""TLS at both ends: contexts made from files, which of them a connection gets, and what a handshake found out.

A context is never changed once connections have been made with it: new files make a new one, so that a file that is
half written harms nobody. The bytes are moved by the event loop's own transport, on trio by anyio's.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gw.limits import TLS_HANDSHAKE_TIME, TLS_WATCH_PERIOD
from gw.net.deadlines import Deadlines

__all__ = [
    "ClientTls",
    "ClientTlsSettings",
    "KeyPair",
    "ServerTls",
    "ServerTlsSettings",
    "TlsError",
    "Watch",
    "reason_of",
]

log = logging.getLogger("gw.tls")

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class TlsError(ValueError):
    """Certificates, keys or authorities cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, its key, and the names it is for: a host, or ``*.`` and a domain."""

    cert_file: str
    key_file: str
    hosts: tuple[str, ...] = ()


# --- with clients ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerTlsSettings:
    """What one listener speaks. The first pair is for clients that ask for no name, or for one that no other has."""

    pairs: tuple[KeyPair, ...]
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    min_version: str = "1.2"
    ciphers: str = ""
    verify: Literal["none", "optional", "required"] = "none"
    ca_file: str = ""
    handshake_timeout: float = 0.0
    """Seconds; 0 means `TLS_HANDSHAKE_TIME`."""

    def files(self) -> list[str]:
        named = [file for pair in self.pairs for file in (pair.cert_file, pair.key_file)]
        return [*named, self.ca_file] if self.verify != "none" else named


class ServerTls:
    """The TLS of one listener. *context* is what the next connection is accepted with.

    Raises `TlsError` when made with files that cannot be used.
    """

    def __init__(self, name: str, settings: ServerTlsSettings) -> None:
        self.name, self.settings = name, settings
        self.handshake_timeout = settings.handshake_timeout or TLS_HANDSHAKE_TIME
        self.pending = 0
        """Handshakes under way."""
        self.failures = 0
        """Handshakes that failed."""
        self.reloads = 0
        """How often changed files were taken over."""
        self._seen = _looks(settings.files())
        self.context = _server_context(settings)

    def failed(self, peer: str, error: Exception) -> None:
        """Count a handshake that failed, and say so: a flood of them must not flood the log."""
        self.failures += 1
        why = reason_of(error)
        log.debug("listener %s: TLS handshake with %s failed: %s", self.name, peer, why)
        if self.failures & (self.failures - 1) == 0:  # 1, 2, 4, 8, ...
            log.info(
                "listener %s: %d TLS handshakes failed; the last, with %s: %s", self.name, self.failures, peer, why
            )

    def refresh(self) -> bool:
        """Take over files that have changed, for new connections; tell whether that was done.

        Files that cannot be used leave everything as it is, and are said in the log once.
        """
        looks = _looks(self.settings.files())
        if looks == self._seen:
            return False
        self._seen = looks
        try:
            self.context = _server_context(self.settings)
        except TlsError as error:
            log.error("listener %s keeps its certificates: %s", self.name, error)  # noqa: TRY400  # for people, not for us
            return False
        self.reloads += 1
        log.info("listener %s: new certificates", self.name)
        return True

    def adopt(self, other: ServerTls) -> None:
        """Go on with what *other* was made of, for new connections."""
        self.settings, self.handshake_timeout, self.context = other.settings, other.handshake_timeout, other.context
        self._seen = other._seen


class Watch:
    """Has certificate files looked at every `TLS_WATCH_PERIOD`."""

    def __init__(self, listeners: Sequence[ServerTls], deadlines: Deadlines) -> None:
        self._listeners, self._deadlines = listeners, deadlines
        self._next = deadlines.now + TLS_WATCH_PERIOD

    def look(self) -> None:
        """Do so if it is time: called at every turn of the ticker."""
        now = self._deadlines.now
        if now >= self._next:
            self._next = now + TLS_WATCH_PERIOD
            for tls in self._listeners:
                tls.refresh()


def _server_context(settings: ServerTlsSettings) -> ssl.SSLContext:
    contexts = [_with_pair(settings, pair) for pair in settings.pairs]
    first = contexts[0]
    exact: dict[str, ssl.SSLContext] = {}
    below: dict[str, ssl.SSLContext] = {}
    for pair, context in zip(settings.pairs, contexts, strict=True):
        for host in pair.hosts:
            name = host.lower()
            if name.startswith("*."):
                below.setdefault(name[2:], context)
            else:
                exact.setdefault(name, context)
    if exact or below:

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, asked: str | None, _: ssl.SSLContext) -> None:
            name = (asked or "").lower()
            found = exact.get(name) or below.get(name.partition(".")[2])
            if found is not None:
                connection.context = found

        first.sni_callback = choose
    return first


def _with_pair(settings: ServerTlsSettings, pair: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(settings.alpn))
    _set_ciphers(context, settings.ciphers)
    _load_pair(context, pair.cert_file, pair.key_file)
    context.verify_mode = _VERIFY[settings.verify]
    if settings.verify != "none":
        _load_authorities(context, settings.ca_file)
    return context


# --- with upstreams ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientTlsSettings:
    """How one upstream is spoken to (behaviour 4.5, 9)."""

    alpn: tuple[str, ...] = ("http/1.1",)
    ca_file: str = ""
    verify_peer: bool = True
    server_name: str = ""
    """Asked for and verified; empty means the endpoint's host."""
    min_version: str = "1.2"
    cert_file: str = ""
    key_file: str = ""


class _Resuming(ssl.SSLContext):
    """A context that offers the last session it had with a server: the loops leave no other way to say which."""

    sessions: dict[str, ssl.SSLSession]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname or ""
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or self.sessions.get(name))


class ClientTls:
    """The TLS of one upstream, with the sessions that it may resume. Raises `TlsError`, as `ServerTls` does."""

    def __init__(self, settings: ClientTlsSettings) -> None:
        self.settings = settings
        self.looks = _looks([each for each in (settings.ca_file, settings.cert_file, settings.key_file) if each])
        """Tells apart from one that is made after the files have changed."""
        self._resuming = context = _client_context(settings, _Resuming)
        context.sessions = {}
        self.context: ssl.SSLContext = context
        self._http11: ClientTls | None = None

    def http11(self) -> ClientTls:
        """Return one that offers nothing but HTTP/1.1, for endpoints that turned out to want that."""
        if self.settings.alpn == ("http/1.1",):
            return self
        if self._http11 is None:
            self._http11 = ClientTls(replace(self.settings, alpn=("http/1.1",)))
        return self._http11

    def plain_context(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """Return a context of the same settings for others' use, who may change it."""
        context: ssl.SSLContext = _client_context(self.settings, ssl.SSLContext)
        context.set_alpn_protocols(list(alpn))
        return context

    def server_name(self, host: str) -> str:
        """Return the name to ask *host* for, and to verify."""
        return self.settings.server_name or host.removesuffix(".")

    def remember(self, connection: ssl.SSLObject | None) -> None:
        """Keep the session of *connection*, which is about to end, for the next one to the same name."""
        if connection is not None and (session := connection.session) is not None:
            self._resuming.sessions[connection.server_hostname or ""] = session


def _client_context(settings: ClientTlsSettings, kind: Callable[[int], Any]) -> Any:
    context: ssl.SSLContext = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.set_alpn_protocols(list(settings.alpn))
    if not settings.verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.ca_file:
        _load_authorities(context, settings.ca_file)
    else:
        context.load_default_certs()
    if settings.cert_file:
        _load_pair(context, settings.cert_file, settings.key_file)
    return context


# --- both --------------------------------------------------------------------


def _looks(files: list[str]) -> list[tuple[int, int, int] | None]:
    """Return what tells whether *files* have changed."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116  # hot enough to be plain
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found


def _load_pair(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    for file in (cert_file, key_file):
        _readable(file)
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{cert_file} and {key_file} are no certificate and its key: {reason_of(error)}") from None


def _no_password() -> str:
    raise OSError("the key is encrypted; give one without a passphrase")


def _load_authorities(context: ssl.SSLContext, ca_file: str) -> None:
    _readable(ca_file)
    try:
        context.load_verify_locations(ca_file)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{ca_file} has no certificates of authorities: {reason_of(error)}") from None


def _readable(file: str) -> None:
    """Open it: OpenSSL's own message for a missing file does not say which."""
    try:
        with open(file, "rb"):  # noqa: PTH123  # only to see whether it can be
            pass
    except OSError as error:
        raise TlsError(f"{file} cannot be read: {error.strerror}") from None


def _set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    if ciphers:
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            raise TlsError(f"ciphers: OpenSSL knows none of {ciphers!r}") from None


def reason_of(error: Exception) -> str:
    """Say what OpenSSL found wrong, in its words, without the line of its source."""
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(reason, str):
        return reason.lower().replace("_", " ")
    if isinstance(error, TimeoutError) or "taking longer" in str(error):
        return "it took too long"
    return (getattr(error, "strerror", None) or str(error)) or "the connection was closed"
