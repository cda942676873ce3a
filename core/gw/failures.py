"""How an exchange can fail, apart from what a filter decides: each failure knows its answer (behaviour 11.4).

The transports raise these, the chain turns them into replies. No text here reaches a client.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AttemptsTimeout",
    "BadBody",
    "BadResponse",
    "BodyTimeout",
    "BodyTooLarge",
    "Cancelled",
    "ClientGone",
    "ConnectFailed",
    "ConnectTimeout",
    "Disconnected",
    "ExchangeTimeout",
    "Failure",
    "HandshakeFailed",
    "Http11Required",
    "MaybeProcessed",
    "NoWebSocket",
    "NotHttp2",
    "PerTryTimeout",
    "QueueDrained",
    "QueueFull",
    "QueueTimeout",
    "ResolveFailed",
    "ResolveTimeout",
    "ResponseIdle",
    "ResponseTimeout",
    "ResponseTooLarge",
    "ResponseTooLong",
    "SendStalled",
    "Truncated",
    "Unprocessed",
    "UpstreamFailure",
]


class Failure(Exception):
    """Something outside the gateway did not do its part."""

    status: ClassVar[int] = 500
    """What the client is told, while it can still be told."""
    reason: ClassVar[str] = "gw.failure"
    """The word for logs and metrics."""
    headers: ClassVar[tuple[tuple[str, str], ...]] = ()


# --- the client --------------------------------------------------------------


class ClientGone(Failure):
    """The client closed or reset its connection; there is nobody left to tell."""

    status = 499
    reason = "gw.client_gone"


class BadBody(Failure):
    """The framing of the request body broke the rules in mid-body."""

    status = 400
    reason = "gw.bad_body"


class BodyTimeout(Failure):
    """The client stopped sending its body, or sent it too slowly."""

    status = 408
    reason = "gw.body_timeout"


class BodyTooLarge(Failure):
    """The request body grew past its limit."""

    status = 413
    reason = "gw.body_too_large"
    headers = (("x-request-body-limit-exceeded", "true"),)


# --- the upstream ------------------------------------------------------------


class UpstreamFailure(Failure):
    """An attempt failed."""

    status = 502
    reason = "gw.upstream_error"
    condition: ClassVar[str] = ""
    """What a retry policy calls it; empty for what is never retried (behaviour 11.5)."""


class ConnectFailed(UpstreamFailure):
    """Refused, unreachable, or the name does not resolve."""

    reason = "gw.connect_failure"
    condition = "connect-failure"


class HandshakeFailed(ConnectFailed):
    """TLS could not be agreed on, or the certificate is not the upstream's."""

    reason = "gw.upstream_tls"


class ConnectTimeout(UpstreamFailure):
    reason = "gw.connect_timeout"
    condition = "connect-failure"


class QueueDrained(UpstreamFailure):
    """Whoever waited for a connection was sent away: somebody found that there is no point in waiting."""

    status = 503
    reason = "gw.pool_drained"


class ResolveFailed(UpstreamFailure):
    """None of the upstream's names has an address."""

    reason = "gw.resolve_failure"
    condition = "connect-failure"


class ResolveTimeout(UpstreamFailure):
    """The last time that they were looked up, no answer came in time."""

    reason = "gw.resolve_timeout"
    condition = "connect-failure"


class QueueFull(UpstreamFailure):
    """Every connection is busy and so is every place in the queue for one."""

    status = 503
    reason = "gw.pool_queue_full"


class QueueTimeout(UpstreamFailure):
    """No connection became free in time."""

    status = 503
    reason = "gw.pool_queue_timeout"


class Disconnected(UpstreamFailure):
    """The connection ended before a response head."""

    reason = "gw.upstream_disconnect"
    condition = "disconnect"


class Unprocessed(Disconnected):
    """The upstream has surely done nothing about the request: it may be sent again whatever its method (RFC 9113 section 8.7)."""

    reason = "gw.upstream_unprocessed"
    condition = "connect-failure"


class Overtaken(Unprocessed):
    """As that, by an upstream that ended the connection and did answer others on it: nginx does so after so many requests."""


class Cancelled(Disconnected):
    """The upstream reset the stream and kept the connection: it knew of the request, so that is its answer."""


class MaybeProcessed(UpstreamFailure):
    """The upstream was given up before it answered: its time after a GOAWAY was over, or it answered no PING."""

    reason = "gw.upstream_maybe_processed"
    condition = "disconnect"


class Http11Required(UpstreamFailure):
    """The upstream answers this request in HTTP/1.1 only."""

    reason = "gw.upstream_http11_required"


class NoWebSocket(UpstreamFailure):
    """A WebSocket was asked for, and the connection to the upstream cannot carry one."""

    reason = "gw.upstream_websocket"


class NotHttp2(UpstreamFailure):
    """HTTP/2 is all that may be spoken, and the upstream did not choose it."""

    reason = "gw.upstream_alpn"
    headers = (("x-h2-limitation", "alpn-not-h2"),)


class Truncated(UpstreamFailure):
    """The connection ended within a response body."""

    reason = "gw.upstream_truncated"


class BadResponse(UpstreamFailure):
    """What came back is not HTTP, or breaks its rules."""

    reason = "gw.upstream_parse_error"


class SendStalled(UpstreamFailure):
    """The upstream stopped taking the request."""

    status = 504
    reason = "gw.upstream_send_stalled"
    condition = "timeout"


class ResponseTimeout(UpstreamFailure):
    status = 504
    reason = "gw.upstream_timeout"
    condition = "timeout"


class PerTryTimeout(UpstreamFailure):
    """One attempt took longer than a retry policy gives it."""

    status = 504
    reason = "gw.per_try_timeout"
    condition = "timeout"


class AttemptsTimeout(UpstreamFailure):
    """All attempts together took longer than a retry policy gives them."""

    status = 504
    reason = "gw.attempts_timeout"


class ResponseIdle(UpstreamFailure):
    """Too long between two parts of a response body."""

    status = 504
    reason = "gw.upstream_idle"


class ResponseTooLong(UpstreamFailure):
    """The whole response took longer than its route allows."""

    status = 504
    reason = "gw.upstream_too_long"


class ResponseTooLarge(UpstreamFailure):
    """A response that a filter wants whole is larger than may be held."""

    reason = "gw.response_too_large"


class ExchangeTimeout(Failure):
    """The whole exchange took longer than its route allows, or than the client said it would wait."""

    status = 504
    reason = "gw.exchange_timeout"
