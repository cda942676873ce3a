"""How an exchange can fail, apart from what a filter decides: each failure knows its answer (behaviour 11.4).

The transports raise these, the chain turns them into replies. No text here reaches a client.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadBody",
    "BadResponse",
    "BodyTimeout",
    "BodyTooLarge",
    "ClientGone",
    "ConnectFailed",
    "ConnectTimeout",
    "Disconnected",
    "Failure",
    "QueueFull",
    "QueueTimeout",
    "ResponseIdle",
    "ResponseTimeout",
    "ResponseTooLarge",
    "ResponseTooLong",
    "SendStalled",
    "Truncated",
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


class ConnectFailed(UpstreamFailure):
    """Refused, unreachable, or the name does not resolve."""

    reason = "gw.connect_failure"


class ConnectTimeout(UpstreamFailure):
    reason = "gw.connect_timeout"


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


class ResponseTimeout(UpstreamFailure):
    status = 504
    reason = "gw.upstream_timeout"


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
