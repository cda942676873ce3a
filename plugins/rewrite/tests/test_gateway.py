"""The plugin in a whole gateway: from YAML, as people write it, to the bytes that an upstream and a client see."""

import re
from pathlib import Path

import pytest
import yaml

from gw.config.load import load
from gw.testing.gateway import Upstream, in_memory
from gw_rewrite import gw_sections
from gw_rewrite.settings import Rewrite

HERE = Path(__file__).parent
README = HERE.parent.joinpath("README.md").read_text()
EXAMPLE = HERE.parents[2].joinpath("config/examples/rewrite.yaml")
BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def gateway(text, upstream):
    """Run the gateway of a YAML text; every upstream in it is *upstream*."""
    config = yaml.safe_load(text)
    for each in config.get("upstreams", []):
        each.update({"host": "192.0.2.1", "port": 80})
    return in_memory(config, upstream)


def target(asked):
    return asked.head.target


# --- headers -----------------------------------------------------------------


async def test_headers_are_rewritten_both_ways():
    upstream = Upstream(b"HTTP/1.1 200 OK\r\nServer: old\r\nETag: x\r\nContent-Length: 2\r\n\r\nok")
    text = """
        rewrite:
          request:
            headers:
              remove: [cookie]
              set: {x-client: "${client.ip}", x-route: "${route.name} ${method} ${host}${path}"}
              append: {accept: text/x-more}
          response:
            headers:
              remove: [server]
              add: {x-was: "${status} ${response_header.etag}"}
        """
    async with gateway(text, upstream) as gw:
        answer = await gw.get("/a?b", {"Cookie": "a=b", "X-Client": "forged", "Accept": "text/html"})
    sent = upstream.asked[0].head.headers
    assert sent.get_all("x-client") == ["198.51.100.7"]
    assert sent.get("x-route") == "upstream /*proxy_path GET example.test/a"
    assert sent.get("accept") == "text/html, text/x-more"
    assert "cookie" not in sent
    assert "server" not in answer.headers
    assert answer.headers.get("x-was") == "200 x"


async def test_a_routes_section_replaces_the_gateways():
    upstream = Upstream()
    text = """
        rewrite: {response: {headers: {set: {x-level: gateway, x-more: "1"}}}}
        upstreams: [{name: api}]
        routes:
          - {match: {prefix: /own}, upstream: api, rewrite: {response: {headers: {set: {x-level: route}}}}}
          - {match: {prefix: /none}, upstream: api, rewrite: {}}
          - {match: {prefix: /}, upstream: api}
        """
    async with gateway(text, upstream) as gw:
        seen = [(await gw.get(path)).headers for path in ("/own", "/none", "/")]
    assert [headers.get("x-level") for headers in seen] == ["route", None, "gateway"]
    assert [headers.get("x-more") for headers in seen] == [None, None, "1"]


async def test_requests_that_no_route_takes_are_the_gateways():
    text = """
        rewrite: {response: {headers: {set: {x-status: "${status}"}}}}
        upstreams: [{name: api}]
        routes: [{match: {prefix: /api}, upstream: api}]
        """
    async with gateway(text, Upstream()) as gw:
        assert (await gw.get("/other")).headers.get("x-status") == "404"


async def test_no_value_ends_a_line():
    upstream = Upstream()
    text = """
        rewrite:
          request: {headers: {set: {x-a: "<${query.a}>"}}}
          response: {headers: {set: {x-a: "<${query.a}>"}}}
          query: {set: {b: "${query.a}"}}
        """
    async with gateway(text, upstream) as gw:
        answer = await gw.get("/?a=1%0D%0Ax-evil:%201%00")
    assert upstream.asked[0].head.headers.get("x-a") == "<1%0D%0Ax-evil: 1%00>"
    assert target(upstream.asked[0]) == "/?a=1%0D%0Ax-evil:%201%00&b=1%0D%0Ax-evil%3A%201%00"
    assert answer.headers.get("x-a") == "<1%0D%0Ax-evil: 1%00>"


async def test_a_body_passes_beside_rewritten_headers():
    upstream = Upstream()
    text = 'rewrite: {path: {template: "/x"}, request: {headers: {set: {x-a: "1"}}}}'
    async with gateway(text, upstream) as gw:
        await gw.request(
            b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", method="POST"
        )
    assert (target(upstream.asked[0]), upstream.asked[0].body) == ("/x", b"abc")


async def test_a_shadow_changes_nothing():
    upstream = Upstream()
    text = "rewrite: {mode: shadow, path: {template: /x}, response: {headers: {set: {x-a: '1'}}}}"
    async with gateway(text, upstream) as gw:
        answer = await gw.get("/a")
    assert target(upstream.asked[0]) == "/a"
    assert "x-a" not in answer.headers


# --- the example and the README ------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        ("/orders/7/items?a=1", "/v2/orders/7/items?a=1"),
        ("/shop", "/store?lang=en"),
        ("/shop/cart?debug=1&lang=de&x=%7e", "/store/cart?lang=de&x=%7e"),
        ("/files/2024-01-31/a", "/files/2024/01/31/a"),
        ("/files/latest", "/files/latest"),
        ("/t/acme/a/b", "/a/b"),
    ],
)
async def test_the_example_rewrites_targets(asked, then):
    upstream = Upstream()
    async with gateway(EXAMPLE.read_text(), upstream) as gw:
        await gw.get(asked)
    assert [target(each) for each in upstream.asked] == [then]


async def test_the_example_sends_another_host_and_tells_who_asks():
    upstream = Upstream()
    async with gateway(EXAMPLE.read_text(), upstream) as gw:
        await gw.get("/t/acme/")
        answer = await gw.get("/orders/7/", {"x-user": "root", "cookie": "a=b"})
    tenant, order = upstream.asked
    assert tenant.head.headers.get("host") == "acme.internal.example"
    assert order.head.headers.get("x-client") == "198.51.100.7"
    assert order.head.headers.get("x-route") == "orders"
    assert "x-user" not in order.head.headers
    assert "cookie" not in order.head.headers
    assert answer.headers.get("link") == '</orders/7>; rel="canonical"'


@pytest.mark.parametrize(
    ("host", "asked", "status", "location"),
    [
        ("a.example", "/old/a/b?x=1", 301, "https://www.example.com/new/a/b?x=1"),
        ("www.example.com:8080", "/a?x=1", 308, "https://www.example.com/a?x=1"),
    ],
)
async def test_the_example_redirects(host, asked, status, location):
    async with gateway(EXAMPLE.read_text(), Upstream()) as gw:
        answer = await gw.request(f"GET {asked} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    assert (answer.status, answer.headers.get("location")) == (status, location)


async def test_the_example_answers_by_itself():
    upstream = Upstream()
    async with gateway(EXAMPLE.read_text(), upstream) as gw:
        answer = await gw.get("/robots.txt")
    assert (answer.status, answer.body) == (200, b"User-agent: *\nDisallow: /\n")
    assert answer.headers.get("content-type") == "text/plain; charset=utf-8"
    assert upstream.asked == []


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_what_the_readme_shows_loads_without_a_warning(text, tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    assert load(file, environ={}).warnings == ()


def test_the_example_loads_without_a_warning():
    assert load(EXAMPLE, environ={}).warnings == ()


def test_the_readme_has_a_row_for_every_setting():
    rows = {
        name
        for line in README.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_.]+)`", line.split("|")[1])
    }
    assert {name for name in rows if not name.startswith("$")} == set(settings(Rewrite))


def settings(model, prefix=""):
    """Return every key of *model*, with dots."""
    keys = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        inner = next(
            (
                each
                for each in [field.annotation, *getattr(field.annotation, "__args__", ())]
                if hasattr(each, "model_fields")
            ),
            None,
        )
        keys += settings(inner, f"{key}.") if inner else [key]
    return keys


def test_one_section_at_two_levels():
    sections = gw_sections()
    assert (sections.name, sections.gateway, sections.upstream, sections.route) == ("rewrite", Rewrite, None, Rewrite)
