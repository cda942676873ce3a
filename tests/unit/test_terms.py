"""From settings to what connections and paths are told: each key arrives where it belongs."""

from __future__ import annotations

import pytest

from gw.config.load import load
from gw.terms import http1_settings, http2_settings, path_policy


def loaded(settings):
    return load({"upstreams": [{"name": "up", "host": "192.0.2.1"}], **settings}, environ={})


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("idle_timeout_sec", 7, "idle_timeout"),
        ("request_timeout_sec", 8, "head_timeout"),
        ("body_timeout_sec", 9, "body_timeout"),
        ("min_body_rate", 10, "min_body_rate"),
        ("send_timeout_sec", 11, "send_timeout"),
        ("min_send_rate", 12, "min_send_rate"),
        ("max_body_size", 13, "max_body_size"),
        ("max_requests_per_connection", 14, "max_requests"),
    ],
)
def test_what_http1_is_told(key, value, field):
    assert getattr(http1_settings(loaded({key: value}).config), field) == value


def test_a_head_of_any_size_may_still_not_have_trailers_of_any_size():
    limits = http1_settings(loaded({"max_header_size": 0}).config).limits
    assert limits.head_size == 0 < limits.trailer_size


def test_what_http2_is_told():
    told = {"max_concurrent_streams": 7, "initial_window_size": 70000, "max_frame_size": 20000, "enable_push": True}
    session = http2_settings(loaded({"http2": told}).config).session
    assert {name: getattr(session, name) for name in told} == told


def test_what_paths_are_held_to():
    policy = path_policy(loaded({"paths": {"merge_slashes": True, "backslash": "reject"}}).config)
    assert (policy.merge_slashes, policy.backslash) == (True, "reject")
