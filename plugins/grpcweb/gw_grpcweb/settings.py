"""What the section ``grpcweb`` may say."""

from __future__ import annotations

from gw import Section

__all__ = ["Settings"]


class Settings(Section):
    """Translation of gRPC-Web. Requests of any other content type pass untouched."""

    enabled: bool = True
    """Whether it is done here; `false` in a route or an upstream switches off what stands above."""
