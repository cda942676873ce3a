"""Shadow mode, on_error: allow, and explanations."""

from __future__ import annotations

import pytest

from gw import IDENTITY, Body, Exchange, Filter, Identity, Outcome, Reply
from gw.around import Placed
from gw.keys import SHADOW
from gw.testing import drive

from .test_chain import Boom, Named, Sign


class Gatekeeper(Filter):
    """Changes everything a filter can change, then refuses."""

    name = "gatekeeper"

    def __init__(self, refuse: bool = True) -> None:
        self.refuse = refuse
        self.completed = 0

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        ex.request.headers.set("x-seen", "yes")
        ex.request.path = "/elsewhere"
        ex[IDENTITY] = Identity("somebody")
        return Reply(401, reason="gatekeeper.closed") if self.refuse else None

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        return b"changed"

    def on_response_headers(self, ex: Exchange) -> None:
        assert ex.response
        ex.response.headers.set("x-seen", "yes")

    def on_complete(self, ex: Exchange) -> None:
        self.completed += 1


@pytest.mark.parametrize("refuse", [True, False])
async def test_a_shadow_changes_nothing_and_says_what_it_would_have_done(refuse: bool) -> None:
    f = Gatekeeper(refuse)
    plain = await drive([])
    played = await drive(Placed(f, mode="shadow"))
    assert (played.status, played.body, played.outcome) == (200, b"ok", Outcome.UPSTREAM)
    assert played.headers == plain.headers
    assert played.upstream_request is not None
    assert (played.upstream_request.path, "x-seen" in played.upstream_request.headers) == ("/", False)
    assert played.exchange.get(IDENTITY, None) is None
    assert played.exchange.get(SHADOW, []) == (["gatekeeper: reply 401 gatekeeper.closed"] if refuse else [])
    assert f.completed == 1


class Wanderer(Filter):
    """Sends the request elsewhere, and looks at what was asked for."""

    name = "wanderer"

    def __init__(self) -> None:
        self.saw: list[tuple[str, str]] = []

    async def on_request_headers(self, ex: Exchange) -> None:
        self.saw.append((ex.matched_path, ex.asked_host))
        ex.request.path, ex.request.host = "/elsewhere", "other.test"


async def test_a_shadow_sees_what_was_asked_for_whatever_was_rewritten() -> None:
    shadowed = Wanderer()
    await drive([Wanderer(), Placed(shadowed, mode="shadow")], target="/here")
    assert shadowed.saw == [("/here", "example.test")]


async def test_a_shadowed_buffer_holds_nothing_back() -> None:
    played = await drive(Placed(Sign(), mode="shadow"), method="POST", body=[b"a", b"b"])
    assert played.log[:3] == ["dial", "up.start 0", "down.receive"]
    assert played.upstream_body == b"ab"
    assert played.upstream_headers is not None
    assert played.upstream_headers.get("content-length") == "2"
    small = Sign()
    small.buffer_limit = 1
    played = await drive(Placed(small, mode="shadow"), method="POST", body=[b"a", b"b"])
    assert played.exchange[SHADOW] == ["sign: reply gw.body_too_large"]


@pytest.mark.parametrize("hook", ["on_request_headers", "on_body", "on_upstream_response", "on_response_headers"])
async def test_a_shadow_that_raises_harms_nobody(hook: str) -> None:
    played = await drive(Placed(Boom(hook), mode="shadow"), method="POST", body=b"x")
    assert (played.status, played.upstream_body) == (200, b"x")
    assert played.exchange[SHADOW] == ["boom: error ZeroDivisionError"]


@pytest.mark.parametrize(
    "hook",
    ["on_request_headers", "on_body", "on_upstream_response", "on_upstream_body", "on_response_headers", "on_complete"],
)
async def test_on_error_allow_goes_on_without_the_filter(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    played = await drive([Named("a", seen), Placed(Boom(hook), on_error="allow")], method="POST", body=b"x")
    assert (played.status, played.body, played.upstream_body) == (200, b"ok", b"x")
    assert seen[-1] == "a.done"
    assert [r.getMessage() for r in caplog.records] == [
        f"plugin boom raised ZeroDivisionError in {hook}; going on without it"
    ]


async def test_an_exchange_that_is_explained_tells_every_verdict_in_order() -> None:
    seen: list[str] = []
    filters = [Placed(Named("a", seen), "first", position="gw.yaml:3:1"), Placed(Named("b", seen, "req"), "second")]
    played = await drive(filters, explain=True)
    told = [(n.stage, n.plugin, n.verdict, n.reason, n.position) for n in played.notes]
    assert told == [
        ("on_request_headers", "first", "pass", "", "gw.yaml:3:1"),
        ("on_request_headers", "second", "reply", "b.no", ""),
    ]
    assert (await drive(filters)).notes == []


async def test_a_note_of_a_filter_carries_its_stage() -> None:
    class Talks(Filter):
        name = "talks"
        body = Body.OBSERVE

        async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
            ex.note("counted", f"talks.{len(chunk)}")
            return chunk

    played = await drive(Talks(), method="POST", body=b"abc", explain=True)
    assert [(n.stage, n.plugin, n.verdict, n.reason) for n in played.notes] == [
        ("on_body", "talks", "counted", "talks.3")
    ]


class Watcher(Filter):
    name = "watcher"
    explains = True

    def on_complete(self, ex):
        self.seen = [(note.plugin, note.stage, note.verdict) for note in ex.notes]
        self.took = [note.took for note in ex.notes]
        self.order = [note.at for note in ex.notes]


class Passing(Filter):
    name = "passing"

    async def on_request_headers(self, ex):
        ex.note("looked")


async def test_a_filter_can_have_every_exchange_of_its_routes_explained():
    watcher = Watcher()
    await drive([watcher, Passing()])
    assert watcher.seen == [("passing", "on_request_headers", "looked"), ("passing", "on_request_headers", "pass")]
    assert all(took >= 0 for took in watcher.took)
    assert watcher.took[0] <= watcher.took[1]
    assert watcher.order == sorted(watcher.order)
