import json

import pytest
from pydantic import ValidationError

from gw.config.errors import ConfigError
from gw.config.load import load, schema
from gw_rewrite.settings import Rewrite

UPSTREAM = {"name": "api", "host": "192.0.2.1"}


def refusals(section, **match):
    """Load a route with *section* and return what is wrong with it, without where it stands."""
    route = {"match": match, "upstream": "api", "rewrite": section}
    with pytest.raises(ConfigError) as refused:
        load({"upstreams": [UPSTREAM], "routes": [route]}, environ={})
    return [line.removeprefix("configuration: routes[0].rewrite") for line in str(refused.value).splitlines()]


def request(**headers):
    return {"request": {"headers": headers}}


def response(**headers):
    return {"response": {"headers": headers}}


ALWAYS = {
    "content-length",
    "Transfer-Encoding",
    "Connection",
    "keep-alive",
    "TE",
    "trailer",
    "upgrade",
    "proxy-connection",
}
ONLY_REQUESTS = {"Host", "x-forwarded-for", "X-Forwarded-Proto", "x-forwarded-host", "forwarded", "expect"}


@pytest.mark.parametrize("how", ["set", "append", "add", "remove"])
@pytest.mark.parametrize(("edit", "names"), [(request, ALWAYS | ONLY_REQUESTS), (response, ALWAYS)])
def test_headers_of_the_gateway_cannot_be_touched(edit, names, how):
    for name in names:
        with pytest.raises(ValidationError, match=f"{name} (says|is|has)"):
            Rewrite.model_validate(edit(**{how: [name] if how == "remove" else {name: "x"}}), strict=False)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            request(set={"Content-Length": "1"}),
            ".request.headers.set.Content-Length: Content-Length says where a message ends, which only the gateway may",
        ),
        (
            response(remove=["etag", "upgrade"]),
            (
                ".response.headers.remove[1]: upgrade is about one connection (RFC 9110 section 7.6.1), which belongs to"
                " the gateway"
            ),
        ),
        (request(set={"host": "a"}), ".request.headers.set.host: host has a setting of its own: rewrite.host"),
        (
            request(add={"X-Forwarded-For": "a"}),
            (
                ".request.headers.add.X-Forwarded-For: X-Forwarded-For is written by the gateway; see header_rewrite of"
                " the route or the upstream"
            ),
        ),
        (request(set={"x y": "a"}), ".request.headers.set['x y']: 'x y' is not a header name"),
        (request(set={"x\r\ny": "a"}), ".request.headers.set['x\\r\\ny']: 'x\\r\\ny' is not a header name"),
        (request(add={"Content-Type": "a"}), ".request.headers.add.Content-Type: Content-Type has one value; use set"),
        (
            response(append={"set-cookie": "a=b"}),
            (
                ".response.headers.append.set-cookie: set-cookie cannot be joined with commas (RFC 9110 section 5.3);"
                " use add"
            ),
        ),
        (
            request(set={"X-A": "1", "x-a": "2"}),
            ".request.headers.set: names 'x-a' twice; the case of letters does not count",
        ),
        (request(set={"x-a": ""}), ".request.headers.set.x-a: must not be empty"),
        (request(set={"x-a": 7}), ".request.headers.set.x-a: must be text, not an integer; quote it"),
        (
            request(set={"x-a": "a\r\nx-b: c"}),
            (".request.headers.set.x-a: must be printable ASCII: other characters have no agreed meaning in a header"),
        ),
        (
            request(set={"x-a": "${clinet.ip}"}),
            ".request.headers.set.x-a: has '${clinet.ip}', which is no variable (did you mean '${client.ip}'?)",
        ),
        (
            request(set={"x-a": "${status}"}),
            ".request.headers.set.x-a: has '${status}', which only response headers can have",
        ),
        (
            {"host": "${response_header.x}"},
            ".host: has '${response_header.x}', which only response headers can have",
        ),
        (
            {"header": {}},
            ".header: is not a known key; routes[0].rewrite has host, mode, on_error, path, query, redirect, request, respond, response",
        ),
        (request(sets={}), ".request.headers.sets: is not a known key (did you mean 'set'?)"),
        ({"path": {}}, ".path: must have exactly one of prefix, template, regex"),
        (
            {"path": {"template": "/a", "prefix": {"from": "/a", "to": "/b"}}},
            ".path: must have exactly one of prefix, template, regex",
        ),
        ({"path": {"prefix": {"from": "/a"}}}, ".path.prefix.to: is required"),
        ({"path": {"prefix": {"from": "a", "to": "/"}}}, ".path.prefix.from: must start with '/', not 'a'"),
        (
            {"path": {"prefix": {"from": "/a/", "to": "/"}}},
            ".path.prefix: from must not end with '/': a prefix ends where a segment does; write '/a'",
        ),
        (
            {"path": {"regex": {"match": "a(", "replace": "/"}}},
            ".path.regex: match is no regular expression: missing ), unterminated subpattern at position 1",
        ),
        ({"host": "a b"}, ".host: must be a host, perhaps with a port, not 'a b'"),
        ({"query": {"set": {"": "a"}}}, ".query.set['']: must not be empty"),
        ({"redirect": {}}, ".redirect: must have either to, or scheme or host or both"),
        (
            {"redirect": {"to": "/a", "scheme": "https"}},
            ".redirect: must have either to, or scheme or host or both",
        ),
        (
            {"redirect": {"to": "/a", "status": 304}},
            ".redirect.status: must be one of 301, 302, 303, 307, 308, not 304",
        ),
        ({"redirect": {"host": "${host}"}}, ".redirect.host: must be a host, perhaps with a port, not '${host}'"),
        ({"respond": {"status": 101}}, ".respond.status: must be at least 200, not 101"),
        ({"respond": {"status": 204, "body": "x"}}, ".respond: has a body, which a 204 cannot"),
        ({"respond": {"content_type": "text/html"}}, ".respond: has content_type, which means nothing without body"),
        (
            {"respond": {"headers": {"Content-Type": "a"}}},
            ".respond.headers.Content-Type: Content-Type has a setting of its own: content_type",
        ),
        (
            {"respond": {"headers": {"x-a": "a\nb"}}},
            ".respond.headers.x-a: must be printable ASCII without spaces around it",
        ),
        ({"respond": {}, "redirect": {"to": "/"}}, ": has redirect and respond; a request has one answer"),
        (
            {"respond": {}, "path": {"template": "/"}, "host": "a"},
            ": has respond, which answers every request, so path and host would never be used",
        ),
        (
            {"redirect": {"to": "/"}, **request(set={"x-a": "1"})},
            ": has redirect.to, which answers every request, so request would never be used",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(section, message):
    assert refusals(section) == [message]


def test_all_that_is_wrong_is_said_at_once_and_where(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(
        """\
rewrite:
  response:
    headers:
      set: {x-status: "${statsu}"}
upstreams:
  - {name: api, host: 192.0.2.1}
routes:
  - match: {path: "/users/:id/*rest"}
    upstream: api
    rewrite:
      path:
        template: /v2/${path.id
      request:
        headers:
          set:
            X-User: "${identity.sub}"
            Connection: close
"""
    )
    with pytest.raises(ConfigError) as refused:
        load(file, environ={})
    assert [(each.line, each.column, each.problem.path[-1]) for each in refused.value.problems] == [
        (4, 13, "x-status"),
        (12, 9, "template"),
        (17, 13, "Connection"),
    ]
    assert str(refused.value).splitlines()[0] == (
        f"{file}:4:13: rewrite.response.headers.set.x-status: has '${{statsu}}', which is no variable (did you mean"
        " '${status}'?)"
    )


# --- what loading does to templates ------------------------------------------


def loaded_value(written, environ):
    file_section = {"rewrite": request(set={"x-a": written})}
    loaded = load(file_section, environ=environ)
    return str(loaded.section("rewrite", "gateway").request.headers.set["x-a"])


@pytest.mark.parametrize(
    ("written", "template"),
    [
        ("${client.ip}", "${client.ip}"),
        ("${path.id:-none}", "${path.id:-none}"),
        ("${TOKEN}", "s3cret"),
        ("${query.a:-${TOKEN}}", "${query.a:-s3cret}"),
        ("Bearer ${TOKEN} for ${client.ip}", "Bearer s3cret for ${client.ip}"),
        ("$${client.ip}", "$${client.ip}"),
        ("$$${TOKEN}", "$${TOKEN}"),
    ],
)
def test_variables_of_the_environment_are_filled_in_before_a_template_is_read(written, template):
    assert loaded_value(written, {"TOKEN": "s3cret"}) == template


def test_a_dollar_in_a_secret_is_an_error_that_does_not_show_the_secret():
    with pytest.raises(ConfigError) as refused:
        loaded_value("${TOKEN}", {"TOKEN": "pa$sword"})
    assert str(refused.value).startswith("configuration: rewrite.request.headers.set.x-a: has a '$' that begins no")
    assert "pa$sword" not in str(refused.value)


def test_a_template_may_stand_in_a_file(tmp_path):
    (tmp_path / "template").write_text("${client.ip}\n")
    assert loaded_value({"file": str(tmp_path / "template")}, {}) == "${client.ip}"


def test_settings_are_shown_as_they_were_written():
    section = {**request(set={"X-A": "$$ ${client.ip} ${TOKEN}"}), "path": {"prefix": {"from": "/a", "to": "/b"}}}
    shown = load({"rewrite": section}, environ={"TOKEN": "s3cret"}).effective()["rewrite"]
    assert shown["request"]["headers"]["set"] == {"X-A": "$$ ${client.ip} ${TOKEN}"}
    assert shown["path"]["prefix"] == {"from": "/a", "to": "/b"}


def test_the_schema_shows_templates_as_text():
    known = schema(load({}, environ={}).plugins)["$defs"]
    assert known["RequestFields"]["properties"]["set"]["additionalProperties"] == {"minLength": 1, "type": "string"}
    assert known["Redirect"]["properties"]["status"]["enum"] == [301, 302, 303, 307, 308]


def test_every_setting_says_what_it_means():
    definitions = Rewrite.model_json_schema()
    for model in [definitions, *definitions["$defs"].values()]:
        for name, setting in model["properties"].items():
            assert setting.get("description"), f"{model['title']}.{name}"


def test_settings_of_other_types_are_refused():
    with pytest.raises(ValueError, match="Input should be a valid string"):
        Rewrite.model_validate_json(json.dumps({"host": 7}), strict=True)
