"""Rules across sections, in configurations that are otherwise right."""

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load


def loaded(rewrite, *, match=None, header_rewrite=None, **gateway):
    route = {"match": match or {}, "upstream": "api", "rewrite": rewrite}
    if header_rewrite is not None:
        route["header_rewrite"] = header_rewrite
    return load({"upstreams": [{"name": "api", "host": "192.0.2.1"}], "routes": [route], **gateway}, environ={})


def problems(*args, **kwargs):
    """Return what is wrong, by where it stands in the section."""
    with pytest.raises(ConfigError) as refused:
        loaded(*args, **kwargs)
    return {each.problem.path[3:]: each.problem.message for each in refused.value.problems}


def test_a_parameter_that_the_route_does_not_capture_is_an_error():
    section = {
        "path": {"template": "/v2/${path.user}"},
        "response": {"headers": {"set": {"X-A": "${path.rest} ${path}"}}},
    }
    assert problems(section, match={"path": "/users/:user_id([0-9]+)/*rest"}) == {
        ("path", "template"): (
            "has '${path.user}', which this route's path does not capture (did you mean '${path.user_id}'?)"
        ),
    }
    assert problems(section, match={"prefix": "/users"}) == {
        ("path", "template"): "has '${path.user}', which this route's path does not capture",
        ("response", "headers", "set", "X-A"): "has '${path.rest}', which this route's path does not capture",
    }


def test_a_regex_captures_by_name():
    assert loaded({"path": {"template": "/${path.id}"}}, match={"regex": "/u/(?P<id>[0-9]+)"}).warnings == ()


def test_the_gateways_section_may_name_what_only_some_routes_capture():
    section = {"response": {"headers": {"set": {"x-id": "${path.id:-none}"}}}}
    assert load({"rewrite": section}, environ={}).warnings == ()


@pytest.mark.parametrize(
    ("edits", "where", "name"),
    [
        ({"set": {"X-Request-Id": "a"}}, ("set", "X-Request-Id"), "X-Request-Id"),
        ({"remove": ["cookie", "x-request-id"]}, ("remove", 1), "x-request-id"),
    ],
)
def test_the_header_of_the_request_id_is_the_gateways(edits, where, name):
    found = problems({"request": {"headers": edits}})
    assert found == {("request", "headers", *where): f"{name} is written by the gateway; see request_id"}
    with pytest.raises(ConfigError, match="see request_id"):
        load({"rewrite": {"request": {"headers": edits}}}, environ={})


@pytest.mark.parametrize("request_id", [{"header": "x-id"}, {"enabled": False}])
def test_another_header_for_the_request_id_frees_the_usual_one(request_id):
    section = {"request": {"headers": {"set": {"x-request-id": "${request.id}"}}}}
    assert loaded(section, request_id=request_id).warnings == ()


def test_a_host_that_the_upstream_would_not_see_is_a_warning():
    (warning,) = loaded({"host": "a.example"}).warnings
    assert str(warning) == (
        "configuration: warning: routes[0].rewrite.host: has no effect on upstream 'api', which is sent its own host; set"
        " header_rewrite.rewrite_host to false"
    )
    assert loaded({"host": "a.example"}, header_rewrite={"rewrite_host": False}).warnings == ()
