"""OTLP over gRPC: which method takes a signal, and what its answers mean (OTLP specification, "OTLP/gRPC").

The messages are those of `gw_otel.protobuf`, and the calls are the gateway's; neither is here.
"""

from __future__ import annotations

from base64 import b64decode
from typing import Final

from gw import GrpcAnswer, Headers
from gw_otel.limits import MAX_RETRY_AFTER
from gw_otel.protobuf import fields_of

__all__ = ["METHODS", "asked_pause", "may_be_sent_again"]

METHODS: Final = {
    signal: f"/opentelemetry.proto.collector.{word}.v1.{word.capitalize()}Service/Export"
    for signal, word in (("traces", "trace"), ("metrics", "metrics"), ("logs", "logs"))
}

_RETRYABLE: Final = frozenset({1, 4, 10, 11, 14, 15})
"""CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS."""
_RESOURCE_EXHAUSTED: Final = 8
"""Sent again only where the collector says when (the same place)."""
_RETRY_INFO: Final = b"type.googleapis.com/google.rpc.RetryInfo"


def may_be_sent_again(answer: GrpcAnswer) -> bool:
    """Tell whether an export that was answered so is worth another attempt."""
    return answer.status in _RETRYABLE or (
        answer.status == _RESOURCE_EXHAUSTED and _retry_info(answer.trailers) is not None
    )


def asked_pause(answer: GrpcAnswer) -> float:
    """Return the seconds that the collector asks for, within reason; 0 where it asks for none."""
    return min(_retry_info(answer.trailers) or 0.0, MAX_RETRY_AFTER)


def _retry_info(trailers: Headers) -> float | None:
    """Return the delay of a ``google.rpc.RetryInfo`` in ``grpc-status-details-bin``; `None` where there is none."""
    text = trailers.get("grpc-status-details-bin")
    if text is None:
        return None
    try:
        for number, detail in fields_of(b64decode(text + "=" * (-len(text) % 4))):
            if number != 3 or not isinstance(detail, bytes):
                continue
            any_ = dict(fields_of(detail))
            value = any_.get(2, b"")
            if any_.get(1) != _RETRY_INFO or not isinstance(value, bytes):
                continue
            delay = dict(fields_of(value)).get(1, b"")
            parts = dict(fields_of(delay)) if isinstance(delay, bytes) else {}
            seconds, nanoseconds = parts.get(1, 0), parts.get(2, 0)
            if isinstance(seconds, int) and isinstance(nanoseconds, int):
                return float(min(seconds, 10**9)) + nanoseconds / 1e9
    except ValueError:
        pass  # what cannot be read asks for nothing
    return None
