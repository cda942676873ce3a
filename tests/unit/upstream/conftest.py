"""What the tests of upstreams share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["pure", "native"])
def engine(request):
    return request.param
