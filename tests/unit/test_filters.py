"""What a plugin author handles: header fields, exchanges, the values that hooks return."""

from __future__ import annotations

import pytest

from gw.filters import Body, Exchange, Filter, Headers, Key, Outcome, Reply, Request, Response, Retry
from gw.keys import Client


@pytest.fixture
def ex():
    return Exchange(Request("GET", "/path?q=1"), Client("198.51.100.7", "198.51.100.7"))


class TestHeaders:
    def test_order_and_duplicates_are_kept_and_names_are_lower_case(self):
        headers = Headers.of([("B", "1"), ("a", "2"), ("b", "3")])
        assert list(headers) == [("b", "1"), ("a", "2"), ("b", "3")]
        assert (headers.get("B"), headers.get_all("b"), len(headers)) == ("1", ["1", "3"], 3)

    def test_a_name_that_is_not_there_has_the_value_asked_for(self):
        headers = Headers()
        assert (headers.get("x"), headers.get("x", ""), headers.get_all("x"), "x" in headers) == (None, "", [], False)

    def test_set_replaces_every_line_at_the_place_of_the_first(self):
        headers = Headers.of([("a", "1"), ("b", "2"), ("c", "3"), ("B", "4")])
        headers.set("B", "new")
        assert list(headers) == [("a", "1"), ("b", "new"), ("c", "3")]
        headers.set("d", "last")
        assert list(headers)[-1] == ("d", "last")

    def test_a_default_is_written_where_there_is_no_such_line(self):
        headers = Headers.of([("ETag", "a")])
        headers.setdefault("ETag", "b")
        headers.setdefault("Age", "1")
        assert headers.raw == [(b"etag", b"a"), (b"age", b"1")]

    def test_discard_removes_every_line_if_there_is_one(self):
        headers = Headers.of([("a", "1"), ("b", "2"), ("A", "3")])
        headers.discard("A")
        headers.discard("absent")
        assert list(headers) == [("b", "2")]

    def test_a_copy_goes_its_own_way(self):
        headers = Headers.of([("a", "1")])
        copy = headers.copy()
        copy.add("b", "2")
        assert (len(headers), headers == copy, headers == Headers.of([("a", "1")])) == (1, False, True)

    def test_a_value_can_be_had_as_it_came(self):
        headers = Headers.of([("a", "1"), ("A", "2")])
        assert (headers.find(b"a"), headers.find(b"b")) == (b"1", None)

    def test_prepared_lines_are_appended_and_prepared_names_removed(self):
        headers = Headers.of([("a", "1"), ("x-user", "forged"), ("content-length", "0"), ("X-User", "again")])
        lines = Headers.of([("x-user", "alice")])
        headers.discard_all(frozenset({b"x-user", b"content-length", b"absent"}))
        headers.extend(lines)
        assert list(headers) == [("a", "1"), ("content-length", "0"), ("x-user", "alice")]
        assert list(lines) == [("x-user", "alice")]

    @pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\rb", "a\0b"])
    def test_a_value_cannot_split_the_message(self, value):
        for write in (Headers().set, Headers().add):
            with pytest.raises(ValueError, match="x: a field value cannot contain CR, LF or NUL"):
                write("x", value)

    @pytest.mark.parametrize("name", ["content-length", "Transfer-Encoding"])
    def test_framing_is_not_a_filters_business(self, name):
        headers = Headers()
        for write in (headers.set, headers.add):
            with pytest.raises(ValueError, match="framing belongs to the core"):
                write(name, "1")
        with pytest.raises(ValueError, match="framing belongs to the core"):
            headers.discard(name)

    def test_text_beyond_latin_1_must_be_encoded_by_who_sends_it(self):
        headers = Headers()
        headers.add("x", "é")
        assert headers.raw == [(b"x", b"\xe9")]
        with pytest.raises(ValueError, match="x: a field value must be latin-1; encode other text yourself"):
            headers.add("x", "€")

    def test_it_shows_names_and_no_values(self):
        assert repr(Headers.of([("cookie", "secret"), ("a", "1")])) == "<Headers cookie, a>"


class TestExchange:
    def test_a_key_is_the_object_and_not_its_name(self, ex):
        one, same_name = Key("who"), Key("who")
        assert ex.get(one, "nobody") == "nobody"
        with pytest.raises(KeyError):
            ex[one]
        ex[one] = "alice"
        assert (ex[one], ex.get(same_name, None)) == ("alice", None)

    @pytest.mark.parametrize("phase", ["request body", "upstream body"])
    def test_a_body_hook_is_dropped_from_a_headers_hook_or_not_at_all(self, ex, phase):
        ex.skip_body(Filter())
        ex._phase = phase
        with pytest.raises(RuntimeError, match=f"must be called from a headers hook, not in phase: {phase}"):
            ex.skip_body(Filter())

    def test_notes_are_taken_only_while_it_is_explained(self, ex):
        ex.note("pass", "unheard")
        ex.notes = []
        ex.note("pass", "heard")
        assert [(note.verdict, note.reason) for note in ex.notes] == [("pass", "heard")]

    def test_path_and_query_are_parted_at_the_first_question_mark(self):
        request = Request("GET", "/a?b?c")
        assert (request.path, request.query, request.path_and_query) == ("/a", "b?c", "/a?b?c")
        assert (Request("GET", "/a").query, Request("GET", "/a?").query) == (None, "")
        assert Request("GET", "/a?").path_and_query == "/a?"

    def test_they_show_themselves_in_one_line(self, ex):
        ex.request_id, ex.outcome = "7f", Outcome.REPLY
        ex.request.host = "a.test"
        assert repr(ex) == "<Exchange 7f <Request GET a.test/path> reply>"
        assert (repr(Response(204)), repr(Key("who"))) == ("<Response 204>", "<Key who>")


class TestFilter:
    async def test_one_that_overrides_nothing_changes_nothing(self, ex):
        f = Filter()
        assert (f.body, f.upstream_body) == (Body.STREAM, Body.STREAM)
        assert await f.on_request_headers(ex) is None
        assert await f.on_body(ex, b"chunk", False) == b"chunk"
        assert await f.on_upstream_body(ex, b"chunk", True) == b"chunk"

    def test_what_a_hook_returns_cannot_be_changed_afterwards(self):
        for value in (Reply(403), Retry()):
            with pytest.raises(AttributeError):
                value.reason = "other"
