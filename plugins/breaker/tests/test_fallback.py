"""What the client gets while a breaker is open: last good answers, which are nobody's secret and bounded, and fixed ones."""

from __future__ import annotations

import pytest

from gw import IDENTITY, Filter, Identity
from gw.testing import check_filter, drive
from gw.testing.gateway import Upstream, in_memory
from gw_breaker.fallback import Instead, LastGood, Recorder
from gw_breaker.settings import Cached, FixedAnswer

PUBLIC = {"cache-control": "max-age=60", "content-type": "text/plain", "etag": '"1"'}


class Seconds:
    now = 0.0

    def __call__(self):
        return self.now


def store(**settings):
    return LastGood(Cached(**settings), Seconds())


def place(name):
    return ("route", "example.test", f"/{name}", None)


# --- the store ---------------------------------------------------------------


def test_an_answer_is_as_old_as_it_is_and_not_too_old():
    clock = Seconds()
    kept = LastGood(Cached(max_age_sec=10), clock)
    kept.keep(place("a"), (("etag", "1"),), b"body")
    clock.now = 10.9
    found = kept.find(place("a"))
    assert (found.status, found.body, found.headers) == (200, b"body", (("etag", "1"), ("age", "10")))
    clock.now = 11
    assert kept.find(place("a")) is None
    assert (len(kept), kept.size) == (0, 0)


def test_only_so_many_are_kept_and_what_was_used_longest_ago_goes_first():
    kept = store(max_entries=2)
    for name in "ab":
        kept.keep(place(name), (), b"")
    kept.find(place("a"))
    kept.keep(place("c"), (), b"")
    assert [kept.find(place(name)) is not None for name in "abc"] == [True, False, True]


def test_only_so_many_bytes_are_kept():
    kept = store(max_bytes=1000)
    for number in range(100):
        kept.keep(place(str(number)), (("a", "b"),), b"x" * 200)
        assert kept.size <= 1000
    assert 0 < len(kept) <= 4
    kept.keep(place("99"), (), b"x" * 1001)
    assert kept.find(place("99")) is None


# --- recording ---------------------------------------------------------------


async def recorded(headers=None, *, asked=None, **rest):
    kept = store(max_entry_bytes=10)
    played = await drive(
        Recorder({"upstream": kept}), upstream_headers=PUBLIC if headers is None else headers, headers=asked, **rest
    )
    assert played.status == rest.get("status", 200)
    return kept


async def test_a_good_answer_is_kept_whole_without_what_belongs_to_one_message():
    kept = await recorded(PUBLIC | {"date": "now", "connection": "close"}, upstream=[b"he", b"llo"])
    (answer,) = kept._kept.values()
    assert answer.body == b"hello"
    assert answer.headers == tuple(PUBLIC.items())


@pytest.mark.parametrize("said", ["public", "s-maxage=5", "Max-Age=1, stale-if-error=60", "no-transform,public"])
async def test_what_shared_caches_may_keep_is_kept(said):
    assert len(await recorded({"cache-control": said})) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cache-control": "private, max-age=60"},
        {"cache-control": "public, no-store"},
        {"cache-control": 'max-age=60, no-cache="set-cookie"'},
        {"cache-control": "max-age=60, must-revalidate"},
        {"cache-control": "public, proxy-revalidate"},
        PUBLIC | {"vary": "accept"},
        PUBLIC | {"set-cookie": "a=b"},
    ],
)
async def test_what_they_may_not_keep_is_not(headers):
    assert len(await recorded(headers)) == 0


@pytest.mark.parametrize("asked", [{"authorization": "Bearer x"}, {"cookie": "a=b"}, {"range": "bytes=0-1"}])
async def test_what_was_for_one_person_is_not_kept(asked):
    assert len(await recorded(asked=asked)) == 0


@pytest.mark.parametrize(
    "rest",
    [{"method": "POST"}, {"method": "HEAD"}, {"status": 203}, {"status": 500}, {"upstream": [b"0123456789", b"a"]}],
)
async def test_what_is_no_whole_small_answer_to_a_get_is_not_kept(rest):
    assert len(await recorded(**rest)) == 0


async def test_what_was_cut_off_is_not_kept():
    kept = store()
    whole = await drive(Recorder({"upstream": kept}), upstream=[b"a", b"b"], upstream_headers=PUBLIC)
    for stop_at in range(1, whole.awaits):
        kept = store()
        await drive(Recorder({"upstream": kept}), upstream=[b"a", b"b"], upstream_headers=PUBLIC, stop_at=stop_at)
        assert all(answer.body == b"ab" for answer in kept._kept.values())


async def test_whom_a_plugin_recognised_is_shown_nothing_and_gives_nothing():
    class Recognises(Filter):
        name = "recognises"

        async def on_request_headers(self, ex):
            ex[IDENTITY] = Identity("somebody")

    kept = store()
    played = await drive([Recognises(), Recorder({"upstream": kept})], upstream_headers=PUBLIC)
    assert len(kept) == 0
    anonymous = await drive(Recorder({"upstream": kept}), upstream_headers=PUBLIC)
    instead = Instead(kept, None)
    assert instead.of(anonymous.exchange, ()) is not None
    assert instead.of(played.exchange, ()) is None


async def test_it_keeps_the_promises_of_filters():
    await check_filter(lambda: Recorder({"upstream": store()}))


# --- instead of the 503 ------------------------------------------------------


async def test_a_fixed_answer_stands_in_for_what_was_not_kept():
    ex = (await drive(Recorder({"upstream": store()}))).exchange
    reply = Instead(store(), FixedAnswer(status=200, body="[]", content_type="application/json")).of(ex, (("a", "b"),))
    assert (reply.status, reply.body, reply.headers) == (
        200,
        b"[]",
        (("content-type", "application/json"), ("a", "b")),
    )
    assert reply.reason == "breaker.fixed"


GOOD = b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\ngood"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


async def test_a_client_gets_the_last_good_answer_while_it_is_open(clock):
    section = {
        "enabled": True,
        "consecutive_failure_threshold": 1,
        "fallback": {"cached": {}, "respond": {"status": 503, "body": "later"}},
    }
    config = {
        "plugins": ["breaker"],
        "upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}, "circuit_breaker": section}],
    }
    upstream = Upstream(GOOD, ERROR)
    async with in_memory(config, upstream) as gateway:
        assert (await gateway.get("/a?b=1")).body == b"good"
        assert (await gateway.get("/x")).status == 500
        kept = await gateway.get("/a?b=1")
        assert (kept.status, kept.body) == (200, b"good")
        assert [kept.headers.get(name) for name in ("age", "x-circuit-breaker", "retry-after", "connection")] == [
            "0",
            "open",
            "5",
            None,
        ]
        head = await gateway.request(b"HEAD /a?b=1 HTTP/1.1\r\nhost: example.test\r\n\r\n", method="HEAD")
        assert (head.status, head.headers.get("content-length"), head.body) == (200, "4", b"")
        for path, headers in [("/a?b=2", {}), ("/a", {}), ("/a?b=1", {"cookie": "a=b"})]:
            other = await gateway.get(path, headers)
            assert (other.status, other.body) == (503, b"later")
            assert other.headers.get("x-circuit-breaker") == "open"
        assert len(upstream.asked) == 2
