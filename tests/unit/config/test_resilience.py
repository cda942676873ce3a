"""Settings of retries: what the two forms mean, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gw.config.resilience import DnsConfig, RetryConfig

DEFAULT = {"connect-failure", "refused-stream", "disconnect"}


@pytest.mark.parametrize(
    ("settings", "conditions", "statuses"),
    [
        ({}, DEFAULT, set()),
        ({"retry_on_timeout": True}, DEFAULT | {"timeout"}, set()),
        ({"retry_on_connect_failure": False}, {"disconnect"}, set()),
        ({"retry_on_disconnect": False}, DEFAULT - {"disconnect"}, set()),
        ({"retry_on_5xx": True}, DEFAULT, set(range(500, 600))),
        ({"retry_on": ("timeout", 429)}, {"timeout"}, {429}),
        ({"retry_on": ("gateway-error", 503, 500)}, set(), {500, 502, 503, 504}),
        ({"retry_on": ("5xx",)}, set(), set(range(500, 600))),
        ({"retry_on": ()}, set(), set()),
    ],
)
def test_switches_and_the_list_say_what_is_retried(settings, conditions, statuses):
    retry = RetryConfig(**settings)
    assert (retry.conditions(), retry.statuses()) == (conditions, statuses)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"retry_on": (503,), "retry_on_5xx": True}, "has both retry_on and retry_on_5xx; put it into the list"),
        ({"retry_on": (200,)}, "greater than or equal to 400"),
        ({"retry_on": ("5xxx",)}, "'gateway-error'"),
        ({"max_retries": 11}, "less than or equal to 10"),
        ({"buffer_bytes": 67_108_865}, "less than or equal to 67108864"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        RetryConfig(**settings)


def test_a_route_changes_only_what_it_says():
    upper, lower = RetryConfig(max_retries=1), RetryConfig(max_retries=5, retry_on_5xx=True)
    assert upper.over(lower) == RetryConfig(max_retries=1, retry_on_5xx=True)


def test_name_servers_are_addresses_and_ports():
    dns = DnsConfig(resolver="dnspython", servers=("10.0.0.2:53", "[2001:db8::1]:5353"))
    assert dns.name_servers() == (("10.0.0.2", 53), ("2001:db8::1", 5353))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"servers": ("10.0.0.2:53",)}, "servers are asked by resolver: dnspython only"),
        ({"resolver": "dnspython", "servers": ("10.0.0.2",)}, "'10.0.0.2' is not host:port"),
        ({"resolver": "dnspython", "servers": ("dns.example:53",)}, "a name server is an address and a port"),
        ({"resolver": "dnspython", "servers": ("10.0.0.2:0",)}, "port 0 cannot be asked"),
        ({"resolver": "unbound"}, "'system' or 'dnspython'"),
    ],
)
def test_a_resolver_that_cannot_be_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        DnsConfig(**settings)
