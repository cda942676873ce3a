"""What differs between two configurations, told by meaning."""

import pytest

from gw.config.changes import changes
from gw.config.load import load

UP = {"name": "up", "host": "192.0.2.1"}


def told(old, new, **environ):
    return changes(*(load({"plugins": ["rewrite"], **each}, environ=environ) for each in (old, new)))


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({}, {}, []),
        ({"max_connections": 5}, {}, ["max_connections 5 -> 10000"]),
        ({}, {"log": {"level": "warn"}}, ['log.level "info" -> "warn"']),
        ({}, {"upstreams": [UP]}, ["upstream up: added"]),
        ({"upstreams": [UP]}, {}, ["upstream up: removed"]),
        ({"upstreams": [UP]}, {"upstreams": [UP | {"port": 81}]}, ["upstream up: port 80 -> 81"]),
        (
            {"upstreams": [UP, UP | {"name": "b"}]},
            {"upstreams": [UP | {"name": "b"}, UP]},
            ["upstreams: in another order"],
        ),
        (
            {"upstreams": [UP], "routes": [{"name": "r", "match": {"path": "/a"}, "upstream": "up"}]},
            {"upstreams": [UP], "routes": [{"name": "r", "match": {"path": "/b"}, "upstream": "up"}]},
            ['route r: match.path "/a" -> "/b"'],
        ),
        ({}, {"rewrite": {"mode": "shadow"}}, None),
    ],
)
def test_each_difference_is_a_line(old, new, lines):
    found = told(old, new)
    if lines is None:
        assert len(found) == 1
        assert found[0].startswith("rewrite (none) -> ")
    else:
        assert found == lines


def test_a_secret_is_compared_and_not_shown():
    old, new = ({"admin": {"token": f"{word} of sixteen characters"}} for word in ("one", "two"))
    assert told(old, new) == ["admin.token changed (it is secret)"]
    assert told(old, old) == []


def test_a_value_from_outside_is_shown_as_it_is_written():
    old, new = {"server_header": "${A}"}, {"server_header": "${B}"}
    assert told(old, new, A="hunter1", B="hunter2") == ['server_header "${A}" -> "${B}"']
