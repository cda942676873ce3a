"""Trace headers: what is read, what is refused, what is written. The table is the W3C recommendation's, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gw_otel.propagation import Invalid, Parent, Propagation, read_tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def extract(headers, *formats):
    """Return what is found in *headers*, pairs of text, and what was counted as invalid."""
    counted = []
    propagation = Propagation(formats or ("w3c",), lambda *what: counted.append(what))
    fields = {}
    for name, value in headers:
        fields.setdefault(name.encode(), []).append(value.encode("latin-1"))
    return propagation.extract(fields), counted


def context(value):
    found, _ = extract([("traceparent", value)])
    return found


# --- traceparent (W3C Trace Context 3.2) ---------------------------------------


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (VALID, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),  # the random flag of level 2
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-ff", True),  # unknown flags are ignored
        (f"cc-{TRACE}-{SPAN}-01", True),  # a future version
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
        (f"01-{TRACE}-{SPAN}-01-", True),
        (f"fe-{TRACE}-{SPAN}-00", False),
    ],
)
def test_a_valid_traceparent_is_followed(value, sampled):
    assert context(value) == Parent(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "malformed"),
        (VALID.upper(), "malformed"),
        (f"00-{TRACE}-{SPAN}", "malformed"),
        (f"00-{TRACE}-{SPAN}-1", "malformed"),
        (f"00-{TRACE}-{SPAN}-0g", "malformed"),
        (f"00-{TRACE}-{SPAN}-.0", "malformed"),
        (f"00-{TRACE}-{SPAN}-001", "malformed"),
        (f"00-{TRACE[:-1]}-{SPAN}-01", "malformed"),
        (f"00-{TRACE}1-{SPAN}-01", "malformed"),
        (f"00-.{TRACE[1:]}-{SPAN}-01", "malformed"),
        (f"00-{TRACE}-{SPAN[:-1]}-01", "malformed"),
        (f"00-{TRACE}-{SPAN}1-01", "malformed"),
        (f"00-{TRACE}-.{SPAN[1:]}-01", "malformed"),
        (f"0-{TRACE}-{SPAN}-01", "malformed"),
        (f"000-{TRACE}-{SPAN}-01", "malformed"),
        (f"0g-{TRACE}-{SPAN}-01", "malformed"),
        (f"..-{TRACE}-{SPAN}-01", "malformed"),
        (f"00_{TRACE}_{SPAN}_01", "malformed"),
        (f" {VALID}", "malformed"),
        (f"{VALID}\n", "malformed"),
        (f"{VALID},{VALID}", "malformed"),
        (f"cc-{TRACE}-{SPAN}-01.what", "malformed"),
        (f"cc-{TRACE}-{SPAN}-01what", "malformed"),
        (f"ff-{TRACE}-{SPAN}-01", "version"),
        (f"00-{TRACE}-{SPAN}-01-what", "version"),
        (f"00-{TRACE}-{SPAN}-01-", "version"),
        (f"00-{'0' * 32}-{SPAN}-01", "zero_id"),
        (f"00-{TRACE}-{'0' * 16}-01", "zero_id"),
        (f"00-{'0' * 32}-{'0' * 16}-00", "zero_id"),
    ],
)
def test_any_other_traceparent_begins_a_new_trace_and_is_counted(value, reason):
    assert extract([("traceparent", value), ("tracestate", "a=1")]) == (None, [("w3c", reason)])


def mutated():
    """Headers that are nearly right: a valid one of any version, with characters changed, put in or left out."""
    digits = st.text("0123456789abcdef", min_size=1)
    parts = st.tuples(
        st.sampled_from(["00", "01", "cc", "fe", "ff"]),
        digits.map(lambda text: (text * 32)[:32]) | st.just("0" * 32),
        digits.map(lambda text: (text * 16)[:16]) | st.just("0" * 16),
        digits.map(lambda text: (text * 2)[:2]),
    )
    whole = st.tuples(parts.map("-".join), st.sampled_from(["", "-", "-more", ".more", " "])).map("".join)
    change = st.tuples(st.integers(0, 60), st.integers(0, 2), st.sampled_from(["", "-", "0", "f", "F", "g", " ", "."]))
    return st.tuples(whole, st.lists(change, max_size=2)).map(changed)


def changed(made):
    text, changes = made
    for at, gone, new in changes:
        text = text[:at] + new + text[at + gone :]
    return text


@settings(max_examples=1000)
@given(value=mutated())
def test_the_sdk_finds_the_same_trace(value):
    said = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": value})).get_span_context()
    found = context(value.strip(" \t"))  # as HTTP gives it to us
    assert (found is not None) == said.is_valid, value
    if found is not None:
        assert (int(found.trace_id, 16), int(found.span_id, 16), found.sampled) == (
            said.trace_id,
            said.span_id,
            said.trace_flags.sampled,
        )


def test_two_traceparents_are_none():
    assert extract([("traceparent", VALID), ("traceparent", VALID)]) == (None, [("w3c", "repeated")])


def test_without_headers_nothing_is_found_and_nothing_counted():
    assert extract([]) == (None, [])
    assert extract([("tracestate", "a=1")]) == (None, [])


# --- tracestate (W3C Trace Context 3.3) ----------------------------------------

FULL = ",".join(f"k{n}=v" for n in range(32))
ALLOWED = "".join(map(chr, range(0x21, 0x7F))).translate({44: None, 61: None})


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1,", "", ",,bar=2"], "foo=1,bar=2"),
        ([""], ""),
        (["foo=1,foo=2"], "foo=1,foo=2"),  # it is for whoever wrote it to choose one
        ([f"{'z' * 256}=1"], f"{'z' * 256}=1"),
        ([f"{'t' * 241}@{'v' * 14}=1"], f"{'t' * 241}@{'v' * 14}=1"),
        (["0tenant@vendor=1"], "0tenant@vendor=1"),
        (["a0_-*/=x"], "a0_-*/=x"),
        ([f"k={'v' * 256}"], f"k={'v' * 256}"),
        ([f"k={ALLOWED}"], f"k={ALLOWED}"),
        (["k=a b"], "k=a b"),
        ([FULL], FULL),
    ],
)
def test_a_valid_tracestate_is_passed_on(lines, state):
    assert read_tracestate([line.encode() for line in lines]) == state


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f"{FULL},one=more"], "tracestate_members"),
        ([FULL, "one=more"], "tracestate_members"),
        (["foo"], "tracestate_member"),
        (["foo=1,bar"], "tracestate_member"),
        (["foo="], "tracestate_member"),
        (["=1"], "tracestate_member"),
        (["foo =1"], "tracestate_member"),
        (["FOO=1"], "tracestate_member"),
        (["foo.bar=1"], "tracestate_member"),
        (["0foo=1"], "tracestate_member"),
        (["foo@=1"], "tracestate_member"),
        (["@foo=1"], "tracestate_member"),
        (["foo@@bar=1"], "tracestate_member"),
        (["foo@bar@baz=1"], "tracestate_member"),
        (["foo@0bar=1"], "tracestate_member"),
        ([f"{'z' * 257}=1"], "tracestate_member"),
        ([f"{'t' * 242}@v=1"], "tracestate_member"),
        ([f"t@{'v' * 15}=1"], "tracestate_member"),
        (["foo=bar=baz"], "tracestate_member"),
        (["foo=\x7f"], "tracestate_member"),
        (["foo=b\tr"], "tracestate_member"),
        ([f"k={'v' * 257}"], "tracestate_member"),
    ],
)
def test_a_wrong_tracestate_is_dropped_and_the_trace_goes_on(lines, reason):
    headers = [("traceparent", VALID), *(("tracestate", line) for line in lines)]
    assert extract(headers) == (Parent(TRACE, SPAN, True), [("w3c", reason)])
    with pytest.raises(Invalid):
        read_tracestate([line.encode("latin-1") for line in lines])


# --- Jaeger ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"{TRACE}:{SPAN}:0:1", Parent(TRACE, SPAN, True)),
        (f"{TRACE}:{SPAN}:{SPAN}:0", Parent(TRACE, SPAN, False)),
        (f"{TRACE}:{SPAN}:0:03", Parent(TRACE, SPAN, True)),
        (f"{TRACE}:{SPAN}:0:02", Parent(TRACE, SPAN, False)),
        (f"{TRACE[16:]}:{SPAN}:0:1", Parent(TRACE[16:].rjust(32, "0"), SPAN, True)),
        (f"{TRACE}:{SPAN}::1", None),
        (f"{TRACE}:{SPAN}:1", None),
        (f"{TRACE}:{SPAN}:0:1:0", None),
        (f"{TRACE}:{SPAN}:0:001", None),
        (f"{TRACE}:{SPAN[1:]}:0:1", None),
        (f"{TRACE[1:]}:{SPAN}:0:1", None),
        (f"{TRACE.upper()}:{SPAN}:0:1", None),
        (f"{'0' * 32}:{SPAN}:0:1", None),
        (f"{TRACE}:{'0' * 16}:0:1", None),
    ],
)
def test_jaegers_header_is_read_as_strictly(value, found):
    assert extract([("uber-trace-id", value)], "jaeger")[0] == found


# --- B3 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"{TRACE}-{SPAN}-1", Parent(TRACE, SPAN, True)),
        (f"{TRACE}-{SPAN}-0-{SPAN}", Parent(TRACE, SPAN, False)),
        (f"{TRACE}-{SPAN}-d", Parent(TRACE, SPAN, True)),
        (f"{TRACE}-{SPAN}", Parent(TRACE, SPAN, None)),
        (f"{TRACE[16:]}-{SPAN}-1", Parent(TRACE[16:].rjust(32, "0"), SPAN, True)),
        ("0", Parent("", "", False)),
        ("1", Parent("", "", True)),
        ("2", None),
        (f"{TRACE}-{SPAN}-2", None),
        (f"{TRACE}", None),
        (f"{TRACE}-{SPAN}-1-", None),
        (f"{'0' * 32}-{SPAN}-1", None),
    ],
)
def test_b3_in_one_header(value, found):
    assert extract([("b3", value)], "b3")[0] == found


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"traceid": TRACE, "spanid": SPAN, "sampled": "1"}, Parent(TRACE, SPAN, True)),
        ({"traceid": TRACE, "spanid": SPAN, "sampled": "true"}, Parent(TRACE, SPAN, True)),
        ({"traceid": TRACE, "spanid": SPAN, "sampled": "0", "flags": "1"}, Parent(TRACE, SPAN, True)),
        ({"traceid": TRACE, "spanid": SPAN}, Parent(TRACE, SPAN, None)),
        ({"traceid": TRACE, "spanid": SPAN, "parentspanid": SPAN, "sampled": "0"}, Parent(TRACE, SPAN, False)),
        ({"sampled": "0"}, Parent("", "", False)),
        ({"traceid": TRACE}, None),
        ({"spanid": SPAN}, None),
        ({"traceid": TRACE, "spanid": "0" * 16}, None),
        ({"traceid": TRACE, "spanid": SPAN, "sampled": "maybe"}, None),
    ],
)
def test_b3_in_several_headers(headers, found):
    assert extract([(f"x-b3-{name}", value) for name, value in headers.items()], "b3multi")[0] == found


# --- several formats -------------------------------------------------------------


def test_the_first_format_that_finds_a_context_counts():
    headers = [("traceparent", VALID), ("uber-trace-id", f"{'a' * 32}:{SPAN}:0:0")]
    assert extract(headers, "w3c", "jaeger")[0] == Parent(TRACE, SPAN, True)
    assert extract(headers, "jaeger", "w3c")[0] == Parent("a" * 32, SPAN, False)


def test_a_format_that_finds_nothing_valid_leaves_it_to_the_next():
    headers = [("traceparent", "nonsense"), ("uber-trace-id", f"{TRACE}:{SPAN}:0:1")]
    assert extract(headers, "w3c", "jaeger") == (Parent(TRACE, SPAN, True), [("w3c", "malformed")])


def test_all_formats_are_written():
    propagation = Propagation(("w3c", "jaeger", "b3", "b3multi"), lambda *_: None)
    assert propagation.inject(TRACE, SPAN, True, "a=1") == [
        (b"traceparent", VALID.encode()),
        (b"tracestate", b"a=1"),
        (b"uber-trace-id", f"{TRACE}:{SPAN}:0:01".encode()),
        (b"b3", f"{TRACE}-{SPAN}-1".encode()),
        (b"x-b3-traceid", TRACE.encode()),
        (b"x-b3-spanid", SPAN.encode()),
        (b"x-b3-sampled", b"1"),
    ]


def test_what_is_not_sampled_is_carried_on_all_the_same():
    propagation = Propagation(("w3c", "jaeger"), lambda *_: None)
    assert propagation.inject(TRACE, SPAN, False, "") == [
        (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode()),
        (b"uber-trace-id", f"{TRACE}:{SPAN}:0:00".encode()),
    ]


@pytest.mark.parametrize(
    ("formats", "left"),
    [
        (("jaeger",), [b"accept", b"baggage", b"b3"]),
        (("b3",), [b"accept", b"baggage"]),
    ],
)
def test_every_known_header_is_removed_whichever_format_is_in_use(formats, left):
    names = [b"accept", b"traceparent", b"tracestate", b"tracestate", b"baggage", b"uber-trace-id", b"b3"]
    raw = [(name, b"x") for name in names]
    Propagation(formats, lambda *_: None).strip(raw)
    assert [name for name, _ in raw] == left
