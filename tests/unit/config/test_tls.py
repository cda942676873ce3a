import pytest
from pydantic import ValidationError

from gw.config.model import GatewayConfig
from gw.config.tls import ListenerConfig, UpstreamTlsConfig


def test_a_server_name_loses_its_trailing_dot():
    assert UpstreamTlsConfig(sni_hostname="api.example.").sni_hostname == "api.example"
    assert UpstreamTlsConfig().sni_hostname == ""
    with pytest.raises(ValidationError, match="is not a host"):
        UpstreamTlsConfig(sni_hostname="not a host")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["main"]),
        ({"bind_port": 1}, ["main"]),
        ({"listeners": ({"name": "a", "bind_port": 1},)}, ["a"]),
        ({"listeners": ({"name": "a", "bind_port": 1},), "bind_host": "::1"}, ["main", "a"]),
        ({"listeners": ({"name": "a", "bind_port": 1},), "tls": {}}, ["main", "a"]),
    ],
)
def test_the_keys_beside_listeners_make_one_where_they_are_set_or_there_is_no_other(settings, names):
    assert [each.name for each in GatewayConfig.model_validate(settings).all_listeners()] == names


def test_a_listener_is_plain_unless_it_says_otherwise():
    assert not ListenerConfig(name="a", bind_port=1).tls.enabled
