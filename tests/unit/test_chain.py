"""The chain, driven in memory: order, replies, bodies, failures, cancellation."""

from __future__ import annotations

import hashlib
import zlib

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from gw import Attempt, Body, Exchange, Filter, Key, Order, Outcome, Reply, Response, Retry
from gw.chain import Chain, ChainError
from gw.failures import Overtaken
from gw.limits import MAX_ATTEMPTS, MAX_OVERTAKEN
from gw.testing import check_filter, drive
from gw.testing.drive import _Target


class Named(Filter):
    """Says when each of its hooks is run, and replies in the one it is told to."""

    def __init__(self, name: str, seen: list[str], reply_in: str = "") -> None:
        self.name, self.seen, self.reply_in = name, seen, reply_in

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        self.seen.append(f"{self.name}.req")
        return Reply(403, b"no", reason=f"{self.name}.no") if self.reply_in == "req" else None

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        self.seen.append(f"{self.name}.upreq")
        return Reply(503, b"no", reason=f"{self.name}.open") if self.reply_in == "upreq" else None

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        self.seen.append(f"{self.name}.up")
        return None

    def on_response_headers(self, ex: Exchange) -> None:
        self.seen.append(f"{self.name}.resp")

    def on_complete(self, ex: Exchange) -> None:
        self.seen.append(f"{self.name}.done")


class TestOrder:
    async def test_requests_run_down_the_list_and_responses_back_up(self) -> None:
        seen: list[str] = []
        await drive([Named(n, seen) for n in "abc"])
        assert seen == (
            [
                "a.req",
                "b.req",
                "c.req",
                "a.upreq",
                "b.upreq",
                "c.upreq",
                "c.up",
                "b.up",
                "a.up",
                "c.resp",
                "b.resp",
                "a.resp",
                "c.done",
                "b.done",
                "a.done",
            ]
        )

    async def test_a_reply_is_shown_only_to_the_filters_it_passed(self) -> None:
        seen: list[str] = []
        played = await drive([Named("a", seen), Named("b", seen, "req"), Named("c", seen)])
        assert seen == ["a.req", "b.req", "b.resp", "a.resp", "b.done", "a.done"]
        assert (played.status, played.body, played.outcome, played.reason) == (403, b"no", Outcome.REPLY, "b.no")
        assert "dial" not in played.log

    async def test_a_reply_before_the_attempt_opens_no_connection(self) -> None:
        seen: list[str] = []
        played = await drive([Named("a", seen, "upreq"), Named("b", seen)])
        assert (played.status, played.reason) == (503, "a.open")
        assert "dial" not in played.log
        assert seen == ["a.req", "b.req", "a.upreq", "b.resp", "a.resp", "b.done", "a.done"]

    def test_order_is_checked_not_sorted(self) -> None:
        class A(Filter):
            name = "a"
            order = Order(after=("b",))

        class B(Filter):
            name = "b"
            order = Order(unique=True)

        class C(Filter):
            name = "c"
            order = Order(before=("b",))

        Chain([C(), B(), A()])
        with pytest.raises(ChainError, match="'a' must come after 'b'; move it down the list"):
            Chain([A(), B()])
        with pytest.raises(ChainError, match="'c' must come before 'b'; move it up the list"):
            Chain([B(), C()])
        with pytest.raises(ChainError, match="'b' is listed twice, and may be used once in a route"):
            Chain([B(), B()])


class Sign(Filter):
    """Needs the whole body before the headers can go."""

    name = "sign"
    body = Body.BUFFER

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        assert end
        ex.request.headers.set("digest", hashlib.sha256(chunk).hexdigest())
        return chunk


class Shout(Filter):
    """Changes each chunk."""

    name = "shout"

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        return chunk.upper()


class Inflate(Filter):
    """A stateful body filter that steps aside for bodies it does not want."""

    name = "inflate"
    state: Key[object] = Key("inflate")

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        assert ex.response
        if ex.response.headers.get("content-length") == "2":
            ex.skip_body(self)
        else:
            ex[self.state] = zlib.decompressobj()
        return None

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        z = ex[self.state]
        return z.decompress(chunk) + (z.flush() if end else b"")


class Block(Filter):
    name = "block"

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        return Reply(403, reason="block.word") if b"bad" in chunk else chunk


class TestBodies:
    async def test_a_get_needs_no_second_task_and_no_body_hook(self) -> None:
        played = await drive([])
        assert played.log == [
            "dial",
            "up.start 0 end",
            "up.response",
            "down.start 200 0",
            "up.receive",
            "down.send 2 end",
            "up.finish",
        ]

    async def test_buffer_holds_the_headers_until_the_body_is_whole(self) -> None:
        played = await drive(Sign(), method="POST", body=[b"ab", b"cd", b"ef"])
        assert played.upstream_headers is not None
        assert played.upstream_headers.get("digest") == hashlib.sha256(b"abcdef").hexdigest()
        assert played.upstream_headers.get("content-length") == "6"
        assert played.log[:5] == ["down.receive"] * 3 + ["dial", "up.start 6 end"]

    async def test_buffer_sees_what_the_filters_before_it_made_of_the_body(self) -> None:
        played = await drive([Shout(), Sign()], method="POST", body=[b"ab", b"cd"])
        assert played.upstream_body == b"ABCD"
        assert played.upstream_headers is not None
        assert played.upstream_headers.get("digest") == hashlib.sha256(b"ABCD").hexdigest()

    async def test_filters_after_a_buffer_still_stream(self) -> None:
        played = await drive([Sign(), Shout()], method="POST", body=[b"ab", b"cd"])
        assert played.upstream_body == b"ABCD"
        assert played.upstream_headers is not None
        assert played.upstream_headers.get("content-length") is None

    async def test_buffer_has_a_limit(self) -> None:
        f = Sign()
        f.buffer_limit = 3
        played = await drive(f, method="POST", body=[b"ab", b"cd"])
        assert (played.status, played.reason) == (413, "gw.body_too_large")

    async def test_a_buffered_body_answers_the_expectation_itself(self) -> None:
        played = await drive(Sign(), method="POST", body=[b"ab", b"cd"], headers={"expect": "100-continue"})
        assert played.interim == [100]
        assert played.upstream_headers is not None
        assert "expect" not in played.upstream_headers

    async def test_stream_drops_content_length_only_where_the_body_may_change(self) -> None:
        text = b"x" * 1000
        data = zlib.compress(text)
        for cut in (1, 7, len(data)):
            played = await drive(Inflate(), upstream=[data[i : i + cut] for i in range(0, len(data), cut)])
            assert played.body == text
            assert played.headers.get("content-length") is None
        assert (await drive(Inflate(), upstream=b"ok")).headers.get("content-length") == "2"

    async def test_a_buffered_response_is_measured_again(self) -> None:
        class Twice(Filter):
            name = "twice"
            upstream_body = Body.BUFFER

            async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
                return chunk * 2

        played = await drive(Twice(), upstream=[b"ab", b"cd"])
        assert (played.body, played.headers.get("content-length")) == (b"abcdabcd", "8")
        small = Twice()
        small.buffer_limit = 3
        played = await drive(small, upstream=[b"ab", b"cd"])
        assert (played.status, played.reason) == (502, "gw.response_too_large")

    async def test_an_observer_cannot_change_what_it_sees(self) -> None:
        seen = []

        class Watch(Filter):
            name = "watch"
            body = upstream_body = Body.OBSERVE

            async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
                seen.append((chunk, end))
                return b"changed"

            async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
                return b"changed"

        played = await drive(Watch(), method="POST", body=[b"a", b"b"])
        assert (played.upstream_body, played.body) == (b"ab", b"ok")
        assert seen == [(b"a", False), (b"b", True)]
        assert played.headers.get("content-length") == "2"

    async def test_a_reply_from_mid_body_answers_if_the_response_has_not_begun(self) -> None:
        played = await drive(Block(), method="POST", body=[b"fine", b"bad", b"more"])
        assert (played.status, played.reason, played.upstream_body) == (403, "block.word", b"fine")
        assert played.log.count("up.finish") == 1

    async def test_full_duplex_the_upstream_may_answer_first(self) -> None:
        played = await drive([], method="POST", body=[b"a"] * 5, upstream=[b"1", b"2"], early=True)
        assert (played.status, played.body, played.outcome) == (200, b"12", Outcome.UPSTREAM)

    async def test_skip_body_says_so_when_it_is_too_late(self) -> None:
        class Late(Filter):
            name = "late"

            async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
                with pytest.raises(RuntimeError, match="from a headers hook, not in phase: request body"):
                    ex.skip_body(self)
                return chunk

        assert (await drive(Late(), method="POST", body=b"x")).status == 200


class Boom(Filter):
    """Raises in the hook it is told to."""

    name = "boom"

    def __init__(self, where: str) -> None:
        self.where = where

    def _maybe(self, hook: str) -> None:
        if hook == self.where:
            raise ZeroDivisionError

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        self._maybe("on_request_headers")
        return None

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        self._maybe("on_body")
        return chunk

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        self._maybe("on_upstream_response")
        return None

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        if end:
            self._maybe("on_upstream_body")
        return chunk

    def on_response_headers(self, ex: Exchange) -> None:
        self._maybe("on_response_headers")

    def on_complete(self, ex: Exchange) -> None:
        self._maybe("on_complete")


class TestFailures:
    @pytest.mark.parametrize("hook", ["on_request_headers", "on_body", "on_upstream_response", "on_response_headers"])
    async def test_a_hook_that_raises_before_the_head_is_a_500_and_is_completed(
        self, hook: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []
        played = await drive([Named("a", seen), Boom(hook)], method="POST", body=b"x")
        assert (played.status, played.reason) == (500, "gw.error.ZeroDivisionError")
        assert seen[-1] == "a.done"
        [record] = caplog.records
        assert record.getMessage() == f"plugin boom raised ZeroDivisionError in {hook} (route test, request request-1)"
        assert record.exc_info is not None

    async def test_an_error_after_the_head_breaks_the_response_off_visibly(self) -> None:
        for body in (b"", b"x"):
            played = await drive(Boom("on_upstream_body"), method="POST", body=body, upstream=[b"1", b"2"])
            assert (played.status, played.body, played.ended, played.was_reset) == (200, b"1", False, True)
            assert (played.outcome, played.reason) == (Outcome.RESET, "gw.error.ZeroDivisionError")

    async def test_every_filter_completes_although_one_raises_there(self) -> None:
        seen: list[str] = []
        played = await drive([Named("a", seen), Boom("on_complete"), Named("b", seen)])
        assert played.status == 200
        assert seen[-2:] == ["b.done", "a.done"]

    async def test_a_refused_upstream_is_a_502_unless_a_filter_has_better(self) -> None:
        class Stale(Filter):
            name = "stale"

            async def on_upstream_error(self, ex: Exchange, attempt: Attempt, error: Exception) -> Reply | None:
                return Reply(200, b"stale", reason="stale.served")

        played = await drive([], refuse=True)
        assert (played.status, played.body, played.reason) == (502, b"Bad Gateway", "gw.connect_failure")
        assert (await drive(Stale(), refuse=True)).body == b"stale"

    async def test_a_reply_instead_of_the_upstreams_answer_closes_the_attempt(self) -> None:
        class Deny(Filter):
            name = "deny"

            async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | None:
                return Reply(451, reason="deny.all")

        played = await drive(Deny(), method="POST", body=b"x")
        assert (played.status, played.reason, played.log.count("up.finish")) == (451, "deny.all", 1)


class Again(Filter):
    """Asks for another attempt, up to a number of times."""

    name = "again"

    def __init__(self, times: int) -> None:
        self.times = times

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Retry | None:
        return Retry() if attempt.number <= self.times else None

    async def on_upstream_error(self, ex: Exchange, attempt: Attempt, error: Exception) -> Retry | None:
        return Retry() if attempt.number <= self.times else None


class TestAttempts:
    async def test_a_filter_may_ask_for_another_attempt(self) -> None:
        played = await drive(Again(2))
        assert (played.status, len(played.exchange.attempts), played.log.count("dial")) == (200, 3, 3)
        assert [a.number for a in played.exchange.attempts] == [1, 2, 3]

    async def test_a_refused_connection_may_be_tried_again(self) -> None:
        played = await drive(Again(2), refuse=2)
        assert (played.status, len(played.exchange.attempts)) == (200, 3)
        assert [type(a.error).__name__ for a in played.exchange.attempts] == [
            "ConnectFailed",
            "ConnectFailed",
            "NoneType",
        ]

    async def test_attempts_have_an_end(self) -> None:
        played = await drive(Again(10**6))
        assert (played.status, len(played.exchange.attempts)) == (200, MAX_ATTEMPTS)

    async def test_a_body_that_is_still_coming_cannot_be_sent_twice(self) -> None:
        played = await drive(Again(2), method="POST", body=[b"a", b"b"])
        assert (played.status, len(played.exchange.attempts)) == (200, 1)

    async def test_a_body_that_was_buffered_can(self) -> None:
        played = await drive([Sign(), Again(1)], method="POST", body=[b"a", b"b"])
        assert (played.upstream_body, len(played.exchange.attempts)) == (b"ab", 2)

    async def test_an_upstream_that_disconnects_is_a_502(self) -> None:
        played = await drive([], disconnect=True)
        assert (played.status, played.reason) == (502, "gw.upstream_disconnect")

    async def test_an_attempt_says_when_it_began_was_answered_and_was_over(self) -> None:
        played = await drive([])
        (attempt,) = played.exchange.attempts
        assert 0 < attempt.started <= attempt.answered <= attempt.ended

    async def test_an_attempt_that_failed_was_never_answered(self) -> None:
        played = await drive([], refuse=True)
        (attempt,) = played.exchange.attempts
        assert attempt.answered == 0.0
        assert attempt.started <= attempt.ended


class TestChecks:
    @pytest.mark.parametrize("make", [Sign, Block, Shout, type("Plain", (Filter,), {"name": "plain"})])
    async def test_they_pass_for_our_own(self, make: type[Filter]) -> None:
        await check_filter(make)

    async def test_they_catch_a_filter_that_depends_on_chunks(self) -> None:
        class Naive(Filter):
            name = "naive"

            async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
                return chunk.replace(b"12", b"!")

        with pytest.raises(AssertionError, match="depends on chunking"):
            await check_filter(Naive)

    async def test_they_catch_state_kept_on_self(self) -> None:
        class Leaky(Filter):
            name = "leaky"
            seen = b""

            async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
                self.seen += chunk
                await anyio.lowlevel.checkpoint()
                return self.seen if end else b""

        with pytest.raises(AssertionError, match=r"see each other|depends on chunking"):
            await check_filter(Leaky)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9),
    st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 40),
)
def test_whatever_the_chunks_and_wherever_it_is_cancelled(
    up: list[bytes], back: list[bytes], early: bool, stop: int
) -> None:
    done: list[str] = []

    async def main() -> None:
        played = await drive(
            [Named("f", done), Sign()], method="POST", body=up, upstream=back, early=early, stop_at=stop or None
        )
        assert done.count("f.done") == 1
        assert played.log.count("up.finish") == sum(line.startswith("up.start") for line in played.log)
        if not stop:
            assert played.body == b"".join(back)
            assert played.upstream_body == b"".join(up)

    anyio.run(main)


def test_a_response_says_what_it_is_to_the_person_at_the_debugger() -> None:
    assert repr(Response(204)) == "<Response 204>"
    assert repr(Key("x")) == "<Key x>"


@pytest.mark.parametrize(("times", "status"), [(MAX_OVERTAKEN, 200), (MAX_OVERTAKEN + 1, 502)])
async def test_a_request_that_others_overtake_is_sent_again_and_not_for_ever(monkeypatch, times, status):
    left = [times]
    connect = _Target.connect

    async def overtaken(self, attempt, *, fresh):
        if left[0]:
            left[0] -= 1
            raise Overtaken("the connection was ended after it had answered others")
        return await connect(self, attempt, fresh=fresh)

    monkeypatch.setattr(_Target, "connect", overtaken)
    played = await drive([])
    assert played.status == status
    assert left == [0]
