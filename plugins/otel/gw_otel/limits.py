"""Every bound of the plugin, each with its precedent. What a user may set is in `gw_otel.settings`."""

from __future__ import annotations

from typing import Final

__all__ = [
    "MAX_ANSWER",
    "MAX_ATTRIBUTES",
    "MAX_ATTRIBUTE_LENGTH",
    "MAX_BUCKETS",
    "MAX_EVENTS",
    "MAX_KEPT",
    "MAX_QUEUE",
    "MAX_RETRY_AFTER",
    "MAX_ROWS",
    "MAX_SPANS_OF_EXCHANGE",
    "MAX_TRACESTATE_MEMBERS",
    "SLICE",
]

MAX_TRACESTATE_MEMBERS: Final = 32
"""Members of a ``tracestate``; with more it is dropped whole. W3C Trace Context 3.3.1.1 and behaviour 17.2: 32."""

MAX_ATTRIBUTES: Final = 128
"""Attributes of one span, and of one event; more are counted and dropped. OpenTelemetry's SDKs and behaviour 17.4: 128."""

MAX_EVENTS: Final = 128
"""Events of one span; more are counted and dropped. OpenTelemetry's SDKs and behaviour 17.4: 128."""

MAX_ATTRIBUTE_LENGTH: Final = 4096
"""Characters of an attribute's text; the rest is cut off. OpenTelemetry's SDKs: no bound, 4095 is what vendors advise."""

MAX_SPANS_OF_EXCHANGE: Final = 256
"""Spans below the one of a request, such as of WebSocket messages; more are dropped. Jaeger's UI: some 10,000 a trace."""

MAX_ROWS: Final = 1000
"""Combinations of method, status, version and error that one route looks up at once; then it begins anew. As MAX_SERIES of gw, a tenth."""

MAX_KEPT: Final = 4096
"""Encoded attributes that an encoder remembers; then it begins anew. nghttp2 keeps a header table of 4,096 bytes; ours has some 400 KiB."""

MAX_QUEUE: Final = 2048
"""Spans, or log records, that wait for export unless set otherwise. OpenTelemetry's SDKs and behaviour 4.9: 2048."""

MAX_ANSWER: Final = 65536
"""Bytes of a collector's answer that are read. The Go exporter: 4 MiB; a partial success has a sentence."""

MAX_RETRY_AFTER: Final = 300.0
"""Seconds of a collector's Retry-After that are honoured. OpenTelemetry's Python exporter gives up after 64 s in all."""

MAX_BUCKETS: Final = 256
"""Bounds of a histogram. Behaviour 4.9: 256; the Prometheus client library: no bound."""

SLICE: Final = 100
"""Spans, or series, that are encoded before others have their turn; some 2 ms. Node's setImmediate yields after each callback."""
