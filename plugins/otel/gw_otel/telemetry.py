"""Everything that one configuration has of the plugin: filters are made from it, and its background work runs in it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module

import anyio

from gw import Caller, Context, Exchange, LocalRoute, RouteInfo
from gw_otel.destination import Destination, destination, has_destination, resource_of
from gw_otel.export import LogBatches, Push, Readings, SpanBatches
from gw_otel.filter import MessageTelemetry, Telemetry, Tracing, log_of
from gw_otel.instruments import Instruments
from gw_otel.process import OwnProcess
from gw_otel.propagation import Propagation
from gw_otel.protobuf import Protobuf
from gw_otel.protojson import Json
from gw_otel.sampling import Ids, compile_overrides
from gw_otel.settings import Batch, Observability, Otlp, Retries
from gw_otel.spans import Inbound, Tracer

__all__ = ["Observed"]

_QUIET = ("/health", "/stats")
"""Paths that are not sampled, unless the operator lists them: they are asked for all day (behaviour 17.3)."""


class Observed:
    """One configuration, observed."""

    def __init__(self, asked: Observability, ctx: Context, environ: Mapping[str, str] = os.environ) -> None:
        self._asked, self._ctx, self._environ = asked, ctx, environ
        self._callers: dict[tuple[str, bool], Caller] = {}
        self._encoders: dict[str, Json | Protobuf] = {}
        self._resource = resource_of(asked.resource, environ, ctx.log)
        self._instruments = Instruments(ctx.figures, asked.metrics.histogram_buckets)
        metrics = asked.metrics
        if metrics.is_scraped and metrics.enabled and metrics.prometheus.process:
            self._process = ctx.shared("process", lambda: OwnProcess(ctx.figures))
        self._spans: SpanBatches | None = None
        self._logs: LogBatches | None = None
        self._readings: Readings | None = None
        if asked.traces.enabled and asked.traces.exporter:
            self._spans = self._span_batches(asked.traces.otlp, asked.traces.batch)
        if asked.logs.enabled and asked.logs.exporter:
            self._logs = self._log_batches(asked.logs.otlp, asked.logs.batch)
        if asked.metrics.pushes:
            self._readings = self._make_readings()
        self._tracing = self._make_tracing() if asked.traces.enabled else None

    def filter_for(self, route: RouteInfo) -> Telemetry:
        made = MessageTelemetry if self._asked.traces.websocket_messages and self._spans is not None else Telemetry
        return made(route, self._instruments, self._tracing, self._log if self._logs is not None else None)

    def endpoints(self) -> tuple[LocalRoute, ...]:
        metrics = self._asked.metrics
        if not metrics.is_scraped:
            return ()
        resource = self._resource if metrics.prometheus.include_target_info else None
        # It brings prometheus-client, which is not everywhere, and which nobody else here needs.
        made = import_module("gw_otel.exposition").endpoint
        return (
            made(
                metrics.prometheus.path,
                self._ctx.figures,
                self._ctx.all_figures,
                resource,
                self._ctx.log,
                is_on=metrics.enabled,
                process=metrics.prometheus.process,
            ),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Push in the background; at the end, push what is left."""
        work = [each for each in (self._spans, self._logs, self._readings) if each is not None]
        async with anyio.create_task_group() as tasks:
            for each in work:
                tasks.start_soon(each.run)
            yield
            for each in work:
                each.close()

    def stats(self) -> dict[str, int]:
        """Return how much waits to be sent."""
        return {
            "spans_queued": 0 if self._spans is None else len(self._spans),
            "logs_queued": 0 if self._logs is None else len(self._logs),
        }

    def _log(self, ex: Exchange, inbound: Inbound, wall: int, elapsed: float, error: str) -> None:
        assert self._logs is not None
        self._logs.put(log_of(ex, inbound, wall, elapsed, error))

    # --- making it ---------------------------------------------------------------------

    def _make_tracing(self) -> Tracing:
        traces = self._asked.traces
        invalid = self._instruments.invalid

        def count_invalid(name: str, reason: str) -> None:
            invalid.at(name, reason).value += 1

        propagation = Propagation(traces.propagators, count_invalid)
        quiet = (*_QUIET, self._asked.metrics.prometheus.path) if self._asked.metrics.is_scraped else _QUIET
        return Tracing(
            Tracer(Ids(), propagation.inject, self._instruments.dropped_unended, idp_spans=traces.auth_idp_span),
            propagation,
            compile_overrides(traces.sampler, quiet),
            None if self._spans is None else self._spans.put,
            errors=traces.tail.errors,
            slow=traces.tail.slow_ms / 1000,
            baggage=traces.baggage_attributes,
            filters=traces.filters,
        )

    def _span_batches(self, otlp: Otlp, batch: Batch) -> SpanBatches:
        return SpanBatches(
            self._push("traces", otlp, batch.retries),
            most=batch.max_queue_size,
            at_once=batch.max_export_batch_size,
            delay=batch.schedule_delay_ms / 1000,
            dropped=self._instruments.dropped_queue_full,
            exported=self._instruments.exported,
        )

    def _log_batches(self, otlp: Otlp, batch: Batch) -> LogBatches:
        return LogBatches(
            self._push("logs", otlp, batch.retries),
            most=batch.max_queue_size,
            at_once=batch.max_export_batch_size,
            delay=batch.schedule_delay_ms / 1000,
            dropped=self._instruments.logs_dropped,
            exported=self._instruments.logs_exported,
        )

    def _make_readings(self) -> Readings:
        metrics = self._asked.metrics
        return Readings(
            self._push("metrics", metrics.otlp, Retries()),
            self._ctx.figures,
            interval=metrics.export_interval_ms / 1000,
            timeout=metrics.export_timeout_ms / 1000,
            skipped=self._instruments.metrics_skipped,
            killed=self._instruments.metrics_killed,
        )

    def _push(self, signal: str, otlp: Otlp, retries: Retries) -> Push:
        took = self._instruments.export_duration.at(signal)
        # Each worker sends for itself, and what they count is not to be taken for one.
        resource = sorted({"process.pid": str(os.getpid()), **dict(self._resource)}.items())
        return Push(signal, self._destination(signal, otlp), resource, retries, took, self._ctx.log)

    def _destination(self, signal: str, otlp: Otlp) -> Destination:
        if not has_destination(otlp, signal, self._environ):
            raise ValueError(f"observability.{signal}.otlp names neither an upstream nor an endpoint")
        return destination(otlp, signal, self._environ, self._caller, self._encoders, self._ctx.log)

    def _caller(self, upstream: str, grpc: bool) -> Caller:
        """Return the caller for *upstream*: one for all signals that go there."""
        if (upstream, grpc) not in self._callers:
            self._callers[upstream, grpc] = self._ctx.caller(upstream, http2=grpc)
        return self._callers[upstream, grpc]
