"""What the section may say."""

from __future__ import annotations

import pytest

from gw_grpcweb import gw_filters, gw_sections
from gw_grpcweb.settings import Settings


class Context:
    def __init__(self, section):
        self._section = section

    def section(self, route):
        return self._section


def test_it_may_stand_at_every_level():
    sections = gw_sections()
    assert (sections.name, sections.gateway, sections.upstream, sections.route) == ("grpcweb", *[Settings] * 3)


@pytest.mark.parametrize(("section", "filters"), [(None, 0), (Settings(), 1), (Settings(enabled=False), 0)])
def test_a_route_has_the_filter_where_its_section_says_so(section, filters):
    assert len(gw_filters(None, Context(section))) == filters
