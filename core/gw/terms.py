"""From the settings of WebSockets to the terms that a route's requests meet."""

from __future__ import annotations

from gw.config.model import GatewayConfig, RouteWebSocketConfig
from gw.http.handshake import normalised_origin
from gw.tunnel import Live, Terms

__all__ = ["terms_of"]


def terms_of(config: GatewayConfig, live: Live, generation: int, route: RouteWebSocketConfig | None = None) -> Terms:
    """Return what the gateway says, and over it what the *route* says."""
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
