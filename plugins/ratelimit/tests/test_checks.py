"""What concerns more than the section itself, as the loader reports it."""

from __future__ import annotations

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load

UPSTREAMS = "upstreams: [{name: a, host: h}]\n"


def told(text, tmp_path):
    file = tmp_path / "gw.yaml"
    file.write_text(UPSTREAMS + text)
    try:
        found = load(file, environ={}).warnings
    except ConfigError as error:
        found = error.problems
    return [str(each).replace(f"{tmp_path}/", "") for each in found]


REDIS = "rate_limit: {store: {redis: {url: 'redis://h'}}}"
BUCKET = "name: z, key_type: path"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"rate_limit: {{zones: [{{{BUCKET}, rate: 10, capacity: 5}}]}}",
            "gw.yaml:2:58: warning: rate_limit.zones[0].capacity: is less than a second's worth (10), and so the rate is never reached",
        ),
        (
            f"rate_limit: {{zones: [{{{BUCKET}, rate: 1, capacity: 5, cost: 6}}]}}",
            "gw.yaml:2:57: rate_limit.zones[0].capacity: allows 5, which is less than the cost of one request (6)",
        ),
        (
            f"routes: [{{upstream: a, rate_limit: {{zones: [{{{BUCKET}, rate: 1, capacity: 10000000000}}]}}}}]\n{REDIS}",
            "gw.yaml:2:80: routes[0].rate_limit.zones[0].capacity: allows 10000000000, which a store cannot count exactly; 9000000000 is the most there",
        ),
        (
            "rate_limit: {store: {redis: {url: 'http://h'}}}",
            "gw.yaml:2:30: rate_limit.store.redis.url: is no address of a store; it begins with redis://, rediss:// or unix://",
        ),
        (
            f"rate_limit: {{zones: [{{{BUCKET}, rate: 1, capacity: 5, before: auht}}]}}",
            "gw.yaml:2:70: rate_limit.zones[0].before: 'auht' is no plugin that comes before ratelimit; those are otel, grpcweb, auth",
        ),
        (
            f"rate_limit: {{zones: [{{{BUCKET}, rate: 1, capacity: 5, before: auth}}]}}\nplugins: [ratelimit]",
            "gw.yaml:2:70: rate_limit.zones[0].before: 'auth' is no plugin that comes before ratelimit; there are none",
        ),
        (
            "rate_limit: {zones: [{name: z, key_type: identity.sub, rate: 1, capacity: 5}]}\nplugins: [ratelimit, auth]",
            "gw.yaml:2:32: warning: rate_limit.zones[0].key_type: counts by identity, and ratelimit comes before auth in plugins, where nobody is known yet; put it behind, and give the zones that are to come first before: auth",
        ),
        (
            "rate_limit: {zones: [{name: z, key_type: client_ip+identity.sub, rate: 1, capacity: 5, before: auth}]}",
            "gw.yaml:2:22: rate_limit.zones[0]: counts by identity, and before auth nobody is known; leave one of them out",
        ),
        (
            "rate_limit: {store: {redis: {url: 'unix:///s', cluster: true}}}",
            "gw.yaml:2:48: rate_limit.store.redis.cluster: cannot be had by unix://, since its other nodes are elsewhere",
        ),
        (
            "rate_limit: {store: {redis: {url: 'redis://h', ca_file: /etc/ssl/ca.pem}}}",
            "gw.yaml:2:48: rate_limit.store.redis.ca_file: is for TLS, and the url does not begin with rediss://",
        ),
        (
            "rate_limit: {store: {redis: {url: 'rediss://h', ca_file: /no/ca.pem}}}",
            "gw.yaml:2:49: rate_limit.store.redis.ca_file: there is no file '/no/ca.pem'",
        ),
        (
            "rate_limit: {store: {redis: {url: 'rediss://h', cert_file: /no/ca.pem}}}",
            "gw.yaml:2:22: rate_limit.store.redis: needs both cert_file and key_file, or neither",
        ),
    ],
)
def test_what_can_hardly_be_meant_is_said_where_it_stands(text, message, tmp_path):
    assert told(text, tmp_path) == [message]


def test_without_the_library_a_store_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("gw_ratelimit.checks.find_spec", lambda name: None)
    (message,) = told("rate_limit: {store: {redis: {url: 'redis://h'}}}", tmp_path)
    assert message.endswith(
        "rate_limit.store.redis: needs coredis, which is not installed; run pip install 'gw[redis]'"
    )


def test_a_store_stands_at_the_top_level_only(tmp_path):
    (message,) = told("routes: [{upstream: a, rate_limit: {store: {redis: {url: 'redis://h'}}}}]", tmp_path)
    assert "routes[0].rate_limit.store: is not a known key" in message
