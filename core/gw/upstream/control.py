"""The gateway's own calls, over httpcore, or over gRPC: to identity providers, collectors, whomever a plugin has to ask.

Not the data path: one small request, one answer that is read whole, bounded in time and in size. Nothing is retried,
no redirect is followed, no proxy of the environment is used. httpcore comes with the extras that need it.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio

from gw.filters import Headers
from gw.limits import CALLER_CONNECTIONS, CALLER_IDLE_TIME

__all__ = ["Answer", "CallFailed", "Caller", "GrpcAnswer"]


class CallFailed(Exception):
    """There is no answer. The message says what happened, and nothing of what was sent."""

    def __init__(self, kind: Literal["timeout", "connect", "protocol", "too_large"], message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """A word for metrics."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class GrpcAnswer:
    """What came back of a unary call."""

    status: int
    """Of gRPC: 0 is OK. Where the other end did not say, it is made of the status of HTTP."""
    message: str
    """What the other end says about it."""
    body: bytes
    """The message, without its prefix; empty unless all is well."""
    trailers: Headers


class Caller:
    """Makes calls. One is shared by as many tasks as like; `aclose` ends its connections.

    *address* is where every call goes, whatever host its URL names, as an upstream's does; the URL's host is then
    sent as ``Host`` only, and a URL that is a path gets the address's. Without it a call goes where its URL says. *tls* says how the peer is verified, `None` with
    an *address* means cleartext; *server_name* is the SNI and what the certificate is checked against, the host if empty.
    """

    def __init__(
        self,
        address: tuple[str, int] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        try:
            self._core: Any = import_module("httpcore")
        except ImportError:
            raise ModuleNotFoundError(
                "the gateway's own calls need httpcore, which is not installed; run pip install 'gw[auth]' or 'gw[otel]'"
            ) from None
        self._address, self._tls, self._server_name = address, tls, server_name
        self._pool: Any = None
        self._unary: Any = None
        self._grpc_tls: ssl.SSLContext | None = None

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout: float,  # noqa: ASYNC109  # it is part of what a call is, and becomes a scope right here
        most: int,
    ) -> Answer:
        """Send one request, wait for all of the answer: at most *timeout* seconds and *most* bytes of body.

        Raises `CallFailed`.
        """
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        if self._address is not None:
            (host, port), secure = self._address, self._tls is not None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        core = self._core
        asked = core.URL(
            scheme=b"https" if secure else b"http", host=host.encode(), port=port, target=target.encode("ascii")
        )
        authority = parts.netloc.rpartition("@")[2] or _authority(host, port, secure=secure)
        lines = [(b"host", authority.encode("ascii"))]
        lines += ((name.encode("ascii"), value.encode("latin-1")) for name, value in headers)
        if body or method not in {"GET", "HEAD"}:
            lines.append((b"content-length", b"%d" % len(body)))
        extensions = {"sni_hostname": self._server_name} if self._server_name else {}
        received = bytearray()
        response: Any = None
        try:
            with anyio.fail_after(timeout):
                async with self._open().stream(
                    method, asked, headers=lines, content=body, extensions=extensions
                ) as response:
                    too_large = False
                    async for chunk in response.aiter_stream():
                        received += chunk
                        if len(received) > most and not too_large:
                            # Not a break: httpcore's generators inside this one want to be run to their end, and
                            # without their connection that is the next step.
                            too_large = True
                            await response.aclose()
        except (TimeoutError, core.TimeoutException):
            raise CallFailed("timeout", f"no answer within {timeout:g} s") from None
        except (core.ConnectError, ssl.SSLError, OSError) as error:
            raise CallFailed("connect", f"cannot connect to {host}:{port}: {error}") from None
        except (core.NetworkError, core.ProtocolError, core.UnsupportedProtocol) as error:
            if len(received) <= most:
                raise CallFailed("protocol", f"{type(error).__name__}: {error}") from None
        if len(received) > most:
            raise CallFailed("too_large", f"the answer has more than {most} bytes")
        found = Headers([(name.lower(), value) for name, value in response.headers])
        return Answer(response.status, found, bytes(received))

    def _open(self) -> Any:
        if self._pool is None:
            self._pool = self._core.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=CALLER_CONNECTIONS,
                max_keepalive_connections=CALLER_CONNECTIONS,
                keepalive_expiry=CALLER_IDLE_TIME,
            )
        return self._pool

    async def unary(
        self,
        url: str,
        message: bytes,
        *,
        headers: Iterable[tuple[str, str]] = (),
        compressed: bool = False,
        timeout: float,  # noqa: ASYNC109  # as above
        most: int,
    ) -> GrpcAnswer:
        """Make a unary call of gRPC: *url*'s path is ``/package.Service/Method``, and *message* what is sent, encoded.

        It may be *compressed* already, by what ``grpc-encoding`` among the *headers* says. TLS has to offer ``h2``:
        `Context.caller` makes it so where it is told. Otherwise as `call`; a status of gRPC is an answer, not a failure.
        """
        module = import_module("gw.upstream.unary")  # late: few have anybody to call so
        if self._unary is None:
            self._unary = module.Unary()
        parts = urlsplit(url)
        host, tls = parts.hostname or "", self._tls
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if self._address is not None:
            host, port = self._address
        elif parts.scheme != "https":
            tls = None
        elif tls is None:
            tls = self._default_tls()
        authority = parts.netloc.rpartition("@")[2] or _authority(host, port, secure=tls is not None)
        fields = module.head_of(authority, parts.path or "/", timeout, headers, tls=tls is not None)
        body = module.message_of(message, compressed=compressed)
        try:
            with anyio.fail_after(timeout):
                reply = await self._unary.call(host, port, tls, self._server_name, fields, body, most)
        except TimeoutError:
            raise CallFailed("timeout", f"no answer within {timeout:g} s") from None
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise CallFailed("connect", f"cannot connect to {host}:{port}: {error}") from None
        except module.TooLarge:
            raise CallFailed("too_large", f"the answer has more than {most} bytes") from None
        except module.Broken as error:
            raise CallFailed("protocol", str(error)) from None
        return GrpcAnswer(reply.status, reply.message, reply.body, reply.trailers)

    def _default_tls(self) -> ssl.SSLContext:
        if self._grpc_tls is None:
            self._grpc_tls = ssl.create_default_context()
            self._grpc_tls.set_alpn_protocols(["h2"])
        return self._grpc_tls

    async def aclose(self) -> None:
        """Close its connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()
        unary, self._unary = self._unary, None
        if unary is not None:
            await unary.aclose()

    def __repr__(self) -> str:
        return f"<Caller to {':'.join(map(str, self._address)) if self._address else 'anywhere'}>"


def _authority(host: str, port: int, *, secure: bool) -> str:
    """Return the Host of an address: the port is left out where it is the scheme's own (RFC 9110 section 7.2)."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == (443 if secure else 80) else f"{bracketed}:{port}"
