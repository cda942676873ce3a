"""What the tests of client connections share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["pure", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return each engine: for tests of what is read, not only of when."""
    return request.param
