"""What the section may say, what it means, and what is wrong with it."""

from __future__ import annotations

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load
from gw_breaker import gw_sections
from gw_breaker.machine import SECOND, Rules
from gw_breaker.settings import GRPC_CODES, BreakerSettings, RouteBreaker, rules

REFERENCE = {
    "enabled": True,
    "dry_run": False,
    "consecutive_failure_threshold": 5,
    "failure_rate_threshold": 50,
    "minimum_volume": 20,
    "window_seconds": 10,
    "permitted_half_open_calls": 5,
    "base_open_duration_ms": 5000,
    "max_open_duration_ms": 60000,
    "max_ejection_percent_per_host_set": 50,
    "retry_budget_percent": 20,
    "retry_budget_min_concurrency": 3,
}
"""Every key of the reference, with its default (behaviour 4.5)."""


def loaded(section):
    upstream = {"name": "api", "host": "192.0.2.1", "circuit_breaker": section}
    return load({"upstreams": [upstream]}, environ={}).config.upstreams[0].circuit_breaker


def refusals(section, level="upstreams"):
    upstream = {"name": "api", "host": "192.0.2.1"}
    route = {"match": {"prefix": "/"}, "upstream": "api"}
    (upstream if level == "upstreams" else route)["circuit_breaker"] = section
    with pytest.raises(ConfigError) as refused:
        load({"upstreams": [upstream], "routes": [route]}, environ={})
    return [line.removeprefix(f"configuration: {level}[0].circuit_breaker") for line in str(refused.value).splitlines()]


def test_a_section_of_the_reference_loads_unchanged_and_its_defaults_are_ours():
    assert loaded(REFERENCE) == loaded({"enabled": True})


def test_the_rules_are_the_settings_in_the_machines_units():
    assert rules(BreakerSettings()) == Rules()
    assert rules(BreakerSettings(slow_call_ms=1500, half_open_timeout_ms=0, dry_run=True, mode="shadow")) == Rules(
        slow_call=3 * SECOND // 2, half_open_time=0, dry_run=True, shadow=True
    )


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("consecutive_failure_threshold", 1, 10_000),
        ("failure_rate_threshold", 0, 100),
        ("minimum_volume", 1, 10_000_000),
        ("window_seconds", 1, 3600),
        ("permitted_half_open_calls", 1, 1000),
        ("max_ejection_percent_per_host_set", 0, 100),
        ("retry_budget_percent", 0, 100),
    ],
)
def test_ranges_are_those_of_the_reference(key, least, most):
    assert getattr(loaded({key: least}), key) == least
    assert getattr(loaded({key: most}), key) == most
    assert refusals({key: least - 1}) == [f".{key}: must be at least {least}, not {least - 1}"]
    assert refusals({key: most + 1}) == [f".{key}: must be at most {most}, not {most + 1}"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"base_open_duration_ms": 99}, ".base_open_duration_ms: must be at least 100, not 99"),
        (
            {"base_open_duration_ms": 70_000},
            ".max_open_duration_ms: must be at least base_open_duration_ms (70000), not 60000",
        ),
        (
            {"base_open_duration_ms": 500, "max_open_duration_ms": 499},
            ".max_open_duration_ms: must be at least base_open_duration_ms (500), not 499",
        ),
        ({"retry_budget_min_concurrency": -1}, ".retry_budget_min_concurrency: must be at least 0, not -1"),
        ({"enable": True}, ".enable: is not a known key (did you mean 'enabled'?)"),
        ({"failures": {"statuses": [600]}}, ".failures.statuses[0]: must be a status from 100 to 599, not 600"),
        (
            {"failures": {"grpc": ["UNAVAILBLE"]}},
            f".failures.grpc[0]: must be one of {', '.join(GRPC_CODES)}, not 'UNAVAILBLE' (did you mean 'UNAVAILABLE'?)",
        ),
        ({"fallback": {}}, ".fallback: must have one or more of cached, respond and upstream"),
        ({"bulkhead": {}}, ".bulkhead.max_concurrent: is required"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(section, message):
    assert refusals(section) == [message]


def test_a_route_has_nothing_to_share_with_others():
    assert RouteBreaker().scope == "route"
    assert refusals({"scope": "upstream"}, "routes") == [".scope: must be one of endpoint, route, not 'upstream'"]


def test_one_section_at_three_levels():
    sections = gw_sections()
    assert (sections.name, sections.gateway, sections.upstream, sections.route) == (
        "circuit_breaker",
        BreakerSettings,
        BreakerSettings,
        RouteBreaker,
    )
