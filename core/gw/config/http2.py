"""The settings of HTTP/2 toward upstreams (behaviour 4.5, 13)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from gw.config.settings import Settings
from gw.config.values import Natural

__all__ = ["UpstreamHttp2Config"]

Window = Annotated[int, Field(ge=1, le=2**31 - 1)]
Percent = Annotated[int, Field(ge=0, le=100)]


class UpstreamHttp2Config(Settings):
    """HTTP/2 with an upstream."""

    enabled: bool = False
    """Whether it may be spoken."""
    prefer: Literal["auto", "always", "never", "h2c"] = "auto"
    """Over TLS: what the upstream chooses (`auto`), nothing else (`always`), not at all (`never`). Without TLS: `h2c`."""
    max_concurrent_streams_pref: Window = 100
    """Requests that share a connection, at most; fewer where the upstream says so."""
    initial_window_size: Window = 1_048_576
    """Bytes of one response that may wait for the client."""
    max_frame_size: Annotated[int, Field(ge=16_384, le=16_777_215)] = 16_384
    """The largest frame that the upstream may send."""
    header_table_size: Annotated[int, Field(ge=0, le=16 << 20)] = 4096
    """Bytes that HPACK may keep for what the upstream's heads have in common."""
    max_header_list_size: Annotated[int, Field(ge=4096)] = 65_536
    """The largest head of a response, as HTTP/2 counts it."""
    ping_idle_sec: Natural = 60
    """Silence after which the upstream is asked whether it is still there; 0 means never."""
    ping_timeout_sec: Natural = 10
    """How long it may take to answer that; 0 means for ever."""
    goaway_drain_timeout_sec: Natural = 30
    """How long requests may go on after the upstream has said that it will close; 0 means for ever."""
    saturation_open_pct: Percent = 0
    """Share of a connection's requests at which another one is used, or opened; 0 means when it is full."""
    preconnect_watermark_pct: Percent = 0
    """Share of all connections' requests at which one more is opened ahead; 0 means never."""

    @model_validator(mode="after")
    def _watermark_below_saturation(self) -> UpstreamHttp2Config:
        mark, full = self.preconnect_watermark_pct, self.saturation_open_pct
        if mark and mark >= full:
            raise ValueError(f"preconnect_watermark_pct ({mark}) must be below saturation_open_pct ({full})")
        return self

    model_config = ConfigDict(validate_default=True)
