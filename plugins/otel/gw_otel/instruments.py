"""The metrics that this plugin writes itself: names, units, labels and buckets of behaviour 17.5.

The core and other plugins ask `ctx.figures` for theirs; this plugin reads all of them, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gw import Figures

__all__ = ["METHODS", "Instruments"]

METHODS: Final = {
    method: method
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
}
"""Methods that are said as they are (RFC 9110, RFC 5789); any other is ``_OTHER``, so that nobody can make up labels."""

SECONDS_SERVER: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BYTES: Final = (0.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0)

_SERVICE: Final = "gw.upstream.service"


class Instruments:
    """The families, found or made in *figures*. *buckets* replace the bounds of histograms, by name."""

    def __init__(self, figures: Figures, buckets: Mapping[str, Sequence[float]]) -> None:
        def bounds(name: str, own: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(buckets.get(name, own))

        self.duration = figures.histogram(
            "http.server.request.duration",
            "s",
            "Time from the first byte of a request to the last of its response",
            (
                "http.request.method",
                "http.response.status_code",
                "http.route",
                "network.protocol.version",
                "error.type",
            ),
            bounds=bounds("http.server.request.duration", SECONDS_SERVER),
        )
        self.active = figures.level(
            "http.server.active_requests",
            "{requests}",
            "Requests that are under way",
            ("http.request.method", "http.route"),
        )
        self.request_size = figures.histogram(
            "http.server.request.body.size",
            "By",
            "Bytes of request bodies that came",
            ("http.request.method", "http.route"),
            bounds=bounds("http.server.request.body.size", BYTES),
        )
        self.response_size = figures.histogram(
            "http.server.response.body.size",
            "By",
            "Bytes of response bodies that were sent",
            ("http.request.method", "http.route", "http.response.status_code"),
            bounds=bounds("http.server.response.body.size", BYTES),
        )
        self.client_duration = figures.histogram(
            "http.client.request.duration",
            "s",
            "Time that an attempt at an upstream took",
            (
                "http.request.method",
                "server.address",
                "server.port",
                "http.response.status_code",
                "error.type",
                _SERVICE,
            ),
            bounds=bounds("http.client.request.duration", SECONDS),
        )
        self.client_active = figures.level(
            "http.client.active_requests", "{requests}", "Attempts that are under way", (_SERVICE,)
        )
        self.checkout = figures.histogram(
            "gw.upstream.pool.checkout.wait.duration",
            "s",
            "Time until an attempt had a connection, or had none",
            (_SERVICE, "outcome"),
            bounds=bounds("gw.upstream.pool.checkout.wait.duration", SECONDS),
        )
        self.retries = figures.counter(
            "gw.upstream.retries", "{retries}", "Attempts after the first, by what the one before came to",
            (_SERVICE, "reason"),
        )  # fmt: skip
        self.created = figures.counter("gw.otel.spans.created", "{spans}", "Spans begun").at()
        self.dropped_unsampled = figures.counter(
            "gw.otel.spans.dropped_unsampled", "{spans}", "Spans of traces that are not recorded"
        ).at()
        self.dropped_unended = figures.counter(
            "gw.otel.spans.dropped_unended", "{spans}", "Spans begun when their request was over"
        ).at()
        self.dropped_queue_full = figures.counter(
            "gw.otel.spans.dropped_queue_full", "{spans}", "Spans for which there was no room"
        ).at()
        self.exported = figures.counter(
            "gw.otel.spans.exported", "{spans}", "Spans sent, by what came of it", ("outcome",)
        )
        self.logs_dropped = figures.counter(
            "gw.otel.logs.dropped_queue_full", "{records}", "Log records for which there was no room"
        ).at()
        self.logs_exported = figures.counter(
            "gw.otel.logs.exported", "{records}", "Log records sent, by what came of it", ("outcome",)
        )
        self.export_duration = figures.histogram(
            "gw.otel.export.duration",
            "s",
            "Time that an export took, its retries included",
            ("signal",),
            bounds=bounds("gw.otel.export.duration", SECONDS),
        )
        self.metrics_skipped = figures.counter(
            "gw.otel.metrics_export_skipped", "{exports}", "Pushes of metrics that failed; the next has all of it"
        ).at()
        self.metrics_killed = figures.counter(
            "gw.otel.snapshots_killed_on_timeout", "{exports}", "Pushes of metrics cut off at export_timeout_ms"
        ).at()
        self.invalid = figures.counter(
            "gw.otel.propagation.invalid", "{fields}", "Trace headers that were no such thing", ("format", "reason")
        )
