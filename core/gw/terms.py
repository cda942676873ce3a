"""From settings to the terms on which connections, paths and WebSockets are served."""

from __future__ import annotations

from gw.config.model import GatewayConfig, RouteWebSocketConfig
from gw.downstream.http1 import Http1Settings
from gw.downstream.http2 import Http2Settings
from gw.http.h1 import ReaderLimits
from gw.http.h2 import FloodLimits, SessionSettings
from gw.http.handshake import normalised_origin
from gw.http.paths import PathPolicy
from gw.limits import MAX_HEADER_COUNT, MAX_TRAILER_SIZE
from gw.tunnel import Live, Terms

__all__ = ["http1_settings", "http2_settings", "path_policy", "terms_of"]


def terms_of(config: GatewayConfig, live: Live, generation: int, route: RouteWebSocketConfig | None = None) -> Terms:
    """Return the terms of WebSockets: what the gateway says, and over it what the *route* says (behaviour 8)."""
    settings = config.websocket if route is None else route.over(config.websocket)
    idle = settings.idle_timeout_sec
    most = None if route is None else route.max_message_size
    return Terms(
        live,
        generation,
        enabled=settings.enabled,
        origins=frozenset(map(normalised_origin, settings.origins)),
        compression=settings.compression == "relay",
        max_message_size=config.max_ws_message_size if most is None else most,
        idle_timeout=config.idle_timeout_sec if idle is None else idle,
        ping_interval=settings.ping_interval_sec,
        ping_timeout=settings.ping_timeout_sec,
    )


def http1_settings(config: GatewayConfig) -> Http1Settings:
    """Return what clients' connections obey, whatever is spoken on them (behaviour 4.1, 6)."""
    return Http1Settings(
        limits=ReaderLimits(
            config.max_header_size,
            MAX_HEADER_COUNT,
            min(config.max_header_size or MAX_TRAILER_SIZE, MAX_TRAILER_SIZE),
        ),
        idle_timeout=config.idle_timeout_sec,
        head_timeout=config.request_timeout_sec,
        body_timeout=config.body_timeout_sec,
        min_body_rate=config.min_body_rate,
        send_timeout=config.send_timeout_sec,
        min_send_rate=config.min_send_rate,
        max_body_size=config.max_body_size,
        max_requests=config.max_requests_per_connection,
        write_high=config.http1.streaming.high_water_bytes,
        write_low=config.http1.streaming.low_water_bytes,
        http2=config.http2.enabled,
        server=config.server_header.encode("ascii"),
    )


def http2_settings(config: GatewayConfig) -> Http2Settings:
    """Return what those obey besides that speak HTTP/2 (behaviour 4.3, 7)."""
    http2 = config.http2
    return Http2Settings(
        session=SessionSettings(
            max_concurrent_streams=http2.max_concurrent_streams,
            initial_window_size=http2.initial_window_size,
            max_frame_size=http2.max_frame_size,
            max_header_list_size=http2.max_header_list_size,
            enable_push=http2.enable_push,
            enable_connect_protocol=True,
            flood=FloodLimits(**http2.flood.model_dump()),
        ),
        high=http2.streaming.high_water_bytes,
        low=http2.streaming.low_water_bytes,
        max_age=http2.max_connection_age_sec,
    )


def path_policy(config: GatewayConfig) -> PathPolicy:
    """Return how the paths of requests are read, or why they are refused (docs/paths.md)."""
    paths = config.paths
    return PathPolicy(
        merge_slashes=paths.merge_slashes,
        encoded_slash=paths.encoded_slash,
        backslash=paths.backslash,
        nul=paths.nul,
    )
