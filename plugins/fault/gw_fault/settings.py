"""What the section ``fault`` may say."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gw import Section
from gw_fault.limits import DEFAULT_ACTIVE, MAX_DELAY

__all__ = ["Abort", "Delay", "Fault"]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


def _field_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    return name.lower()


FieldName = Annotated[str, AfterValidator(_field_name)]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    """One kind of fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    percent: Percent = 100
    """Of how many of the requests that match, chosen at random."""


class Delay(_Part):
    """Requests that wait before they go on."""

    ms: Annotated[int, Field(ge=1, le=MAX_DELAY)]
    """How long, in milliseconds."""
    jitter_ms: Annotated[int, Field(ge=0, le=MAX_DELAY)] = 0
    """Up to how much longer, at random."""


class Abort(_Part):
    """Requests that are answered instead of being sent on."""

    status: Annotated[int, Field(ge=200, le=599)] = 503
    """With which status."""
    body: str | None = None
    """With which text; null means the gateway's own for that status."""
    retry_after: Annotated[int, Field(ge=0)] | None = None
    """Seconds for a `Retry-After`; null means none."""


class Fault(Section):
    """Faults on purpose. Without `delay` and `abort` there are none."""

    headers: dict[FieldName, str | None] = Field(default_factory=dict)
    """Only requests with all of these header fields: name to value, or to null for any value."""
    delay: Delay | None = None
    """Let requests wait."""
    abort: Abort | None = None
    """Answer requests; a request that is delayed too waits first."""
    max_active: Annotated[int, Field(ge=1)] = DEFAULT_ACTIVE
    """Requests that may wait at once, in one process; any more go on without."""
