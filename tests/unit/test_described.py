"""The route table for people."""

from __future__ import annotations

import pytest

from gw.config.load import load
from gw.described import describe

UP = {"name": "up", "host": "192.0.2.1"}


def test_routes_come_from_both_places_and_in_this_order():
    config = {
        "upstreams": [{**UP, "proxy": {"route_prefix": "/legacy/:id"}}],
        "routes": [
            {"name": "one", "match": {"path": "/one", "host": "a.test"}, "upstream": "up"},
            {"match": {"prefix": "/two", "methods": ["GET"]}, "upstreams": [{"name": "up", "weight": 1}]},
            {"match": {"path": "/alone"}},
        ],
    }
    rows = describe(load(config, environ={}))
    assert [(row.hosts, row.path, row.methods, row.target) for row in rows[:3]] == [
        (("a.test",), "/one", (), "up"),
        ((), "/two/*", ("GET",), "up"),
        ((), "/alone", (), "none: a filter answers, or 404"),
    ]
    assert rows[0].name == "one"
    assert any(row.path.startswith("/legacy/:id") for row in rows[3:])
    assert {row.framing for row in rows} == {"unchanged"}


def test_routes_that_conflict_are_refused_before_anything_is_opened():
    settings = {
        "plugins": [],
        "upstreams": [{"name": "a", "host": "127.0.0.1"}],
        "routes": [{"name": n, "match": {"path": "/a"}, "upstream": "a"} for n in "xy"],
    }
    with pytest.raises(ValueError, match="routes 'x' and 'y' conflict: both take all methods at /a"):
        describe(load(settings, environ={}))
