"""What the section ``sunset`` may say."""

from __future__ import annotations

from datetime import date

from pydantic import ValidationInfo, field_validator

from gw import Section


class GatewaySettings(Section):
    """For all routes that are deprecated."""

    information: str = ""
    """URL of a page about the change."""


class RouteSettings(GatewaySettings):
    """A route that will be switched off."""

    deprecated: date
    """The day from which it should not be used."""
    gone: date | None = None
    """The day on which it is switched off."""
    enforce: bool = False
    """Whether it answers 410 from that day on."""

    @field_validator("gone")
    @classmethod
    def _not_before_deprecated(cls, value: date | None, info: ValidationInfo) -> date | None:
        deprecated = info.data.get("deprecated")
        if value is not None and deprecated is not None and value < deprecated:
            raise ValueError(f"must not be before deprecated ({deprecated}), not {value}")  # RFC 9745 section 4
        return value
