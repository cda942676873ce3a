"""What the section may say, and what is said about what it may not."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from gw_ratelimit.settings import GatewayRateLimit, RateLimit

ZONE = {"name": "z", "rate": 10, "capacity": 20, "key_type": "client_ip"}
WINDOW = {"name": "z", "algorithm": "sliding_window", "limit": 5, "window_sec": 60, "key_type": "path"}


def read(section, model=RateLimit):
    return model.model_validate_json(json.dumps(section), strict=True)


def refusal(section, model=RateLimit):
    with pytest.raises(ValidationError) as refused:
        read(section, model)
    error = refused.value.errors(include_url=False)[-1]
    return ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")


def test_the_defaults_are_those_of_the_reference():
    section = read({"zones": [ZONE]})
    assert (section.enabled, section.dry_run, section.status_code, section.include_headers) == (False, False, 429, True)
    (zone,) = section.zones
    assert (zone.max_entries, zone.applies_to, zone.algorithm, zone.cost) == (100_000, (), "token_bucket", 1)


@pytest.mark.parametrize(
    "key_type",
    ["client_ip", "path", "header:X-Key", "client_ip+path", "client_ip+header:x-key", "identity+param:id+method"],
)
def test_keys_of_the_reference_and_more_are_read(key_type):
    assert read({"zones": [ZONE | {"key_type": key_type}]}).zones[0].key_type == key_type


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"rate": 0.0009}, "zones.0.rate"),
        ({"rate": 1.1e9}, "zones.0.rate"),
        ({"capacity": 0}, "zones.0.capacity"),
        ({"capacity": 10**12 + 1}, "zones.0.capacity"),
        ({"capacity": 1.5}, "zones.0.capacity"),
        ({"max_entries": 15}, "zones.0.max_entries"),
        ({"applies_to": [""]}, "zones.0.applies_to.0"),
        ({"name": ""}, "zones.0.name"),
        ({"name": 'a"b'}, "zones.0.name"),
        ({"name": "a\nb"}, "zones.0.name"),
        ({"status_code": 399}, "zones.0.status_code"),
        ({"tiers": {"claim": "plan", "values": {}}}, "zones.0.tiers.values"),
    ],
)
def test_ranges_are_those_of_the_reference(change, path):
    assert refusal({"zones": [ZONE | change]})[0] == path


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"enabled": True}, "is enabled and has no zones; add one, or set enabled to false"),
        ({"zones": [ZONE, ZONE]}, "has two zones called 'z'; give each a name of its own"),
        (
            {"zones": [ZONE | {"key_type": "client_ipp"}]},
            "'client_ipp' is nothing to count by; did you mean 'client_ip'?",
        ),
        ({"zones": [ZONE | {"key_type": "header:"}]}, "'header:' needs a name after the colon, such as header:name"),
        ({"zones": [ZONE | {"key_type": "path+path"}]}, "'path+path' names a part twice"),
        (
            {"zones": [ZONE | {"key_type": "client_ip+qqq"}]},
            "'qqq' is nothing to count by",
        ),
        ({"zones": [{"name": "z", "key_type": "path"}]}, "needs rate, since its algorithm is token_bucket"),
        (
            {"zones": [WINDOW | {"rate": 1}]},
            "has rate, which sliding_window does not use; it uses limit and window_sec",
        ),
        (
            {"zones": [WINDOW | {"overrides": [{"keys": ["a"], "capacity": 1}]}]},
            "changes capacity, which sliding_window does not use; it uses limit and window_sec",
        ),
        ({"zones": [ZONE | {"cost": {"most": 3}}]}, "needs one of header and response_bytes"),
        (
            {"zones": [{"name": "z", "algorithm": "concurrency", "limit": 1, "key_type": "path", "cost": 2}]},
            "has a cost, but what is counted is requests under way",
        ),
        (
            {
                "zones": [
                    {
                        "name": "z",
                        "algorithm": "quota",
                        "limit": 1,
                        "period": "day",
                        "key_type": "path",
                        "time_zone": "Mars",
                    }
                ]
            },
            "'Mars' is no time zone that this machine knows; such names are UTC and Europe/Berlin",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(section, message):
    assert message in {refusal(section)[1], refusal(section)[1].partition("; ")[0]}


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({}, "needs one of shared and redis; leave store out to hold keys in this process"),
        ({"shared": {}}, "needs one of path and fd"),
        ({"shared": {"path": "/dev/shm/a", "fd": 3}}, "needs one of path and fd"),
    ],
)
def test_a_store_is_one_thing(store, message):
    assert refusal({"store": store}, GatewayRateLimit)[1] == message


def test_an_url_of_a_store_is_a_secret():
    section = read({"store": {"redis": {"url": "redis://u:s3cret@h"}}}, GatewayRateLimit)
    assert "s3cret" not in repr(section)
