import json
import math

import pytest
from hypothesis import given, strategies as st

from gw import limits
from gw.config import document
from gw.config.document import adopt, parse, read
from gw.config.errors import ConfigError
from gw.hookspecs import Problem


def said(text, environ=None):
    """What is wrong with *text*, as lines."""
    try:
        return [str(problem) for problem in parse(text, "f", environ or {}).problems]
    except ConfigError as error:
        return str(error).splitlines()


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("7", 7),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("'7'", "7"),
        ('"true"', "true"),
        ("a b", "a b"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(scalar, value):
    tree = parse(f"a: {scalar}", "f", {}).tree
    assert tree == {"a": value}
    assert type(tree["a"]) is type(value)


@pytest.mark.parametrize(
    "scalar",
    [
        "yes",
        "no",
        "on",
        "Off",
        "y",
        "010",
        "0x10",
        "0o7",
        "1_000",
        "1:30",
        "2026-01-31",
        ".5",
        "1.",
        ".inf",
        "1e999",
        "9" * 20,
    ],
)
def test_what_yaml_1_1_would_guess_at_is_text(scalar):
    assert parse(f"a: {scalar}", "f", {}).tree == {"a": scalar}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab ${}:#-é\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc:#", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=3), json_values, max_size=4))
def test_json_means_what_json_means(values):
    text = json.dumps(values, ensure_ascii=False)
    assert parse(text, "f", {}).tree == values


@given(st.text("ab:-[]{}#&*!|>'\"%@`,? \n\t\0é\ufeff", max_size=30))
def test_no_text_fails_otherwise_than_with_a_configuration_error(text):
    try:
        tree = parse(text, "f", {}).tree
    except ConfigError:
        return
    assert isinstance(tree, dict)


def test_an_empty_document_sets_nothing():
    assert parse("# nothing\n", "f", {}).tree == {}


def test_every_key_and_item_has_its_position():
    made = parse("a:\n  b: 1\n  c: [x, {d: 2}]\n", "f", {})
    where = {
        (): "f:1:1",
        ("a",): "f:1:1",
        ("a", "b"): "f:2:3",
        ("a", "c"): "f:3:3",
        ("a", "c", 0): "f:3:7",
        ("a", "c", 1): "f:3:10",
        ("a", "c", 1, "d"): "f:3:11",
    }
    assert {path: made.locate(Problem(path, "")).position for path in where} == where


def test_what_is_not_written_is_where_it_would_stand():
    made = parse("a:\n  b: 1\n", "f", {})
    assert made.locate(Problem(("a", "missing", 3), "")).position == "f:1:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1: a: is set twice; the first time in line 1"),
        ("x: {a: 1, a: 1}", "f:1:11: x.a: is set twice; the first time in line 1"),
        ("- 1", "f:1:1: must be a mapping of keys to values"),
        ("text", "f:1:1: must be a mapping of keys to values"),
        ("a: 1\n---\nb: 2", "f:2:1: holds a second document; put each in a file of its own"),
        ("a: !!str 5", "f:1:4: has a tag (tag:yaml.org,2002:str); tags are not supported"),
        (
            "a: !!python/name:os.system",
            "f:1:4: has a tag (tag:yaml.org,2002:python/name:os.system); tags are not supported",
        ),
        ("a: &x 1\n<<: *x", "f:2:1: has a merge key (<<), which YAML 1.2 does not know; write the keys out"),
        ("? [a]\n: 1", "f:1:3: has a key that is not plain text"),
        ("a: *x", "f:1:4: has an alias to an anchor that is not there: *x"),
        ("a: &x [1, *x]", "f:1:11: has an alias to what it stands in: *x"),
        ("a: b\0c", "f:1:5: contains a control character (U+0000)"),
    ],
)
def test_what_is_no_configuration_is_refused_where_it_stands(text, message):
    assert said(text) == [message]


@pytest.mark.parametrize("text", ["a: [1", "a: 'b", "\ta: 1", "a: b: c", "a: @x", "{"])
def test_what_is_no_yaml_is_refused_where_it_stops_being_yaml(text):
    (message,) = said(text)
    assert message.startswith(("f:1:", "f:2:"))
    assert "is not YAML: " in message


def test_problems_before_a_syntax_error_are_reported_with_it():
    assert said("a: 1\na: 2\nb: [")[0] == "f:2:1: a: is set twice; the first time in line 1"
    assert len(said("a: 1\na: 2\nb: [")) == 2


def test_an_alias_stands_for_a_copy():
    made = parse("a: &x {b: [1]}\nc: *x\n", "f", {})
    assert made.tree == {"a": {"b": [1]}, "c": {"b": [1]}}
    made.put(("c", "b"), 2)
    assert made.tree["a"] == {"b": [1]}


def test_a_value_that_came_through_an_alias_stands_at_its_anchor():
    made = parse("a: &x\n  b: 1\nc: *x\n", "f", {})
    assert made.locate(Problem(("c", "b"), "")).position == "f:2:3"
    assert made.locate(Problem(("c",), "")).position == "f:3:1"


def test_aliases_cannot_multiply_without_bound(monkeypatch):
    monkeypatch.setattr(document, "MAX_CONFIG_VALUES", 1000)
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    assert said(laughs)[-1].endswith("holds more than 1000 values once its aliases are expanded")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_nesting_is_bounded_before_it_can_exhaust_the_stack(opening):
    (message,) = said("a:\n  " + opening * 100_000)
    # libyaml's scanner, which runs ahead of us in flow style, has had a bound of its own since 0.2.6: 1,000.
    assert message.endswith((f"nests deeper than {limits.MAX_CONFIG_DEPTH} levels", "exceeded maximum nesting depth"))


def test_a_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MAX_CONFIG_SIZE", 1 << 20)
    file = tmp_path / "f"
    file.write_bytes(b"#" * (1 << 20))
    assert read(file, {}).tree == {}
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        read(file, {})


def test_a_file_is_utf_8_with_or_without_a_mark(tmp_path):
    file = tmp_path / "f"
    file.write_bytes("\ufeffa: é".encode())
    assert read(file, {}).tree == {"a": "é"}
    file.write_bytes(b"a: 1\nb: \xe9")
    with pytest.raises(ConfigError) as caught:
        read(file, {})
    assert str(caught.value) == f"{file}:2:4: is not UTF-8 text"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"),
        ("x-${A}-${A}", "x-1-1"),
        ("${B:-d}", "d"),
        ("${B:-}", ""),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${A:-d}", "1"),
        ("$${A}", "${A}"),
        ("${client.ip}", "${client.ip}"),
        ("${status}", "${status}"),
        ("$A", "$A"),
        ("$$", "$$"),
        ("^/a$", "^/a$"),
    ],
)
def test_variables_are_filled_in(text, value):
    environ = {"A": "1", "EMPTY": ""}
    made = parse(f"a: '{text}'", "f", environ)
    assert (made.tree, made.problems) == ({"a": value}, [])
    assert adopt({"a": text}, "f", environ).tree == {"a": value}


def test_what_a_variable_holds_is_not_expanded_again():
    assert parse("a: ${A}", "f", {"A": "${B}", "B": "x"}).tree == {"a": "${B}"}


def test_a_key_is_never_expanded():
    assert parse("${A}: 1", "f", {"A": "x"}).tree == {"${A}": 1}


def test_a_variable_that_is_not_there_or_not_whole_is_a_problem():
    assert said("a: ${NO}\nb: ${NO\nc: ${A-b}") == [
        "f:1:4: a: needs the environment variable NO, which is not set",
        "f:2:4: b: has a variable that is not written as ${NAME} or ${NAME:-default}",
        "f:3:4: c: has a variable that is not written as ${NAME} or ${NAME:-default}",
    ]


def test_a_variable_that_is_not_text_is_a_problem():
    assert said("a: ${A}", {"A": "\udcff"}) == ["f:1:4: a: needs the environment variable A, which is not UTF-8 text"]


def test_what_came_from_outside_is_known_as_it_was_written():
    made = parse("a: ${A}\nb: &x {c: 'p-${A}'}\nd: *x\ne: plain", "f", {"A": "1"})
    assert made.outside == {("a",): "${A}", ("b", "c"): "p-${A}", ("d", "c"): "p-${A}"}
    assert made.as_written(()) == {"a": "${A}", "b": {"c": "p-${A}"}, "d": {"c": "p-${A}"}, "e": "plain"}


def test_values_of_a_program_are_taken_as_a_document_that_says_them():
    made = adopt({"a": (1, None), "b": {"c": "${A}"}}, "settings", {"A": "x"})
    assert made.tree == {"a": [1, None], "b": {"c": "x"}}
    assert made.locate(Problem(("b", "c"), "")).position == "settings"


@pytest.mark.parametrize("value", [{1}, b"x", math.inf, object()])
def test_values_that_no_document_can_hold_are_refused(value):
    with pytest.raises(TypeError, match=r"a\[0\]: a configuration cannot hold"):
        adopt({"a": [value]}, "settings", {})


def test_values_without_an_end_are_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nests deeper"):
        adopt({"a": endless}, "settings", {})


def test_a_value_is_set_only_where_there_can_be_one():
    made = parse("a: {}\nlog: null\nb: text", "f", {})
    made.put(("a", "x"), 1)
    made.put(("log", "level"), "info")
    made.put(("b", "x"), 1)
    assert made.tree == {"a": {"x": 1}, "log": {"level": "info"}, "b": "text"}
    assert made.get(("a", "x")) == 1
    assert made.get(("b", "x", "y")) is None
